"""Shards of a store put back into the order of their texts, the next one decoded meanwhile."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from actstore.manifest import CONTEXT_TOKENS
from actstore.reader import ActStore
from pipeline.read_ahead import ReadAhead


@dataclass(frozen=True, kw_only=True, eq=False)
class Contexts:
    """Whole contexts that follow each other, and where their activations are."""

    first: int
    """Number of the first one in the store."""
    tokens: Int32[np.ndarray, "contexts ctx_len"]
    rows: Int64[np.ndarray, "contexts ctx_len"]
    """Which row of `acts` belongs to each token."""
    acts: Shaped[np.ndarray, "rows width"]
    """As stored: bfloat16 as its bits, uint16."""

    def __len__(self) -> int:
        return len(self.tokens)


def contexts_of(store: ActStore, site: str, *, n_contexts: int) -> Generator[Contexts]:
    """The first so many contexts of a store, a shard of them at a time; two shards are held.

    Raises:
        StoreError: bytes of the store were altered.
    """
    ahead = ReadAhead(_shards(store, site, n_contexts), items=1)
    with closing(ahead):
        while (contexts := ahead.get()) is not None:
            yield contexts


def _shards(store: ActStore, site: str, n_contexts: int) -> Iterator[Contexts]:
    per_shard = store.spec.shard_rows // store.spec.ctx_len
    for shard in range(-(-n_contexts // per_shard)):
        first = shard * per_shard
        tokens = store.shard(CONTEXT_TOKENS, shard)
        context, position = (store.shard(name, shard) for name in ("context_id", "position"))
        rows = np.empty(tokens.shape, np.int64)
        rows[context - first, position] = np.arange(len(context))
        n = min(per_shard, n_contexts - first)
        yield Contexts(first=first, tokens=tokens[:n], rows=rows[:n], acts=store.shard(site, shard))
