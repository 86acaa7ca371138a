"""What a store knows of itself once complete: size and checksum of every shard, mean, variance.

It is a group of plain arrays, `summary-N` for generation N; its zarr.json is written last, and from
then on the generation will be completed, whoever has to do it. The root is the one file whose
replacement makes a generation complete. What a full or failing disk says, OSError, passes through.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, Shaped, UInt32

from actstore.codec import decode, encode
from actstore.errors import StoreError
from actstore.files import canonical_json, readable_json, write_json, write_many
from actstore.manifest import FORMAT_VERSION, Manifest, StoreSpec
from actstore.metadata import array_document, group_document, root_document, summary_document

I8, U4, F8 = map(np.dtype, ("<i8", "<u4", "<f8"))


@dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
    """Facts about the shards of a store; columns follow `StoreSpec.arrays`."""

    source_exhausted: bool
    shard_rows: Int64[np.ndarray, " shards"]
    shard_bytes: Int64[np.ndarray, "shards arrays"]
    shard_crc32c: UInt32[np.ndarray, "shards arrays"]
    mean: Mapping[str, Float64[np.ndarray, " _"]]
    var: Mapping[str, Float64[np.ndarray, " _"]]
    rounding: Mapping[str, Float64[np.ndarray, " _"]]
    """Mean squared difference that rounding made; empty if rows are exact."""

    @property
    def n_rows(self) -> int:
        """Rows of all shards."""
        return int(self.shard_rows.sum())

    def files(self, spec: StoreSpec, shard: int) -> dict[str, tuple[int, int]]:
        """Of each array's file of a shard: its bytes, and their crc32c as `Tally` has it."""
        sizes, crcs = self.shard_bytes[shard].tolist(), self.shard_crc32c[shard].tolist()
        return dict(zip(spec.arrays, zip(sizes, crcs, strict=True), strict=True))

    def fingerprint(self, spec: StoreSpec, *, version: int = FORMAT_VERSION) -> str:
        """sha256 over the spec, every row of every array, by the shards' checksums, and statistics.

        Version 1 left the statistics out.
        """
        digest = hashlib.sha256(canonical_json(spec.as_json()))
        for _, values, _ in self.arrays():
            if values.dtype != F8:
                digest.update(values.astype(I8).tobytes())
            elif version > 1:
                digest.update(values.astype(F8).tobytes())
        return digest.hexdigest()

    def is_of(self, manifest: Manifest) -> bool:
        """Whether it is the summary that a complete store's root was written with."""
        found = self.fingerprint(manifest.spec, version=manifest.format_version)
        return found == manifest.fingerprint

    def arrays(self) -> Iterator[tuple[str, Shaped[np.ndarray, "..."], list[str]]]:
        """Name, values and dimensions of each array of the group."""
        yield "shard_rows", self.shard_rows, ["shard"]
        yield "shard_bytes", self.shard_bytes, ["shard", "array"]
        yield "shard_crc32c", self.shard_crc32c, ["shard", "array"]
        for kind in ("mean", "var", "rounding"):
            for site, values in getattr(self, kind).items():
                yield f"{kind}.{site}", values, [f"d_{len(values)}"]

    def documents(self) -> dict[str, Any]:
        """The zarr.json of the group and of each array in it, by path from the group."""
        arrays = {
            name: summary_document(values.shape, values.dtype, dimensions)
            for name, values, dimensions in self.arrays()
        }
        attributes = {"n_rows": self.n_rows, "source_exhausted": self.source_exhausted}
        return {"": group_document(attributes), **arrays}


def summary_name(generation: int) -> str:
    """The group's name."""
    return f"summary-{generation}"


def write_summary(folder: Path, summary: Summary) -> None:
    """Write the group; its own zarr.json last."""
    group, *_ = documents = summary.documents()
    files: dict[Path, Iterable[bytes | memoryview]] = {}
    for name, values, _ in summary.arrays():
        files[folder / name / "zarr.json"] = [readable_json(documents[name])]
        files[folder / name / _chunk_key(values.ndim)] = encode(np.ascontiguousarray(values), "raw")
    write_many(files)
    write_json(folder / "zarr.json", documents[group])


