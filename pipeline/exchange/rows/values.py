"""Rows in files of others as what an import reads: one after another, a part at a time.

Bits of bfloat16 are uint16 here, as in a store.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from actstore.codec import STORAGE
from actstore.moments import as_float
from pipeline.errors import DataError

FLOATS = ("bfloat16", "float16", "float32", "float64")
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
MAX_VALUES = 2**50
"""Of an array: no disk holds more, and products of what a header says stay exact."""


@dataclass(kw_only=True)
class Values(ABC):
    """An array of a file: rows of activations, or one number a row, as token ids are."""

    words: str
    """What messages call it."""
    n_rows: int
    ctx_len: int | None
    """Rows of a context, where the array says it by its shape."""
    width: int | None
    """Values of a row; None for one number a row."""
    dtype: str
    """One of `FLOATS` or `INTEGERS`."""

    @abstractmethod
    def read(self, start: int, stop: int) -> Shaped[np.ndarray, "n ..."]:
        """Rows `start` to `stop`; reading on from where the last call ended is fastest.

        Raises:
            DataError: the file is not what it was when it was opened, or is damaged.
        """

    @property
    def itemsize(self) -> int:
        """Bytes of one number."""
        return storage_of(self.dtype).itemsize

    @property
    def kind(self) -> tuple[object, ...]:
        """What arrays must have in common to follow one another."""
        return self.ctx_len, self.width, self.dtype


@dataclass(kw_only=True)
class Joined(Values):
    """Arrays of several files, one after another."""

    parts: Sequence[Values]

    @staticmethod
    def of(parts: Sequence[Values], *, name: str) -> "Joined":
        """Raises DataError where they do not fit."""
        first = parts[0]
        for part in parts[1:]:
            if part.kind != first.kind:
                ids, rows = sorted((first, part), key=lambda values: values.width is not None)
                way_out = "import one kind of rows at a time"
                if rows.width is not None and ids.width is None:
                    way_out = f"name {rows.words}, with --tokens-file {ids.words} if it is of these"
                raise DataError(
                    f"{part.words} has {shape_words(part)}, and {first.words} has "
                    f"{shape_words(first)}: {way_out}"
                )
        return Joined(
            words=name if len(parts) > 1 else first.words,
            n_rows=sum(part.n_rows for part in parts),
            ctx_len=first.ctx_len,
            width=first.width,
            dtype=first.dtype,
            parts=parts,
        )

    def read(self, start: int, stop: int) -> Shaped[np.ndarray, "n ..."]:
        """As `Values.read`."""
        found, first = list[np.ndarray](), 0
        for part in self.parts:
            a, b = max(start, first) - first, min(stop, first + part.n_rows) - first
            if a < b:
                found.append(part.read(a, b))
            first += part.n_rows
        return found[0] if len(found) == 1 else np.concatenate(found)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """What a source holds, its files open for reading."""

    format: str
    files: Sequence[Path]
    columns: Mapping[str, Values]
    """By the names that the source has for them; empty where it has none."""
    said: Mapping[str, str] = field(default_factory=dict[str, str])
    """What else the source tells: `model`, `revision`, `ctx_len`."""
    stamps: Sequence[tuple[int, int] | None] = ()

    def stamped(self) -> "Opened":
        """The same, and how its files are now."""
        return Opened(
            format=self.format, files=self.files, columns=self.columns, said=self.said,
            stamps=[stamp_of(file) for file in self.files],
        )  # fmt: skip

    def require_unchanged(self) -> None:
        """Raise DataError where a file is not as it was when it was opened."""
        for file, was in zip(self.files, self.stamps, strict=True):
            if stamp_of(file) != was:
                raise DataError(
                    f"{file} changed while it was read: import it once nothing writes to it, into "
                    "another --out"
                )

    @property
    def n_bytes(self) -> int:
        """Of all files."""
        return sum(stamp[0] for stamp in self.stamps if stamp is not None)


def stamp_of(file: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where it is gone."""
    with suppress(OSError):
        told = file.stat()
        return told.st_size, told.st_mtime_ns
    return None


def storage_of(dtype: str) -> np.dtype:
    """As numpy holds it."""
    return STORAGE.get(dtype) or np.dtype(dtype)


def shape_words(values: Values) -> str:
    """What it holds, to tell it from another."""
    each = "single numbers" if values.width is None else f"rows of {values.width}"
    contexts = f", in contexts of {values.ctx_len}" if values.ctx_len else ""
    return f"{each} {values.dtype}{contexts}"


def shaped(dims: Sequence[int], dtype: str, *, words: str) -> tuple[int, int | None, int | None]:
    """Rows, length of a context and width of an array of these dimensions.

    Raises:
        DataError: they are not of rows.
    """
    of = " x ".join(map(str, dims)) or "one number"
    rows_first = 1 if dtype in INTEGERS else 2
    if not rows_first <= len(dims) <= rows_first + 1:
        wanted = "rows, or contexts x rows" if rows_first == 1 else "rows x width, or contexts x "
        wanted += "" if rows_first == 1 else "rows x width"
        raise DataError(f"{words} is {of} of {dtype}: expected {wanted}")
    if min(dims) < 1:
        raise DataError(f"{words} holds no rows: it is {of}")
    total = 1
    for n in dims:
        total *= n
    if total > MAX_VALUES:
        raise DataError(f"{words} says that it is {of}, which no disk holds: it is damaged")
    width = None if rows_first == 1 else dims[-1]
    if len(dims) == rows_first:
        return dims[0], None, width
    return dims[0] * dims[1], dims[1], width


def as_stored(rows: Shaped[np.ndarray, "n width"], dtype: str) -> Shaped[np.ndarray, "n width"]:
    """Rows in a dtype of stores; what is too large for it becomes infinite, and NaN stays."""
    storage = STORAGE[dtype]
    if rows.dtype == storage:
        return rows
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype != "bfloat16":
            return as_float(rows).astype(storage)
        bits = as_float(rows).astype(np.float32).view(np.uint32)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    bits += ((bits >> 16) & 1) + 0x7FFF  # to the nearest, to even where two are as near
    bits >>= 16
    bits[nan] = 0x7FC0
    return bits.astype(storage)


def keeps_bits(dtype: str, stored: str) -> bool:
    """Whether every number of one dtype is one of the other."""
    return dtype == stored or (stored == "float32" and dtype in ("bfloat16", "float16"))


def blocks(start: int, stop: int, *, row_bytes: int) -> Iterator[tuple[int, int]]:
    """Spans of rows that take a few MiB each."""
    step = max(1, BLOCK_BYTES // row_bytes)
    for first in range(start, stop, step):
        yield first, min(stop, first + step)


BLOCK_BYTES = 2**22
