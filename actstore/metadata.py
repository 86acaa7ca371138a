"""The zarr.json documents of a store: written by these functions, and read by comparing to them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from actstore.codec import zarr_codecs
from actstore.manifest import CONTEXT_TOKENS, ROW_ARRAYS, TOKEN_ARRAYS, Manifest, StoreSpec

METADATA_CODEC = "zstd"  # of whatever is not activations


def array_document(spec: StoreSpec, name: str, n_rows: int) -> dict[str, Any]:
    """The zarr.json of one of `spec.arrays` when the store holds `n_rows` rows."""
    dtype, codec = dtype_of(spec, name), codec_of(spec, name)
    lead, *tail = shape_of(spec, name, n_rows)
    shard, chunk = shard_and_chunk(spec, name)
    inner = {
        "chunk_shape": [chunk, *tail],
        "codecs": zarr_codecs(codec, dtype),
        "index_codecs": zarr_codecs("raw", dtype),
        "index_location": "end",
    }
    return _array(
        [lead, *tail],
        dtype,
        chunk=[shard, *tail],
        codecs=[{"name": "sharding_indexed", "configuration": inner}],
        attributes=_attributes(spec, name),
        dimensions=_dimensions(spec, name),
    )


def summary_document(
    shape: Sequence[int], dtype: np.dtype, dimensions: list[str]
) -> dict[str, Any]:
    """The zarr.json of an array of the summary: one chunk, not compressed."""
    codecs = zarr_codecs("raw", dtype)
    return _array(shape, dtype, chunk=shape, codecs=codecs, attributes={}, dimensions=dimensions)


def _array(
    shape: Sequence[int],
    dtype: np.dtype,
    *,
    chunk: Sequence[int],
    codecs: Sequence[dict[str, object]],
    attributes: dict[str, Any],
    dimensions: list[str],
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0.0 if dtype.kind == "f" else 0,
        "codecs": codecs,
        "attributes": attributes,
        "dimension_names": dimensions,
    }


def group_document(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The zarr.json of a group."""
    return {"zarr_format": 3, "node_type": "group", "attributes": dict(attributes)}


def root_document(manifest: Manifest, nodes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The zarr.json of the root; `nodes` are the documents of a complete store, by path."""
    document = group_document(manifest.as_attributes())
    if nodes is not None:
        document["consolidated_metadata"] = {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(nodes),
        }
    return document


def dtype_of(spec: StoreSpec, name: str) -> np.dtype:
    """The stored dtype of an array."""
    if name == CONTEXT_TOKENS:
        return np.dtype("<i4")
    return np.dtype(ROW_ARRAYS[name]).newbyteorder("<") if name in ROW_ARRAYS else spec.storage


def codec_of(spec: StoreSpec, name: str) -> str:
    """The codec of an array."""
    return METADATA_CODEC if name in TOKEN_ARRAYS else spec.codec


def shape_of(spec: StoreSpec, name: str, n_rows: int) -> tuple[int, ...]:
    """The shape of an array, or of that part of it that belongs to `n_rows` rows."""
    if name in ROW_ARRAYS:
        return (n_rows,)
    if name == CONTEXT_TOKENS:
        return n_rows // spec.ctx_len, spec.ctx_len
    return n_rows, spec.width(name)


def shard_and_chunk(spec: StoreSpec, name: str) -> tuple[int, int]:
    """Entries of one shard and of one chunk of an array, along its first axis."""
    if name in ROW_ARRAYS:
        return spec.shard_rows, spec.shard_rows
    if name == CONTEXT_TOKENS:
        contexts = spec.shard_rows // spec.ctx_len
        return contexts, contexts
    return spec.shard_rows, spec.chunk_rows


def shard_key(name: str, shard: int) -> str:
    """Where a shard lies, from the root of the group."""
    return f"{name}/c/{shard}" if name in ROW_ARRAYS else f"{name}/c/{shard}/0"


def _attributes(spec: StoreSpec, name: str) -> dict[str, Any]:
    if name in TOKEN_ARRAYS:
        return {}
    bits = {"torch_dtype": "bfloat16", "encoding": "bits"} if spec.dtype == "bfloat16" else {}
    return {**bits, "coordinates": " ".join(ROW_ARRAYS)}


def _dimensions(spec: StoreSpec, name: str) -> list[str]:
    if name == CONTEXT_TOKENS:
        return ["context", "position_in_context"]
    if name in ROW_ARRAYS:
        return ["row"]
    return ["row", f"d_{spec.width(name)}"]  # sites of one width share it, others must not