def read_summary(folder: Path, spec: StoreSpec) -> Summary:
    """Read the group at `folder`."""
    attributes = _read_json(folder / "zarr.json").get("attributes", {})
    n_shards = spec.layout(int(attributes.get("n_rows", 0))).n_shards
    both = n_shards, len(spec.arrays)

    def by_site(kind: str) -> dict[str, Float64[np.ndarray, " _"]]:
        return {s.name: _read(folder / f"{kind}.{s.name}", (s.width,), F8) for s in spec.sites}

    summary = Summary(
        source_exhausted=bool(attributes.get("source_exhausted", False)),
        shard_rows=_read(folder / "shard_rows", (n_shards,), I8),
        shard_bytes=_read(folder / "shard_bytes", both, I8),
        shard_crc32c=_read(folder / "shard_crc32c", both, U4),
        mean=by_site("mean"),
        var=by_site("var"),
        rounding=by_site("rounding") if spec.lossy else {},
    )
    for name, document in summary.documents().items():
        check_document(folder / name, document)
    return summary


def check_document(folder: Path, expected: Mapping[str, Any]) -> None:
    """Hold the zarr.json in `folder` to what this version writes."""
    if _read_json(folder / "zarr.json") != expected:
        raise StoreError(f"{folder / 'zarr.json'} was altered: it is not what a writer put there")


def _read_json(path: Path, *, node: str = "node") -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(document, dict):
        raise StoreError(f"{path} is damaged: it is not a Zarr {node}")
    return document


def _read(folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> Shaped[np.ndarray, "..."]:
    path = folder / _chunk_key(len(shape))
    out = np.empty(shape, dtype)
    try:
        decode(memoryview(path.read_bytes()), "raw", out)
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    except StoreError as error:
        raise StoreError(f"{path} is damaged: {error}") from error
    return out


def _chunk_key(ndim: int) -> str:
    return "/".join(["c", *("0" * ndim)])


GROUP = "data.zarr"


def peek(path: Path) -> Manifest | None:
    """What the store at `path` says of itself, by one small file; None if there is none yet.

    Raises:
        StoreError: If there is something else, another version, or a damaged root.
    """
    document = read_root(path)
    return None if document is None else manifest_of(path, document)


def read_root(path: Path) -> dict[str, Any] | None:
    """The root's zarr.json; None if there is none."""
    try:
        return _read_json(path / GROUP / "zarr.json", node="group")
    except StoreError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return None
        raise


def require_root(path: Path) -> tuple[dict[str, Any], Manifest]:
    """The root's zarr.json, which must be there, and the manifest in it."""
    document = read_root(path)
    if document is None:
        raise StoreError(_nothing_at(path))
    return document, manifest_of(path, document)


def _nothing_at(path: Path) -> str:
    parts = path.parts
    if "hf:" in parts:  # of hf://datasets/org/name: a read of a chunk would be a request each
        name = "/".join(parts[parts.index("hf:") + 1 :])
        return (
            f"stores are read from a disk, and {name} is on the hub: type saepipe pull {name} "
            "--out NAME.actstore, and name that"
        )
    return f"there is no activation store at {path}; make it: saepipe harvest"


def manifest_of(path: Path, document: Mapping[str, Any]) -> Manifest:
    """The manifest in a root's document."""
    root = path / GROUP / "zarr.json"
    try:
        return Manifest.from_attributes(document["attributes"])
    except (TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{root} is damaged: {error}") from error
    except StoreError as error:
        raise StoreError(f"{path} cannot be used: {error}") from error


def being_extended(path: Path, manifest: Manifest) -> StoreError | None:
    """What to tell of a store that is between the first and the last step of an extension."""
    if not (path / GROUP / summary_name(manifest.generation + 1) / "zarr.json").exists():
        return None
    return StoreError(
        f"{path} is just being extended; try again in a moment, or if its writer died, "
        "go on with the extension"
    )


def write_root(path: Path, manifest: Manifest, summary: Summary | None = None) -> None:
    """Replace the root; with a summary it carries the documents of every node of the group."""
    nodes = None if summary is None else documents_of(manifest, summary)
    write_json(path / GROUP / "zarr.json", root_document(manifest, nodes))


def documents_of(manifest: Manifest, summary: Summary) -> dict[str, Any]:
    """The zarr.json of every node of a complete store, by path from the root."""
    spec, group = manifest.spec, summary_name(manifest.generation)
    arrays = {name: array_document(spec, name, manifest.n_rows) for name in spec.arrays}
    inner = {f"{group}/{name}".rstrip("/"): d for name, d in summary.documents().items()}
    return {**arrays, **inner}
