"""Windows of rows, decoded by threads one ahead of whoever reads them."""

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from types import TracebackType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from actstore.order import window_permutation
from actstore.reader import ActStore

LOOK_AHEAD = 16  # chunks asked of the disk before they are read


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """One window to be: which chunks it holds, and the key of its order."""

    chunks: Sequence[int]
    n_rows: int
    seed: int
    epoch: int
    window: int

    def order(self) -> Int64[np.ndarray, " n"]:
        """The order in which its rows are handed out."""
        return window_permutation(self.n_rows, seed=self.seed, epoch=self.epoch, window=self.window)


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Rows of each site as their chunks were read, and the order to hand them out in."""

    rows: Mapping[str, Shaped[np.ndarray, "n width"]]
    order: Int64[np.ndarray, " n"]


class Windows:
    """Memory for two windows and the threads that fill it; a context manager."""

    def __init__(self, store: ActStore, sites: Sequence[str], *, n_rows: int, threads: int) -> None:
        self._store = store
        self._sites = sites
        self._memory = [
            {site: np.empty((n_rows, store.width(site)), store.spec.storage) for site in sites}
            for _ in range(2)
        ]
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, "actstore-decode")
        self._stopped = False

    def __enter__(self) -> "Windows":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopped = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def of(self, plans: Iterable[Plan]) -> Iterator[Window]:
        """Each planned window, in order; valid until the next is asked for.

        Raises:
            StoreError: If bytes of the store were altered.
        """
        pending: deque[_Pending] = deque()
        for i, plan in enumerate(plans):
            pending.append(self._start(plan, self._memory[i % 2]))
            if len(pending) == 2:
                yield pending.popleft().wait()

    def _start(self, plan: Plan, memory: Mapping[str, Shaped[np.ndarray, "n width"]]) -> "_Pending":
        rows = {site: values[: plan.n_rows] for site, values in memory.items()}
        starts = np.cumsum([0, *map(self._store.layout.rows_of_chunk, plan.chunks)]).tolist()
        places = zip(plan.chunks, starts, starts[1:], strict=False)
        work = [_Piece(site, chunk, a, b) for chunk, a, b in places for site in self._sites]
        turn = count()  # taking a number is atomic: whoever is free takes the next piece
        return _Pending(
            rows=rows,
            order=self._pool.submit(plan.order),
            jobs=[self._pool.submit(self._fill, rows, work, turn) for _ in range(self._threads)],
        )

    def _fill(
        self,
        rows: Mapping[str, Shaped[np.ndarray, "n width"]],
        work: Sequence["_Piece"],
        turn: Iterator[int],
    ) -> None:
        for i in turn:
            if i >= len(work) or self._stopped:
                return
            if i + LOOK_AHEAD < len(work):
                ahead = work[i + LOOK_AHEAD]
                self._store.want_chunk(ahead.site, ahead.chunk)
            piece = work[i]
            out = rows[piece.site][piece.start : piece.stop]
            self._store.read_chunk_into(piece.site, piece.chunk, out)


class _Piece(NamedTuple):
    """A chunk of a site, and the rows of the window it fills."""

    site: str
    chunk: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pending:
    """A window on its way."""

    rows: Mapping[str, Shaped[np.ndarray, "n width"]]
    order: Future[Int64[np.ndarray, " n"]]
    jobs: Sequence[Future[None]]

    def wait(self) -> Window:
        for job in self.jobs:
            job.result()
        return Window(rows=self.rows, order=self.order.result())
