"""Batches of the store as float32 tensors on the device, one ahead where that pays."""

from collections.abc import Generator, Mapping
from contextlib import closing

import numpy as np
import torch
from jaxtyping import Float16, Float32, Int32, Shaped, UInt16
from torch import Tensor

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
