"""Where a row lives, in which order: arithmetic only, and pure functions of seeds.

An order is that of the first `n` outputs of a Philox generator, whose stream numpy guarantees to
stay as it is; the low bits of each output are replaced by its place, so that no two are equal.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import isqrt, lcm, log2

import numpy as np
from jaxtyping import Int64

CHUNK_BYTES = 2**20
CHUNKS_PER_SHARD = 64
MAX_CHUNK_ROWS = 4096  # of narrow sites, so that a shard stays a quick unit of commit
MIN_CHUNKS_OF_SMALL_SHARD = 8


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Splits rows into shards (files) and shards into chunks (units of compression).

    Only the last shard may be shorter, and only the last chunk of that one.
    """

    n_rows: int
    shard_rows: int
    chunk_rows: int

    @property
    def n_shards(self) -> int:
        """Number of shards, the short one included."""
        return -(-self.n_rows // self.shard_rows)

    @property
    def n_chunks(self) -> int:
        """Number of chunks, the short one included; numbered through all shards."""
        return -(-self.n_rows // self.chunk_rows)

    @property
    def chunks_per_shard(self) -> int:
        """Slots in the index of a shard, whether the shard is full or not."""
        return self.shard_rows // self.chunk_rows

    def rows_in(self, shard: int) -> int:
        """Number of rows in `shard`."""
        return min(self.shard_rows, self.n_rows - shard * self.shard_rows)

    def locate(self, chunk: int) -> tuple[int, int]:
        """Map a chunk to `(shard, chunk within the shard)`."""
        return divmod(chunk, self.chunks_per_shard)


def plan_layout(
    *, widths: Sequence[int], itemsize: int, ctx_len: int, shard_rows: int | None = None
) -> tuple[int, int]:
    """Choose `(chunk_rows, shard_rows)`: about 1 MiB a chunk of the widest site, 64 chunks a shard.

    Shards hold whole chunks and whole contexts, so `shard_rows` is a multiple of both; a context
    length that shares no factor with the ideal chunk bends the chunk rather than the shard.

    Args:
        widths: Of every site.
        itemsize: Bytes of one stored value.
        ctx_len: Rows of one context.
        shard_rows: Wanted rows of a shard, rounded to what the context length allows.
    """
    ideal = 2 ** round(log2(max(1.0, CHUNK_BYTES / (max(widths) * itemsize))))
    chunk = min(ideal, MAX_CHUNK_ROWS)
    shard = chunk * CHUNKS_PER_SHARD
    if shard_rows is not None:
        shard = max(1, round(shard_rows / ctx_len)) * ctx_len
        small = 2 ** round(log2(max(1.0, shard / MIN_CHUNKS_OF_SMALL_SHARD)))
        chunk = min(chunk, small)

    def cost(pair: tuple[int, int]) -> float:
        return abs(log2(pair[0] / chunk)) + 8 * abs(log2(pair[1] / shard))

    return min(_candidates(chunk, shard, ctx_len), key=cost)


def _candidates(chunk: int, shard: int, ctx_len: int) -> Iterator[tuple[int, int]]:
    """Every allowed pair with a chunk near `chunk`, or dividing a context, and a shard near."""
    near = range(max(1, chunk // 2), 2 * chunk + 1)
    for rows in (*near, *_divisors(ctx_len)):
        unit = lcm(rows, ctx_len)
        yield rows, max(1, round(shard / unit)) * unit


def _divisors(n: int) -> Iterable[int]:
    small = [i for i in range(1, isqrt(n) + 1) if n % i == 0]
    return {*small, *(n // i for i in small)}


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
