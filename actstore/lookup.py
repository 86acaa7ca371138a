"""Rows and contexts by number: for looking at, not for training.

Rows of a context lie all over their shard, so that every chunk of it is decoded to find one; what
is asked for together is sorted first, and each chunk is decoded once.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from os import cpu_count
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, Shaped

from actstore.chunks import Arrays, ChunkStore
from actstore.errors import StoreError
from actstore.manifest import CONTEXT_TOKENS, ROW_ARRAYS, StoreSpec
from actstore.moments import as_float
from actstore.shardfile import ShardReader


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """One context, in the order of its tokens."""

    tokens: Int32[np.ndarray, " ctx_len"]
    document_id: Int64[np.ndarray, " ctx_len"]
    acts: Mapping[str, Shaped[np.ndarray, "ctx_len width"]]
    """Of each site; in float32 from `ActStore.contexts`, and here as stored: bfloat16 as uint16."""


def read_rows(array: ShardReader, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n ..."]:
    """Rows of an array by their number in the store, in the order asked for."""
    out = array.empty(len(indices))
    order = np.argsort(indices, kind="stable")
    chunks, inner = np.divmod(indices[order], array.chunk_entries)
    starts = [*np.flatnonzero(np.diff(chunks, prepend=-1)).tolist(), len(chunks)]

    def read(here: tuple[int, int]) -> None:
        start, stop = here
        shard, chunk = divmod(int(chunks[start]), array.chunks_per_shard)
        rest = array.entries_in(shard) - chunk * array.chunk_entries
        values = array.empty(min(array.chunk_entries, rest))
        array.read_chunk(shard, chunk, values)
        out[order[start:stop]] = values[inner[start:stop]]

    with ThreadPoolExecutor(min(8, cpu_count() or 1), "actstore-lookup") as pool:
        for _ in pool.map(read, pairwise(starts)):
            pass
    return out


def read_tokens(
    arrays: Arrays, spec: StoreSpec, context_ids: Int[np.ndarray, " n"]
) -> Int32[np.ndarray, "n ctx_len"]:
    """The tokens of whole contexts, in the order asked for; each shard is read once."""
    out = np.empty((len(context_ids), spec.ctx_len), np.int32)
    for shard, here, inner in _by_shard(spec, context_ids):
        out[here] = arrays[CONTEXT_TOKENS].read(shard)[inner]
    return out


def read_contexts(
    arrays: Arrays, spec: StoreSpec, context_ids: Int[np.ndarray, " n"], sites: Sequence[str]
) -> list[Context]:
    """Whole contexts, in the order asked for."""
    tokens = read_tokens(arrays, spec, context_ids)
    rows = np.empty((len(context_ids), spec.ctx_len), np.int64)
    for shard, here, inner in _by_shard(spec, context_ids):
        rows[here] = _rows_of_shard(arrays, spec, shard)[inner]
    names = ("document_id", *sites)
    flat = {name: read_rows(arrays[name], rows.reshape(-1)) for name in names}
    found = {name: x.reshape(*rows.shape, *x.shape[1:]) for name, x in flat.items()}
    return [
        Context(
            tokens=tokens[i],
            document_id=found["document_id"][i],
            acts={site: found[site][i] for site in sites},
        )
        for i in range(len(context_ids))
    ]


def _rows_of_shard(
    arrays: Arrays, spec: StoreSpec, shard: int
) -> Int64[np.ndarray, "contexts ctx_len"]:
    """The rows of every context of a shard, by what the store says of each row."""
    first = shard * (spec.shard_rows // spec.ctx_len)
    context, position = (arrays[name].read(shard) for name in ("context_id", "position"))
    rows = np.full((len(context) // spec.ctx_len, spec.ctx_len), -1)
    rows[context - first, position] = np.arange(len(context)) + shard * spec.shard_rows
    return rows


def _by_shard(
    spec: StoreSpec, context_ids: Int[np.ndarray, " n"]
) -> Iterator[tuple[int, Bool[np.ndarray, " n"], Int[np.ndarray, " _"]]]:
    """Each shard that holds some of the contexts, which of them, and their places in it."""
    shards, inner = np.divmod(context_ids, spec.shard_rows // spec.ctx_len)
    for shard in np.unique(shards).tolist():
        here = shards == shard
        yield shard, here, inner[here]


Key: TypeAlias = int | np.integer | slice | Sequence[int] | Shaped[np.ndarray, " n"]
"""Which rows: a number, a slice, numbers in any order, or a mask."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Rows:
    """All rows of one site as an array that is read where it is asked for.

    Activations are float32, whatever they are stored as. `rows[7]` is one row; `rows[:10]` and
    `rows[[3, 1]]` are several, `rows[:10, :4]` some columns of them; `np.asarray(rows)` is all of
    them. Rows stand in the order of the store, which is shuffled; `token_id`, `context_id` and
    `position` have the same order.
    """

    store: ChunkStore
    name: str
    """Of the site, or `token_id` and the like."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, and the width of a site."""
        width = () if self.name in ROW_ARRAYS else (self.store.width(self.name),)
        return (self.store.n_rows, *width)

    @property
    def dtype(self) -> np.dtype:
        """Of what is read."""
        return np.dtype(ROW_ARRAYS.get(self.name, np.float32))

    def __len__(self) -> int:
        return self.store.n_rows

    def __getitem__(
        self, key: Key | tuple[Key, *tuple[int | np.integer | slice, ...]]
    ) -> Shaped[np.ndarray, "*rows"]:
        if isinstance(key, int | np.integer):
            return self[[int(key)]][0, ...]  # an array, too, where there is one value a row
        if isinstance(key, tuple):
            first, *rest = key
            rows, one = self[first], isinstance(first, int | np.integer)
            if len(rest) != rows.ndim - (not one) or not all(
                isinstance(part, int | np.integer | slice)  # pyright: ignore[reportUnnecessaryIsInstance]
                for part in rest
            ):
                raise StoreError(
                    f"{self.name} is indexed by rows, or by rows and columns as a slice"
                )
            return rows[(*(() if one else (slice(None),)), *rest)]
        if isinstance(key, slice):
            numbers = np.arange(*key.indices(len(self)))
        elif np.ndim(key) != 1:
            raise StoreError(f"rows of {self.name} are asked for by number or as a list, got {key}")
        else:
            numbers = np.asarray(key, None if len(key) else np.int64)
            if numbers.dtype == bool and len(numbers) == len(self):
                numbers = np.flatnonzero(numbers)
            if not np.issubdtype(numbers.dtype, np.integer):
                raise StoreError(
                    f"rows of {self.name} are asked for by number, as a slice, or by a mask of "
                    f"{len(self)}, got {len(numbers)} of {numbers.dtype}"
                )
            numbers = np.where(numbers < 0, numbers + len(self), numbers)
        self.store.require_within("rows", numbers, len(self))
        return self.settled(read_rows(self.store.array(self.name), numbers))

    def __iter__(self) -> Iterator[Shaped[np.ndarray, "*row"]]:
        for shard in range(self.store.n_shards):
            yield from self.settled(self.store.shard(self.name, shard))

    def __array__(
        self, dtype: np.dtype | None = None, copy: bool | None = None
    ) -> Shaped[np.ndarray, "*rows"]:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)

    def __repr__(self) -> str:
        shape = " x ".join(f"{n:,}" for n in self.shape)
        return f"{self.name} of {self.store.path}: {shape}, {self.dtype}"

    def settled(self, stored: Shaped[np.ndarray, "*rows"]) -> Shaped[np.ndarray, "*rows"]:
        """Rows as stored in the dtype that is read."""
        return as_float(stored).astype(self.dtype, copy=False)
