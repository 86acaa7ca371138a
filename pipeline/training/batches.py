"""Batches of a store as float32 tensors, one ahead where that pays; and for a DataLoader."""

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int32, Shaped, UInt16
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.errors import ConfigError

Rows = (
    UInt16[np.ndarray, "*rows"]
    | Float16[np.ndarray, "*rows"]
    | Float32[np.ndarray, "*rows"]
    | Int32[np.ndarray, "*rows"]
)
Arrays = Mapping[str, np.ndarray]


def as_tensor(rows: Rows) -> Tensor:
    """The same memory as a tensor; uint16 are the bits of bfloat16."""
    if rows.dtype == np.uint16:
        return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(rows)


def device_batches(
    batches: Generator[Arrays, None, None], *, device: torch.device
) -> Generator[dict[str, Tensor], None, None]:
    """Each batch as tensors of its own on `device`: sites as float32, metadata as it is.

    On CUDA the next batch crosses, in its narrow dtype and through pinned memory, while the caller
    computes on this one. Elsewhere there is nothing to overlap: a batch is converted when it is
    asked for. Closing this generator closes `batches`.
    """
    with closing(batches):
        if device.type == "cuda":
            yield from _overlapped(batches, device=device)
        else:
            for batch in batches:
                yield {site: _converted(rows, device=device) for site, rows in batch.items()}


def _converted(rows: Rows, *, device: torch.device) -> Shaped[Tensor, "*rows"]:
    # Always a copy: the reader may reuse its buffer, and torch's own memory is aligned, without
    # which a matrix product need not give the same bits twice.
    tensor = as_tensor(rows)
    dtype = torch.float32 if tensor.is_floating_point() else tensor.dtype
    return tensor.to(dtype, copy=True).to(device)


def _overlapped(
    batches: Generator[Arrays, None, None], *, device: torch.device
) -> Generator[dict[str, Tensor], None, None]:
    side = torch.cuda.Stream(device)

    def send(batch: Arrays) -> dict[str, Tensor]:
        with torch.cuda.stream(side):
            return {
                site: as_tensor(rows).pin_memory().to(device, non_blocking=True)
                for site, rows in batch.items()
            }

    def receive(sent: dict[str, Tensor]) -> dict[str, Tensor]:
        here = torch.cuda.current_stream(device)
        here.wait_stream(side)
        for rows in sent.values():
            rows.record_stream(here)
        return {
            name: rows.float() if rows.is_floating_point() else rows for name, rows in sent.items()
        }

    ahead: dict[str, Tensor] | None = None
    for batch in batches:
        now = receive(ahead) if ahead is not None else None
        ahead = send(batch)
        if now is not None:
            yield now
    if ahead is not None:
        yield receive(ahead)


@dataclass(frozen=True, kw_only=True, eq=False)
class StoreBatches(IterableDataset[dict[str, Tensor]]):
    """The stream of `actstore.batches.Batches`, batch for batch, as float32 tensors by site.

        dataset = StoreBatches(store=path, sites=("mlp_out.1",), batch_size=4096, seed=0)
        for step, batch in enumerate(DataLoader(dataset, batch_size=None)):
            loss = my_loss(batch["mlp_out.1"])
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
