"""Every order there is, as a pure function of seeds.

An order is that of the first `n` outputs of a Philox generator, whose stream numpy guarantees to
stay as it is; the low bits of each output are replaced by its place, so that no two are equal.
"""

import numpy as np
from jaxtyping import Int64

ROWS_OF_SHARD, CHUNKS_OF_EPOCH, RUNS_OF_WINDOW = range(3)


def row_permutation(n_rows: int, *, seed: int, shard: int) -> Int64[np.ndarray, " {n_rows}"]:
    """Which row of the shard, counted in context order, is stored at each of its places."""
    return _permutation(n_rows, ROWS_OF_SHARD, seed, shard)


def chunk_order(n_chunks: int, *, seed: int, epoch: int) -> Int64[np.ndarray, " {n_chunks}"]:
    """The order in which an epoch reads the chunks of a store."""
    return _permutation(n_chunks, CHUNKS_OF_EPOCH, seed, epoch)


def window_permutation(
    n: int, *, seed: int, epoch: int, window: int, lane: int
) -> Int64[np.ndarray, " {n}"]:
    """Which run of a lane's window, counted as its chunks were read, comes at each place."""
    return _permutation(n, RUNS_OF_WINDOW, seed, epoch, window, lane)


def _permutation(n: int, *key: int) -> Int64[np.ndarray, " {n}"]:
    """The order of `n` random keys: their low bits hold their place, and survive the sort."""
    place = np.uint64((1 << max(n - 1, 0).bit_length()) - 1)
    keys = np.random.Philox(np.random.SeedSequence(key)).random_raw(n) & ~place
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    keys &= place
    return keys.view(np.int64)
