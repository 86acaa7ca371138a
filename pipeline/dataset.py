"""A store's batches for loops that are written around torch's DataLoader."""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.errors import ConfigError
from pipeline.stream import device_batches


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreBatches(IterableDataset[dict[str, Tensor]]):
    """The stream of `actstore.batches.Batches`, batch for batch, as float32 tensors by site.

        dataset = StoreBatches(store=path, sites=("mlp_out.1",), batch_size=4096, seed=0)
        for step, batch in enumerate(DataLoader(dataset, batch_size=None)):
            loss = coder(batch["mlp_out.1"])
        # To go on later, at the same batch: StoreBatches(..., start=step + 1).

    Batches are made here, by threads, so the DataLoader is told `batch_size=None`; `num_workers=1`
    moves the work into a process of its own. Every iteration begins at `start` again.
    """

    store: Path
    """Opened by the process that iterates: a dataset can be sent to a worker."""
    sites: tuple[str, ...]
    batch_size: int
    """Rows; of all ranks together."""
    seed: int
    window_rows: int = Batches.window_rows
    threads: int | None = None
    start: int = 0
    """Batches that were drawn before."""
    n_batches: int | None = None
    """None means without end."""
    lanes: int = Batches.lanes
    rank: int = Batches.rank
    world_size: int = Batches.world_size

    def __post_init__(self) -> None:
        if self.n_batches is not None and self.n_batches < 0:
            raise ConfigError(f"n_batches must not be negative, got {self.n_batches}")

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        """The batches from `start` on; closing the iterator stops its threads.

        Raises:
            ConfigError: more than one worker iterates: each would decode the whole store.
            StoreError: the store cannot be opened, or its bytes were altered.
        """
        worker = get_worker_info()
        if worker is not None and worker.num_workers > 1:
            raise ConfigError(
                f"{worker.num_workers} workers would each decode all of {self.store}: "
                "use num_workers=1, and raise `threads` of StoreBatches instead"
            )
        with closing(device_batches(self._opened(), device=torch.device("cpu"))) as tensors:
            yield from islice(tensors, self.n_batches)

    def _opened(self) -> Generator[dict[str, np.ndarray]]:
        batches = Batches(
            store=ActStore.open(self.store),
            sites=self.sites,
            batch_size=self.batch_size,
            seed=self.seed,
            window_rows=self.window_rows,
            threads=self.threads,
            lanes=self.lanes,
            rank=self.rank,
            world_size=self.world_size,
        )
        return batches.start_at(self.start)
