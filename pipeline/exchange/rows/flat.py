"""Rows that lie in a file as they lie in memory: raw, `.npy`, safetensors, and saev's shards.

They are read, never mapped: a file that is cut meanwhile would end the process.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from jaxtyping import Shaped
from numpy.lib import format as npy

from pipeline.errors import DataError
from pipeline.exchange.rows.values import (
    FLOATS,
    INTEGERS,
    Joined,
    Opened,
    Values,
    shaped,
    storage_of,
)


@dataclass(kw_only=True)
class Flat(Values):
    """Groups of rows, each at the same distance from the one before."""

    path: Path
    offset: int
    group_rows: int
    stride: int
    """Bytes from the start of a group to that of the next."""
    swapped: bool = False
    """The bytes of a number stand the other way round."""

    def read(self, start: int, stop: int) -> Shaped[np.ndarray, "n ..."]:
        """As `Values.read`."""
        shape = (stop - start,) if self.width is None else (stop - start, self.width)
        out, row_bytes = np.empty(shape, storage_of(self.dtype)), (self.width or 1) * self.itemsize
        view, done = out.reshape(-1).view(np.uint8).data, start
        try:
            with self.path.open("rb", buffering=0) as file:
                while done < stop:
                    group, first = divmod(done, self.group_rows)
                    n = min(stop - done, self.group_rows - first)
                    file.seek(self.offset + group * self.stride + first * row_bytes)
                    self._fill(file, view[(done - start) * row_bytes :][: n * row_bytes], done)
                    done += n
        except OSError as error:
            raise unreadable(self.path, error) from error
        return out.byteswap(inplace=True) if self.swapped else out

    def _fill(self, file: Any, view: memoryview, row: int) -> None:  # noqa: ANN401 - unbuffered
        while view:
            n = file.readinto(view)
            if not n:
                raise DataError(
                    f"{self.path} ends at about row {row}: it was cut while it was read"
                )
            view = view[n:]


def unreadable(path: Path, error: object) -> DataError:
    """That a file cannot be read, and why."""
    said = (str(error).splitlines() or [""])[0]
    return DataError(f"{path} cannot be read, it may be damaged or cut short: {said[:200]}")


def _flat(path: Path, words: str, dims: tuple[int, ...], dtype: str, *, offset: int) -> Flat:
    n_rows, ctx_len, width = shaped(dims, dtype, words=words)
    return Flat(
        words=words, n_rows=n_rows, ctx_len=ctx_len, width=width, dtype=dtype,
        path=path, offset=offset, group_rows=n_rows, stride=0,
    )  # fmt: skip


def _require_size(path: Path, told: int) -> None:
    size = path.stat().st_size
    if size != told:
        raise DataError(
            f"{path} has {size:,} bytes, and what it says of itself takes {told:,}: it is cut "
            "short, or still being written"
        )


# --- raw ---------------------------------------------------------------------------------------


def open_raw(path: Path, shape: tuple[int, ...], dtype: str) -> Flat:
    """A file of nothing but numbers.

    Args:
        path: The file.
        shape: The width alone, where the size of the file tells how many rows there are; else all.
        dtype: Of its numbers.

    Raises:
        DataError: the file has another size.
    """
    size, itemsize = path.stat().st_size, storage_of(dtype).itemsize
    if len(shape) == 1:
        row_bytes = shape[0] * itemsize
        if not size or size % row_bytes:
            raise DataError(
                f"{path} has {size:,} bytes, which are no rows of {shape[0]} {dtype} "
                f"({row_bytes:,} bytes each): see to --shape and --dtype"
            )
        shape = (size // row_bytes, *shape)
    values = _flat(path, str(path), shape, dtype, offset=0)
    told = values.n_rows * (values.width or 1) * itemsize
    if size != told:
        raise DataError(
            f"{path} has {size:,} bytes, and {' x '.join(map(str, shape))} {dtype} take {told:,}: "
            "see to --shape and --dtype"
        )
    return values


# --- npy ---------------------------------------------------------------------------------------


def open_npy(path: Path, *, bits: bool) -> dict[str, Values]:
    """The array of a `.npy`, whose header alone is read; with `bits`, 16 bits are bfloat16."""
    with path.open("rb") as file:
        try:
            version = npy.read_magic(file)
            header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            dims, fortran, dtype = header(file)
            offset = file.tell()
        except (
            ValueError, EOFError, SyntaxError, TokenError, RecursionError, MemoryError
        ) as error:  # fmt: skip
            raise unreadable(path, error) from error
    if dtype.hasobject:
        raise DataError(
            f"{path} holds objects of Python, which only running it would tell: save numbers, as "
            "with x.astype(np.float32)"
        )
    if fortran and len(dims) > 1:
        raise DataError(
            f"{path} is in Fortran order: save it as np.save(..., np.ascontiguousarray(x))"
        )
    if dtype.kind == "V" and dtype.itemsize == 2 and not bits:
        raise DataError(f"{path} has two bytes a number, as bfloat16 is saved: type --dtype bf16")
    name = "bfloat16" if bits and dtype.itemsize == 2 and dtype.kind in "uV" else dtype.name
    name = _known(name, words=str(path))
    values = _flat(path, str(path), tuple(dims), name, offset=offset)
    _require_size(path, offset + values.n_rows * (values.width or 1) * values.itemsize)
    values.swapped = dtype.newbyteorder("=") != dtype
    return {"": values}


def _known(dtype: str, *, words: str) -> str:
    if dtype not in (*FLOATS, *INTEGERS):
        raise DataError(
            f"{words} is of {dtype}: activations are of {', '.join(FLOATS)}, token ids of integers"
        )
    return dtype


# --- safetensors -------------------------------------------------------------------------------

SAFETENSORS = {
    "BF16": "bfloat16", "F16": "float16", "F32": "float32", "F64": "float64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
}  # fmt: skip
_LONGEST_HEADER = 100_000_000  # that safetensors reads
_LATENTS = {"locations", "activations"}


def open_safetensors(path: Path) -> tuple[dict[str, Values], dict[str, str]]:
    """Its arrays of rows by name, and its metadata."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > min(size, _LONGEST_HEADER):
            raise unreadable(path, "its header is longer than the file")
        try:
            told = json.loads(file.read(start - 8))
            metadata = told.pop("__metadata__", {})
            arrays = {name: _tensor(entry) for name, entry in told.items()}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise unreadable(path, f"its header is none of safetensors ({error})") from error
    if arrays.keys() >= _LATENTS:
        raise DataError(
            f"{path} holds latents of an SAE, as delphi keeps them (locations, activations): those "
            "are not rows of activations; run the model again, with saepipe harvest"
        )
    found, ends = dict[str, Values](), [start]
    for name, (dtype, dims, first, end) in arrays.items():
        ends.append(start + end)
        known = SAFETENSORS.get(dtype)
        if known is None or len(dims) not in ((1, 2) if known in INTEGERS else (2, 3)):
            continue  # a bias, a mask: no rows of activations, no token ids
        values = _flat(path, f"{name} of {path}", dims, known, offset=start + first)
        if end - first != values.n_rows * (values.width or 1) * values.itemsize:
            raise unreadable(path, f"{name} does not have the bytes of its shape")
        found[name] = values
    _require_size(path, max(ends))
    texts = metadata if isinstance(metadata, dict) else {}
    return found, {str(key): str(value) for key, value in texts.items()}


