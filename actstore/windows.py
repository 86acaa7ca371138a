"""Windows of rows, decoded by threads one ahead of whoever reads them."""

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count, islice, pairwise
from types import TracebackType
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64, Shaped

from actstore.epochs import LaneWindow, Piece
from actstore.manifest import ROW_ARRAYS
from actstore.reader import ActStore

LOOK_AHEAD = 16  # chunks asked of the disk before they are read

Rows = Shaped[np.ndarray, "n *width"]
"""Of a site, or of one of ROW_ARRAYS: one value a row."""


def empty_rows(store: ActStore, name: str, n_rows: int) -> Rows:
    """Memory for rows of a site or of one of ROW_ARRAYS."""
    if name in ROW_ARRAYS:
        return np.empty(n_rows, ROW_ARRAYS[name])
    return np.empty((n_rows, store.width(name)), store.spec.storage)


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Rows of each array as their chunks were read, and the order to hand them out in."""

    rows: Mapping[str, Rows]
    runs: Int64[np.ndarray, " runs"]
    run: int
    """Rows that stay together; those left over at the end come last."""

    @property
    def n_rows(self) -> int:
        """Rows of each array."""
        return len(next(iter(self.rows.values())))

    def take(self, name: str, start: int, out: Rows) -> None:
        """Copy the rows that come from place `start` on into contiguous `out`.

        Whole runs are copied as one: a copy of some KiB costs half of as many copies of a row.
        """
        rows, run = self.rows[name], self.run
        ordered = len(self.runs) * run
        first, last = -(-start // run), min(start + len(out), ordered) // run
        if first >= last:  # too few for a whole run
            out[:] = rows[self._places(start, start + len(out))]
            return
        head, tail = first * run - start, last * run - start
        blocks = rows[:ordered].reshape(len(self.runs), -1)
        whole = out[head:tail].reshape(last - first, -1)
        np.take(blocks, self.runs[first:last], axis=0, out=whole, mode="clip")
        out[:head] = rows[self._places(start, first * run)]
        out[tail:] = rows[self._places(last * run, start + len(out))]

    def _places(self, start: int, stop: int) -> Int64[np.ndarray, " n"]:
        """Where the rows of these places of the order lie."""
        place = np.arange(start, stop)
        here = place[place < len(self.runs) * self.run]
        return np.concatenate(
            [self.runs[here // self.run] * self.run + here % self.run, place[len(here) :]]
        )


class Windows:
    """Memory for two windows of each lane, and the threads that fill it; a context manager."""

    def __init__(
        self,
        store: ActStore,
        sites: Sequence[str],
        *,
        metadata: Sequence[str] = (),
        n_lanes: int,
        n_rows: int,
        run: int,
        threads: int,
    ) -> None:
        self._store = store
        self._sites = sites
        self._metadata = metadata
        self._run = run
        names = (*sites, *metadata)
        self._memory = [
            [{name: empty_rows(store, name, n_rows) for name in names} for _ in range(n_lanes)]
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

    def of(self, plans: Iterable[Sequence[LaneWindow]]) -> Iterator[list[Window]]:
        """Each planned window but the last, by lane; valid until the next is asked for.

        Raises:
            StoreError: If bytes of the store were altered.
        """
        pending: deque[_Pending] = deque()
        for i, (plan, after) in enumerate(pairwise(plans)):
            pending.append(self._start(plan, after, self._memory[i % 2]))
            if len(pending) == 2:
                yield pending.popleft().wait()

    def _start(
        self,
        plan: Sequence[LaneWindow],
        after: Sequence[LaneWindow],
        memory: Sequence[Mapping[str, Rows]],
    ) -> "_Pending":
        rows = [
            {name: values[: lane.n_rows] for name, values in here.items()}
            for lane, here in zip(plan, memory, strict=True)
        ]
        chunks = [
            _Chunk(site, piece, here[site][piece.start : piece.stop])
            for lane, here in zip(plan, rows, strict=True)
            for piece in lane.pieces
            for site in self._sites
        ]
        wanted = [*((job.site, job.piece.chunk) for job in chunks), *self._first_of(after)]
        work = [*chunks, *self._values(plan, rows)]
        turn = count()  # taking a number is atomic: whoever is free takes the next piece
        return _Pending(
            rows=rows,
            orders=[self._pool.submit(lane.order, self._run) for lane in plan],
            jobs=[self._pool.submit(self._fill, work, wanted, turn) for _ in range(self._threads)],
            run=self._run,
        )

    def _values(
        self, plan: Sequence[LaneWindow], rows: Sequence[Mapping[str, Rows]]
    ) -> list["_Values"]:
        """What is to be read of the metadata: a shard of it is one chunk, decoded once a window."""
        layout = self._store.layout
        parts: dict[tuple[str, int], list[tuple[int, Rows]]] = defaultdict(list)
        for lane, here in zip(plan, rows, strict=True):
            for piece in lane.pieces if self._metadata else ():
                shard, inner = layout.locate(piece.chunk)
                start = inner * layout.chunk_rows + piece.skip
                for name in self._metadata:
                    parts[name, shard].append((start, here[name][piece.start : piece.stop]))
        return [_Values(name, shard, wanted) for (name, shard), wanted in parts.items()]

    def _first_of(self, plan: Sequence[LaneWindow]) -> list[tuple[str, int]]:
        """The chunks with which a window will begin."""
        chunks = (piece.chunk for lane in plan for piece in lane.pieces)
        return list(islice(((site, chunk) for chunk in chunks for site in self._sites), LOOK_AHEAD))

    def _fill(
        self,
        work: Sequence["_Chunk | _Values"],
        wanted: Sequence[tuple[str, int]],
        turn: Iterator[int],
    ) -> None:
        for i in turn:
            if i >= len(work) or self._stopped:
                return
            if i + LOOK_AHEAD < len(wanted):
                self._store.want_chunk(*wanted[i + LOOK_AHEAD])
            work[i].read(self._store)


class _Chunk(NamedTuple):
    """Rows of a site to be read into a window."""

    site: str
    piece: Piece
    out: Rows

    def read(self, store: ActStore) -> None:
        store.read_chunk_into(self.site, self.piece.chunk, self.out, skip=self.piece.skip)


class _Values(NamedTuple):
    """Values of a shard's rows to be read into a window: from which row of it on, into what."""

    name: str
    shard: int
    parts: Sequence[tuple[int, Rows]]

    def read(self, store: ActStore) -> None:
        values = store.shard(self.name, self.shard)
        for start, out in self.parts:
            out[:] = values[start : start + len(out)]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pending:
    """A window on its way."""

    rows: Sequence[Mapping[str, Rows]]
    orders: Sequence[Future[Int64[np.ndarray, " runs"]]]
    jobs: Sequence[Future[None]]
    run: int

    def wait(self) -> list[Window]:
        for job in self.jobs:
            job.result()
        return [
            Window(rows=rows, runs=order.result(), run=self.run)
            for rows, order in zip(self.rows, self.orders, strict=True)
        ]
