"""A second reader, written from actstore/FORMAT.md alone: Python, numpy, blosc's decompressor.

It checks everything before it returns anything, and shares no code with the package.
"""

import hashlib
import json
import re
import struct
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numcodecs import blosc

EMPTY = 2**64 - 1
STORED = {"bfloat16": ("uint16", 7), "float16": ("float16", 10), "float32": ("float32", 23)}
PER_ROW = {"token_id": "int32", "context_id": "int64", "position": "int32", "document_id": "int64"}
BYTES, CRC = {"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}


class Refused(Exception):  # noqa: N818
    """What lies there is not a whole store of format version 1."""


@dataclass(frozen=True)
class Store:
    """A whole store in memory; sites as they are stored."""

    spec: dict[str, Any]
    n_rows: int
    fingerprint: str
    arrays: dict[str, np.ndarray]
    mean: dict[str, np.ndarray]
    var: dict[str, np.ndarray]
    rounding: dict[str, np.ndarray]  # empty unless the codec is `bitround:N`

    def sites_as_float(self, name: str) -> np.ndarray:
        """One site as float32."""
        stored = self.arrays[name]
        if self.spec["dtype"] == "bfloat16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored.astype(np.float32)


def demand(fits: bool, otherwise: str) -> None:
    if not fits:
        raise Refused(otherwise)


def canonical(value) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def crc_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRC_TABLE = [crc_of_byte(byte) for byte in range(256)]


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def checked(data: bytes, what: str) -> bytes:
    """What stands before the crc32c at the end."""
    fits = len(data) >= 4 and crc32c(data[:-4]) == struct.unpack("<I", data[-4:])[0]
    demand(fits, f"{what} does not match its crc32c")
    return data[:-4]


def node(dtype: str, shape, grid, codecs, names, attributes):
    """The zarr.json of an array."""
    regular = {"name": "regular", "configuration": {"chunk_shape": grid}}
    keys = {"name": "default", "configuration": {"separator": "/"}}
    what = {"zarr_format": 3, "node_type": "array", "data_type": dtype, "shape": shape}
    where = {"chunk_grid": regular, "chunk_key_encoding": keys, "dimension_names": names}
    return what | where | {"fill_value": 0, "codecs": codecs, "attributes": attributes}


def sharded(dtype: str, shape, grid, chunk, codec: str, names, attributes):
    how = {"cname": "zstd" if codec == "zstd" else "lz4", "clevel": 5, "shuffle": "bitshuffle"}
    how |= {"typesize": np.dtype(dtype).itemsize, "blocksize": 0}
    middle = [] if codec == "raw" else [{"name": "blosc", "configuration": how}]
    inside = {"chunk_shape": chunk, "codecs": [BYTES, *middle, CRC], "index_codecs": [BYTES, CRC]}
    codecs = {"name": "sharding_indexed", "configuration": inside | {"index_location": "end"}}
    return node(dtype, shape, grid, [codecs], names, attributes)


def expected_arrays(spec, n: int):
    """The zarr.json of each array, in the order of the columns of the summary."""
    rows, ctx, dtype, codec = (spec[k] for k in ("shard_rows", "ctx_len", "dtype", "codec"))
    bits = re.fullmatch(r"bitround:([1-9][0-9]*)", codec)
    stored, mantissa = STORED[dtype]
    known = int(bits[1]) < mantissa if bits else codec in ("lz4", "zstd", "raw")
    demand(known, f"no codec {codec!r} for {dtype}")
    demand(not (rows % spec["chunk_rows"] or rows % ctx or n % ctx), "sizes that do not divide")
    arrays = {k: sharded(t, [n], [rows], [rows], "zstd", ["row"], {}) for k, t in PER_ROW.items()}
    grid, names = [rows // ctx, ctx], ["context", "position_in_context"]
    arrays["context_tokens"] = sharded("int32", [n // ctx, ctx], grid, grid, "zstd", names, {})
    about = {"torch_dtype": "bfloat16", "encoding": "bits"} if dtype == "bfloat16" else {}
    about |= {"coordinates": "token_id context_id position document_id"}
    for name, d in ((site["name"], site["width"]) for site in spec["sites"]):
        fits = re.fullmatch(r"(?!summary-)[A-Za-z0-9_][A-Za-z0-9._-]*", name)
        demand(bool(fits) and name not in arrays, f"no site can be called {name!r}")
        shapes = [n, d], [rows, d], [spec["chunk_rows"], d]
        arrays[name] = sharded(stored, *shapes, codec, ["row", f"d_{d}"], about)
    return arrays


def read_shard(path: Path, rows: int, size: int, crc: int, meta) -> np.ndarray:
    """One file: its chunks, then offset and size of each, then the crc32c of these."""
    demand(path.is_file(), f"{path} is absent")
    data = path.read_bytes()
    demand(len(data) == size, f"{path} has {len(data)} bytes, not {size}")
    inside, grid = meta["codecs"][0]["configuration"], meta["chunk_grid"]["configuration"]
    shape, dtype = inside["chunk_shape"], np.dtype(meta["data_type"]).newbyteorder("<")
    slots = grid["chunk_shape"][0] // shape[0]
    index = checked(data[-(16 * slots + 4) :], f"the index of {path}")
    end, crcs, chunks = 0, b"", []
    for k, (offset, length) in enumerate(struct.iter_unpack("<QQ", index)):
        if k * shape[0] >= rows:
            demand(offset == length == EMPTY, f"chunk {k} of {path} is beyond its rows")
            continue
        demand(offset == end, f"chunk {k} of {path} is out of place")
        end, chunk = offset + length, data[offset : offset + length]
        plain, crcs = checked(chunk, f"chunk {k} of {path}"), crcs + chunk[-4:]
        if len(inside["codecs"]) == 3:
            plain = blosc.decompress(plain)
        chunks.append(np.frombuffer(plain, dtype).reshape(shape))
    demand(end + len(index) + 4 == size, f"{path} has a gap before its index")
    demand(crc32c(crcs) == crc, f"{path} is not the one that the summary names")
    return np.concatenate(chunks)[:rows]


def read_group(root: Path, group, own) -> Store:
    claims = {k: v for k, v in own.items() if k != "crc32c"}
    demand(crc32c(canonical(claims)) == own["crc32c"], "attributes do not match their crc32c")
    demand(own["state"] == "complete", f"state is {own['state']!r}")
    spec, n, summary = own["spec"], own["n_rows"], f"summary-{own['generation']}"
    arrays, shards = expected_arrays(spec, n), -(-n // spec["shard_rows"])

    both = [shards, len(arrays)], ["shard", "array"]
    tables = {"shard_rows": ("int64", [shards], ["shard"])}
    tables |= {"shard_bytes": ("int64", *both), "shard_crc32c": ("uint32", *both)}
    moments = ["mean", "var"] + ["rounding"] * spec["codec"].startswith("bitround:")
    widths = {site["name"]: site["width"] for site in spec["sites"]}
    for moment, (name, d) in product(moments, widths.items()):
        tables[f"{moment}.{name}"] = ("float64", [d], [f"d_{d}"])

    about = {"n_rows": n, "source_exhausted": own["source_exhausted"]}
    nodes = arrays | {summary: {"zarr_format": 3, "node_type": "group", "attributes": about}}
    for name, (dtype, shape, names) in tables.items():
        nodes[f"{summary}/{name}"] = node(dtype, shape, shape, [BYTES, CRC], names, {})
    for name, expected in nodes.items():
        found = json.loads((root / name / "zarr.json").read_bytes())
        demand(found == expected, f"{name}/zarr.json is not as prescribed")
    inline = {"kind": "inline", "must_understand": False, "metadata": nodes}
    whole = {"zarr_format": 3, "node_type": "group", "attributes": {"actstore": own}}
    whole |= {"consolidated_metadata": inline}
    demand(group == whole, "the root's zarr.json is not as prescribed")

    told = {}
    for name, (dtype, shape, _) in tables.items():
        file = root / summary / name / "c" / "/".join("0" * len(shape))
        plain = checked(file.read_bytes(), str(file))
        told[name] = np.frombuffer(plain, np.dtype(dtype).newbyteorder("<")).reshape(shape)
    rows, sizes, crcs = (told[k].astype("<i8") for k in list(tables)[:3])
    numbers = rows.tobytes() + sizes.tobytes() + crcs.tobytes()
    if own["format_version"] == 2:
        numbers += b"".join(told[k].tobytes() for k in list(tables)[3:])
    sha = hashlib.sha256(canonical(spec) + numbers).hexdigest()
    demand(sha == own["fingerprint"], "the fingerprint does not fit")
    due = np.minimum(n - spec["shard_rows"] * np.arange(shards), spec["shard_rows"])
    demand(np.array_equal(rows, due), "shard_rows does not fit")

    values = {}
    for j, (name, meta) in enumerate(arrays.items()):
        rows_each = spec["ctx_len"] if name == "context_tokens" else 1
        files = [root / name / "c" / f"{k}{'/0' * (len(meta['shape']) - 1)}" for k in range(shards)]
        columns = zip(files, rows // rows_each, sizes[:, j], crcs[:, j], strict=True)
        values[name] = np.concatenate([read_shard(*column, meta) for column in columns])
    of = {m: {s["name"]: told[f"{m}.{s['name']}"] for s in spec["sites"]} for m in moments}
    return Store(spec, n, own["fingerprint"], values, **{"rounding": {}} | of)


def read_store(path) -> Store:
    """The store at `path`, the folder around `data.zarr`, read and checked whole."""
    root, late = Path(path) / "data.zarr", False
    try:
        group = json.loads((root / "zarr.json").read_bytes())
        own = group["attributes"]["actstore"]
        demand(own["format_version"] in (1, 2), f"format_version is {own['format_version']!r}")
        late = (root / f"summary-{own['generation'] + 1}" / "zarr.json").exists()
        return read_group(root, group, own)
    except Exception as error:  # whatever stumbles over what is malformed
        hint = " (an extension is in its last steps)" if late else ""
        raise Refused(f"{path}: {error}{hint}") from error
