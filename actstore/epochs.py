"""Which rows each lane reads in an epoch, window by window: arithmetic only, no I/O.

The chunks of a store in shuffled order are one long row of rows. Each lane owns an equal share of
it, cut into windows at the same places in every lane, so that all lanes are always equally far.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from actstore.layout import Layout
from actstore.order import chunk_order, window_permutation


class Piece(NamedTuple):
    """Rows of a chunk, from `skip` on, and the rows of a window that they fill."""

    chunk: int
    skip: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, eq=False)
class LaneWindow:
    """One window of one lane: the rows it holds, and the key of their order."""

    pieces: Sequence[Piece]
    n_rows: int
    key: tuple[int, int, int, int]
    """Seed, epoch, window, lane."""

    def order(self, run: int) -> Int64[np.ndarray, " runs"]:
        """The order in which its runs of `run` rows are handed out."""
        seed, epoch, window, lane = self.key
        n = self.n_rows // run
        return window_permutation(n, seed=seed, epoch=epoch, window=window, lane=lane)


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """How the rows of a store come to be read, epoch after epoch."""

    layout: Layout
    seed: int
    n_lanes: int
    """A divisor of the rows there are."""
    window_chunks: int
    """Of one lane, at most."""

    @property
    def lane_rows(self) -> int:
        """Rows that a lane reads in an epoch."""
        return self.layout.n_rows // self.n_lanes

    @property
    def cuts(self) -> list[int]:
        """Where the windows of a lane begin, and where the last one ends; nearly equal sizes."""
        n_chunks = -(-self.lane_rows // self.layout.chunk_rows)
        n_windows = -(-n_chunks // self.window_chunks)
        starts = [self.layout.chunk_rows * (n_chunks * i // n_windows) for i in range(n_windows)]
        return [*starts, self.lane_rows]

    def windows(self, epoch: int, lanes: range) -> Iterator[tuple[LaneWindow, ...]]:
        """The windows of an epoch, one after another, each as its parts in `lanes`."""
        order = chunk_order(self.layout.n_chunks, seed=self.seed, epoch=epoch)
        rows = np.minimum(
            self.layout.chunk_rows, self.layout.n_rows - order * self.layout.chunk_rows
        )
        ends = np.cumsum(rows)
        for window, (start, stop) in enumerate(pairwise(self.cuts)):
            yield tuple(
                LaneWindow(
                    pieces=_pieces(order, ends, lane * self.lane_rows + start, stop - start),
                    n_rows=stop - start,
                    key=(self.seed, epoch, window, lane),
                )
                for lane in lanes
            )


def _pieces(
    order: Int64[np.ndarray, " chunks"], ends: Int64[np.ndarray, " chunks"], start: int, n_rows: int
) -> list[Piece]:
    """The `n_rows` rows from `start` on, of chunks that stand in `order` and end at `ends`."""
    stop = start + n_rows
    first, last = np.searchsorted(ends, [start, stop - 1], side="right").tolist()
    inner = ends[first:last].tolist()
    begins = [int(ends[first - 1]) if first else 0, *inner]
    cuts = pairwise([start, *inner, stop])
    return [
        Piece(chunk=chunk, skip=a - begin, start=a - start, stop=b - start)
        for chunk, begin, (a, b) in zip(order[first : last + 1].tolist(), begins, cuts, strict=True)
    ]
