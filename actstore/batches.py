"""Shuffled batches whose whole state is one integer.

An epoch reads the chunks of a store in random order and cuts that order into windows. The rows of a
window are mixed in short runs: rows were mixed over their whole shard when they were written, so
that neighbours have nothing in common but their shard. Batches are cut from the stream of windows,
across windows and epochs. While one window is handed out, the next is decoded by threads into the
memory of the one before.

Several processes share an epoch by *lanes*. The chunks in shuffled order are one long row of rows;
each lane owns an equal share of it, cut into windows at the same places in every lane, so that all
lanes are always equally far, and its own rows of every batch, whoever reads it.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import chain, count, islice, pairwise
from math import gcd
from os import cpu_count
from typing import NamedTuple
from weakref import finalize

import numpy as np
from jaxtyping import Int64, Shaped

from actstore.chunks import ChunkStore
from actstore.errors import StoreError
from actstore.layout import Layout, chunk_order, window_permutation
from actstore.manifest import ROW_ARRAYS


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


LOOK_AHEAD = 16  # chunks asked of the disk before they are read

Rows = Shaped[np.ndarray, "n *width"]
"""Of a site, or of one of ROW_ARRAYS: one value a row."""


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

    def __init__(self, batches: "Batches") -> None:
        self._store, self._run = batches.store, batches.run
        self._sites, self._metadata = batches.sites, batches.metadata
        n_rows = max(stop - start for start, stop in pairwise(batches.epochs.cuts))
        n_lanes = batches.lanes // batches.world_size
        self._memory = [[batches.empty(n_rows) for _ in range(n_lanes)] for _ in range(2)]
        self._threads = batches.threads or min(8, max(1, (cpu_count() or 1) - 1))
        self._pool = ThreadPoolExecutor(self._threads, "actstore-decode")
        # If a stream is left open, while there is still an interpreter to stop threads with.
        self._end = finalize(self, self._pool.shutdown, wait=True, cancel_futures=True)
        self._stopped = False

    def __enter__(self) -> "Windows":
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped = True
        self._end()

    def of(self, plans: Iterable[Sequence[LaneWindow]]) -> Iterator[list[Window]]:
        """Each planned window, by lane; valid until the next is asked for."""
        pending: deque[Callable[[], list[Window]]] = deque()
        for i, (plan, after) in enumerate(pairwise(chain(plans, [()]))):
            pending.append(self._start(plan, after, self._memory[i % 2]))
            if len(pending) == 2:
                yield pending.popleft()()
        for wait in pending:
            yield wait()

    def _start(
        self,
        plan: Sequence[LaneWindow],
        after: Sequence[LaneWindow],
        memory: Sequence[Mapping[str, Rows]],
    ) -> Callable[[], list[Window]]:
        """Have a window filled; what is returned waits for it."""
        rows = [
            {name: values[: lane.n_rows] for name, values in here.items()}
            for lane, here in zip(plan, memory, strict=True)
        ]
        pieces = [
            (piece, {name: values[piece.start : piece.stop] for name, values in here.items()})
            for lane, here in zip(plan, rows, strict=True)
            for piece in lane.pieces
        ]
        wanted = _chunks(self._sites, [piece for piece, _ in pieces])
        wanted += _chunks(
            self._sites, [piece for lane in after for piece in lane.pieces], LOOK_AHEAD
        )
        work: list[Callable[[], None]] = [
            partial(self._store.read_chunk_into, site, piece.chunk, here[site], skip=piece.skip)
            for piece, here in pieces
            for site in self._sites
        ]
        work += self._values(pieces)
        turn = count()  # taking a number is atomic: whoever is free takes the next piece
        orders = [self._pool.submit(lane.order, self._run) for lane in plan]
        jobs = [self._pool.submit(self._fill, work, wanted, turn) for _ in range(self._threads)]

        def wait() -> list[Window]:
            self._fill(work, wanted, turn)  # who waits helps
            for job in jobs:
                job.result()
            return [
                Window(rows=here, runs=order.result(), run=self._run)
                for here, order in zip(rows, orders, strict=True)
            ]

        return wait

    def _values(
        self, pieces: Sequence[tuple[Piece, Mapping[str, np.ndarray]]]
    ) -> list[Callable[[], None]]:
        """Read the metadata: a shard of it is one chunk, decoded once a window."""
        layout = self._store.layout
        parts: dict[tuple[str, int], list[tuple[int, Rows]]] = defaultdict(list)
        for piece, here in pieces if self._metadata else ():
            shard, inner = layout.locate(piece.chunk)
            for name in self._metadata:
                parts[name, shard].append((inner * layout.chunk_rows + piece.skip, here[name]))

        def read(name: str, shard: int) -> None:
            values = self._store.shard(name, shard)
            for start, out in parts[name, shard]:
                out[:] = values[start : start + len(out)]

        return [partial(read, *key) for key in parts]

    def _fill(
        self,
        work: Sequence[Callable[[], None]],
        wanted: Sequence[tuple[str, int]],
        turn: Iterator[int],
    ) -> None:
        for i in turn:
            if i >= len(work) or self._stopped:
                return
            if i + LOOK_AHEAD < len(wanted):
                self._store.want_chunk(*wanted[i + LOOK_AHEAD])
            work[i]()


def _chunks(
    sites: Sequence[str], pieces: Sequence[Piece], n: int | None = None
) -> list[tuple[str, int]]:
    """The first `n` chunks, or all, in the order in which they are read."""
    return list(islice(((site, piece.chunk) for piece in pieces for site in sites), n))


def _first_rows(
    plans: Iterable[tuple[LaneWindow, ...]], n_rows: int
) -> Iterator[tuple[LaneWindow, ...]]:
    """As many windows as have the first so many rows of each lane."""
    for plan in plans:
        if n_rows <= 0:
            return
        yield plan
        n_rows -= plan[0].n_rows


MAX_WINDOW_BYTES = 2**30
RUN_BYTES = 2**13
MAX_RUN = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """A stream of batches, the same for every number of threads and processes.

    Every row comes once an epoch, at the same place in every site. The order depends on the store's
    layout, on `seed`, `window_rows` and `lanes`, and on nothing else.
    """

    store: ChunkStore
    sites: tuple[str, ...]
    batch_size: int
    """Rows of a batch, over all processes."""
    seed: int
    window_rows: int = 2**18
    """Rows that are mixed at a time, over all lanes; two windows are held. At most 1 GiB a site."""
    threads: int | None = None
    """That decode; None means one less than there are cores, from 1 to 8."""
    lanes: int = 1
    """Equal shares of an epoch: a divisor of `batch_size` and of the rows there are."""
    rank: int = 0
    """Which process this is; the batch is its ranks' batches, one after another."""
    world_size: int = 1
    """How many processes share the batches: a divisor of `lanes`."""
    metadata: tuple[str, ...] = ()
    """What to deliver beside the sites: `token_id`, `position`, ...; the order stays as it is."""

    def __post_init__(self) -> None:
        for site in self.sites:
            self.store.width(site)
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise StoreError(f"batches need sites, each once, got {self.sites}")
        if sorted(self.metadata) != sorted(set(self.metadata) & set(ROW_ARRAYS)):
            raise StoreError(f"metadata is {', '.join(ROW_ARRAYS)}, each once, got {self.metadata}")
        for name in ("batch_size", "window_rows", "lanes", "world_size", "threads"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise StoreError(f"{name} must be positive, got {value}")
        if self.seed < 0:
            raise StoreError(f"seed must not be negative, got {self.seed}")
        common = gcd(self.batch_size, self.store.n_rows)
        if common % self.lanes:
            raise StoreError(
                f"{self.lanes} lanes cannot share {self.store.n_rows} rows in batches of "
                f"{self.batch_size} equally: choose lanes that divide {common}"
            )
        if self.lanes % self.world_size or not 0 <= self.rank < self.world_size:
            raise StoreError(
                f"{self.lanes} lanes cannot be shared by rank {self.rank} of {self.world_size} "
                "processes: choose a world_size that divides lanes, and ranks from 0"
            )

    @property
    def run(self) -> int:
        """Rows that stay together in every window: some KiB of them."""
        wanted = min(MAX_RUN, max(1, RUN_BYTES // self._widest_row))
        return 1 << (wanted.bit_length() - 1)

    @property
    def epochs(self) -> Epochs:
        """Which rows come when."""
        spec = self.store.spec
        rows = min(self.window_rows, MAX_WINDOW_BYTES // self._widest_row)
        return Epochs(
            layout=self.store.layout,
            seed=self.seed,
            n_lanes=self.lanes,
            window_chunks=max(1, rows // (self.lanes * spec.chunk_rows)),
        )

    def start_at(self, step: int, n: int | None = None) -> Generator[dict[str, Rows]]:
        """The stream from batch `step` on, by site, and what was asked for beside the sites.

        Windows before it are skipped, not read. The stream ends after `n` batches, beyond which
        nothing is read; without, it has no end.

        Batches are the caller's to keep: of `batch_size / world_size` rows. Closing the generator
        stops its threads.

        Raises:
            StoreError: While iterating, if bytes of the store were altered.
        """
        if step < 0:
            raise StoreError(f"step must not be negative, got {step}")
        epochs, lane_batch = self.epochs, self.batch_size // self.lanes
        epoch, skip = divmod(step * lane_batch, epochs.lane_rows)
        mine = self.lanes // self.world_size
        lanes = range(mine * self.rank, mine * (self.rank + 1))
        plans = chain.from_iterable(epochs.windows(e, lanes) for e in count(epoch))
        plan = next(plans)
        while skip >= plan[0].n_rows:
            skip -= plan[0].n_rows
            plan = next(plans)
        wanted = chain([plan], plans)
        if n is not None:
            wanted = _first_rows(wanted, skip + n * lane_batch)
        with Windows(self) as windows:
            yield from islice(self._cut(windows.of(wanted), skip), n)

    def _cut(self, windows: Iterator[list[Window]], skip: int) -> Iterator[dict[str, Rows]]:
        """Batches of the rows that follow the first `skip` of each lane."""
        lane_batch, n_rows = self.batch_size // self.lanes, self.batch_size // self.world_size
        batch, filled = self.empty(n_rows), 0
        for parts in windows:
            start, skip = skip, 0
            while start < parts[0].n_rows:
                n = min(lane_batch - filled, parts[0].n_rows - start)
                for lane, part in enumerate(parts):
                    begin = lane * lane_batch + filled
                    for name, out in batch.items():
                        part.take(name, start, out[begin : begin + n])
                start += n
                filled += n
                if filled == lane_batch:
                    yield batch
                    batch, filled = self.empty(n_rows), 0

    def empty(self, n_rows: int) -> dict[str, Rows]:
        """Memory for so many rows, by site, and for what was asked for beside the sites."""
        storage = self.store.spec.storage
        rows = {site: np.empty((n_rows, self.store.width(site)), storage) for site in self.sites}
        return rows | {name: np.empty(n_rows, ROW_ARRAYS[name]) for name in self.metadata}

    @property
    def _widest_row(self) -> int:
        """Bytes of a row of the store's widest site: the order is the same for every choice."""
        return max(map(self.store.width, self.store.sites)) * self.store.spec.storage.itemsize