def _tensor(entry: Mapping[str, Any]) -> tuple[str, tuple[int, ...], int, int]:
    first, end = entry["data_offsets"]
    dims = tuple(entry["shape"])
    numbers = (first, end, *dims)
    if any(type(n) is not int or n < 0 for n in numbers) or end < first:
        raise ValueError("sizes that are none")
    return str(entry["dtype"]), dims, first, end


# --- saev --------------------------------------------------------------------------------------

METADATA, SHARDS = "metadata.json", "shards.json"
_TOKENS = ("content_tokens_per_example", "patches_per_ex", "n_patches_per_img")
"""Under which name its versions keep the tokens of an example, the CLS token not counted."""


def is_saev(path: Path) -> bool:
    """Whether a folder is one of saev's shards."""
    return (path / METADATA).is_file() and (path / SHARDS).is_file()


def open_saev(path: Path) -> Opened:
    """Every layer it recorded, as `resid_post.LAYER`; an example is a context.

    Its `data` is a pickle, and is not looked at.
    """
    told, shards = _json(path / METADATA), _json(path / SHARDS)
    try:
        layers, width = [int(layer) for layer in told["layers"]], int(told["d_model"])
        content = next(int(told[name]) for name in _TOKENS if name in told)
        rows = content + bool(told["cls_token"])
        dtype = _known(str(told.get("dtype", "float32")), words=str(path / METADATA))
        files = [(path / str(shard["name"]), int(shard["n_examples"])) for shard in shards]
    except (KeyError, TypeError, ValueError, StopIteration, AttributeError) as error:
        raise unreadable(path / METADATA, f"it is none of saev's ({error!r})") from error
    if not (files and layers and min(width, rows, *(n for _, n in files)) > 0):
        raise DataError(f"{path} holds no rows")
    columns = dict[str, Values]()
    for place, layer in enumerate(layers):
        name, parts = f"resid_post.{layer}", list[Values]()
        for file, n_examples in files:
            if not re.fullmatch(r"[\w.-]+\.bin", file.name) or file.parent != path:
                raise unreadable(path / SHARDS, f"{file.name} is no name of a shard")
            row_bytes = width * storage_of(dtype).itemsize
            stride, size = len(layers) * rows * row_bytes, _size(file)
            if n_examples * stride > size:  # the last one has room for more
                raise DataError(
                    f"{file} has {size:,} bytes, and {n_examples:,} examples take "
                    f"{n_examples * stride:,}: it is cut short"
                )
            parts.append(
                Flat(
                    words=f"{name} of {file}", n_rows=n_examples * rows, ctx_len=rows, width=width,
                    dtype=dtype, path=file, offset=place * rows * row_bytes, group_rows=rows,
                    stride=stride,
                )
            )  # fmt: skip
        columns[name] = Joined.of(parts, name=f"{name} of {path}")
    model = str(told.get("ckpt", ""))
    paths = [path / METADATA, path / SHARDS, *(file for file, _ in files)]
    return Opened(format="saev", files=paths, columns=columns, said={"model": model})


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError as error:
        raise unreadable(file, error.strerror or error) from error


def _json(file: Path) -> Any:  # noqa: ANN401 - whatever it holds
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(file, error) from error
