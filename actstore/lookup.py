"""Single rows and whole contexts by number: for looking at, not for training.

Rows of a context lie all over their shard, so that every chunk of it is decoded to find one; what
is asked for together is sorted first, and each chunk is decoded once.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from os import cpu_count

import numpy as np
from jaxtyping import Bool, Int, Int32, Int64, Shaped

from actstore.manifest import CONTEXT_TOKENS, StoreSpec
from actstore.shardreader import ShardReader

Arrays = Mapping[str, ShardReader]


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """One context, in the order of its tokens."""

    tokens: Int32[np.ndarray, " ctx_len"]
    document_id: Int64[np.ndarray, " ctx_len"]
    acts: Mapping[str, Shaped[np.ndarray, "ctx_len width"]]
    """Of each site, as stored: bfloat16 as its bits, uint16."""


def read_rows(array: ShardReader, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n ..."]:
    """Rows of an array by their number in the store, in the order asked for.

    Raises:
        StoreError: If their bytes were altered.
    """
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
    """The tokens of whole contexts, in the order asked for; each shard is read once.

    Raises:
        StoreError: If their bytes were altered.
    """
    out = np.empty((len(context_ids), spec.ctx_len), np.int32)
    for shard, here, inner in _by_shard(spec, context_ids):
        out[here] = arrays[CONTEXT_TOKENS].read(shard)[inner]
    return out


def read_contexts(
    arrays: Arrays, spec: StoreSpec, context_ids: Int[np.ndarray, " n"], sites: Sequence[str]
) -> list[Context]:
    """Whole contexts, in the order asked for.

    Raises:
        StoreError: If their bytes were altered.
    """
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
