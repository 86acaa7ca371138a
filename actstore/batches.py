"""Shuffled batches whose whole state is one integer.

An epoch reads the chunks of a store in random order and cuts that order into windows. The rows of a
window are mixed in short runs: rows were mixed over their whole shard when they were written, so
that neighbours have nothing in common but their shard. Batches are cut from the stream of windows,
across windows and epochs. While one window is handed out, the next is decoded by threads into the
memory of the one before.

Several processes share an epoch by *lanes*: each lane has its own share of the chunks, its own
windows and its own rows of every batch, whoever reads it.
"""

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import chain, count, pairwise
from math import gcd
from os import cpu_count

from actstore.epochs import Epochs
from actstore.errors import StoreError
from actstore.manifest import ROW_ARRAYS
from actstore.reader import ActStore
from actstore.windows import Rows, Window, Windows, empty_rows

MAX_WINDOW_BYTES = 2**30
RUN_BYTES = 2**13
MAX_RUN = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """An endless stream of batches, the same for every number of threads and processes.

    Every row comes once an epoch, at the same place in every site. The order depends on the store's
    layout, on `seed`, `window_rows` and `lanes`, and on nothing else.
    """

    store: ActStore
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
        if not set(self.metadata) <= set(ROW_ARRAYS) or len(set(self.metadata)) < len(
            self.metadata
        ):
            raise StoreError(f"metadata is {', '.join(ROW_ARRAYS)}, each once, got {self.metadata}")
        for name in ("batch_size", "window_rows", "lanes", "world_size"):
            if getattr(self, name) <= 0:
                raise StoreError(f"{name} must be positive, got {getattr(self, name)}")
        if self.seed < 0:
            raise StoreError(f"seed must not be negative, got {self.seed}")
        if self.threads is not None and self.threads <= 0:
            raise StoreError(f"threads must be positive, got {self.threads}")
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
        row_bytes = self._widest_row
        wanted = min(MAX_RUN, max(1, RUN_BYTES // row_bytes))
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

    def start_at(self, step: int) -> Generator[dict[str, Rows]]:
        """The stream from batch `step` on, by site, and what was asked for beside the sites.

        Windows before it are skipped, not read.

        Batches are the caller's to keep: of `batch_size / world_size` rows. Closing the generator
        stops its threads.

        Raises:
            StoreError: While iterating, if bytes of the store were altered.
        """
        if step < 0:
            raise StoreError(f"step must not be negative, got {step}")
        epochs = self.epochs
        epoch, skip = divmod(step * (self.batch_size // self.lanes), epochs.lane_rows)
        mine = self.lanes // self.world_size
        lanes = range(mine * self.rank, mine * (self.rank + 1))
        plans = chain.from_iterable(epochs.windows(e, lanes) for e in count(epoch))
        plan = next(plans)
        while skip >= plan[0].n_rows:
            skip -= plan[0].n_rows
            plan = next(plans)
        with self._windows(epochs, mine) as windows:
            yield from self._cut(windows.of(chain([plan], plans)), skip)

    def _windows(self, epochs: Epochs, n_lanes: int) -> Windows:
        cuts = epochs.cuts
        return Windows(
            self.store,
            self.sites,
            metadata=self.metadata,
            n_lanes=n_lanes,
            n_rows=max(b - a for a, b in pairwise(cuts)),
            run=self.run,
            threads=self.threads or min(8, max(1, (cpu_count() or 1) - 1)),
        )

    def _cut(self, windows: Iterator[list[Window]], skip: int) -> Iterator[dict[str, Rows]]:
        """Batches of the rows that follow the first `skip` of each lane."""
        lane_batch = self.batch_size // self.lanes
        batch, filled = self._empty(), 0
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
                    batch, filled = self._empty(), 0

    def _empty(self) -> dict[str, Rows]:
        n_rows = self.batch_size // self.world_size
        names = (*self.sites, *self.metadata)
        return {name: empty_rows(self.store, name, n_rows) for name in names}

    @property
    def _widest_row(self) -> int:
        """Bytes of a row of the store's widest site: the order is the same for every choice."""
        return max(map(self.store.width, self.store.sites)) * self.store.spec.storage.itemsize
