"""Shuffled batches whose whole state is one integer.

An epoch reads the chunks of a store in random order and cuts that order into windows. The rows of a
window are mixed; batches are cut from the stream of windows, across windows and epochs. While one
window is handed out, the next is decoded by threads into the memory of the one before.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, pairwise
from os import cpu_count

import numpy as np
from jaxtyping import Shaped

from actstore.errors import StoreError
from actstore.order import chunk_order
from actstore.reader import ActStore
from actstore.windows import Plan, Window, Windows

MAX_WINDOW_BYTES = 2**30


@dataclass(frozen=True, kw_only=True, eq=False)
class Batches:
    """An endless stream of batches, the same for every number of threads.

    Every row comes once an epoch, at the same place in every site. The order depends on the store's
    layout, on `seed` and on `window_rows`, and on nothing else.
    """

    store: ActStore
    sites: tuple[str, ...]
    batch_size: int
    seed: int
    window_rows: int = 2**18
    """Rows that are mixed at a time, of which two windows are held; capped at 1 GiB a window."""
    threads: int | None = None
    """That decode; None means one less than there are cores, from 1 to 8."""

    def __post_init__(self) -> None:
        for site in self.sites:
            self.store.width(site)
        if not self.sites or len(set(self.sites)) < len(self.sites):
            raise StoreError(f"batches need sites, each once, got {self.sites}")
        for name in ("batch_size", "window_rows"):
            if getattr(self, name) <= 0:
                raise StoreError(f"{name} must be positive, got {getattr(self, name)}")
        if self.seed < 0:
            raise StoreError(f"seed must not be negative, got {self.seed}")
        if self.threads is not None and self.threads <= 0:
            raise StoreError(f"threads must be positive, got {self.threads}")

    @property
    def window_chunks(self) -> int:
        """Chunks of a window, at most; at least one."""
        spec = self.store.spec
        row_bytes = sum(map(self.store.width, self.sites)) * spec.storage.itemsize
        rows = min(self.window_rows, MAX_WINDOW_BYTES // row_bytes)
        return max(1, rows // spec.chunk_rows)

    def epoch(self, epoch: int) -> list[Plan]:
        """The windows of an epoch, of nearly equal size."""
        layout = self.store.layout
        order = chunk_order(layout.n_chunks, seed=self.seed, epoch=epoch).tolist()
        n_windows = -(-len(order) // self.window_chunks)
        cuts = [len(order) * i // n_windows for i in range(n_windows + 1)]
        return [
            Plan(
                chunks=order[start:stop],
                n_rows=sum(map(layout.rows_of_chunk, order[start:stop])),
                seed=self.seed,
                epoch=epoch,
                window=i,
            )
            for i, (start, stop) in enumerate(pairwise(cuts))
        ]

    def start_at(self, step: int) -> Iterator[dict[str, Shaped[np.ndarray, "batch width"]]]:
        """The stream from batch `step` on, by site; windows before it are skipped, not read.

        Batches are the caller's to keep. Closing the iterator stops its threads.

        Raises:
            StoreError: While iterating, if bytes of the store were altered.
        """
        if step < 0:
            raise StoreError(f"step must not be negative, got {step}")
        epoch, skip = divmod(step * self.batch_size, self.store.n_rows)
        plans = self._plans(epoch)
        plan = next(plans)
        while skip >= plan.n_rows:
            skip -= plan.n_rows
            plan = next(plans)
        threads = self.threads or min(8, max(1, (cpu_count() or 1) - 1))
        n_rows = min(self.store.n_rows, self.window_chunks * self.store.spec.chunk_rows)
        with Windows(self.store, self.sites, n_rows=n_rows, threads=threads) as windows:
            yield from self._cut(windows.of(chain([plan], plans)), skip)

    def _plans(self, epoch: int) -> Iterator[Plan]:
        return chain.from_iterable(map(self.epoch, count(epoch)))

    def _cut(
        self, windows: Iterator[Window], skip: int
    ) -> Iterator[dict[str, Shaped[np.ndarray, "batch width"]]]:
        """Batches of the rows that follow the first `skip`."""
        batch, filled = self._empty(), 0
        for window in windows:
            order = window.order[skip:]
            skip = 0
            while len(order):
                here, order = np.split(order, [self.batch_size - filled])
                for site, rows in window.rows.items():
                    out = batch[site][filled : filled + len(here)]
                    np.take(rows, here, axis=0, out=out, mode="clip")
                filled += len(here)
                if filled == self.batch_size:
                    yield batch
                    batch, filled = self._empty(), 0

    def _empty(self) -> dict[str, Shaped[np.ndarray, "batch width"]]:
        return {
            site: np.empty((self.batch_size, self.store.width(site)), self.store.spec.storage)
            for site in self.sites
        }
