"""The baseline of the training benchmarks: the least that trains an SAE, autograd and fused Adam.

No norm constraint, clipping, dead counts, schedule or log: what a step costs at the least when the
gradient is left to torch. One function for relu (squared error and L1), one for topk.
"""

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

LR = 1e-4
Params = tuple[Tensor, Tensor, Tensor, Tensor]
"""W_enc [d, F], b_enc [F], W_dec [F, d], b_dec [d]."""


Batch = TypeVar("Batch")


def ticks(batches: Iterable[Batch], times: list[float]) -> Iterator[Batch]:
    """The batches; between two of the times lies a step."""
    for batch in batches:
        times.append(time.perf_counter())
        yield batch
    times.append(time.perf_counter())


def step_seconds(
    loop: Callable[[Iterator[Batch]], object], batches: Iterable[Batch], *, warm: int
) -> float:
    """Median seconds of a step, those to warm up left out."""
    times: list[float] = []
    loop(ticks(batches, times))
    return statistics.median([b - a for a, b in pairwise(times)][warm:])


def start(d_in: int, d_sae: int) -> Params:
    """Random unit rows, the encoder their transpose, biases zero."""
    W_dec = torch.randn(d_sae, d_in, generator=torch.Generator().manual_seed(0))
    W_dec = torch.nn.functional.normalize(W_dec, dim=1)
    params = (W_dec.T.contiguous(), torch.zeros(d_sae), W_dec, torch.zeros(d_in))
    for param in params:
        param.requires_grad_()
    return params


def loop(batches: Iterable[Tensor], params: Params, loss: Callable[..., Tensor]) -> Params:
    optimizer = torch.optim.Adam(params, lr=LR, fused=True)
    for x in batches:
        optimizer.zero_grad(set_to_none=True)
        loss(x, *params).backward()
        optimizer.step()
    return params


def minimal_relu(batches: Iterable[Tensor], d_in: int, d_sae: int, *, l1: float) -> Params:
    """`mean ||x - x_hat||^2 + l1 mean ||z||_1`, until the batches end."""

    def loss(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        z = torch.relu((x - b_dec) @ W_enc + b_enc)
        error = z @ W_dec + b_dec - x
        return error.square().sum(1).mean() + l1 * z.sum(1).mean()

    return loop(batches, start(d_in, d_sae), loss)


def minimal_topk(batches: Iterable[Tensor], d_in: int, d_sae: int, *, k: int) -> Params:
    """`mean ||x - x_hat||^2` of the `k` largest latents of each row, until the batches end."""

    def loss(x: Tensor, W_enc: Tensor, b_enc: Tensor, W_dec: Tensor, b_dec: Tensor) -> Tensor:
        pre = torch.relu((x - b_dec) @ W_enc + b_enc)
        values, places = pre.topk(k, dim=1, sorted=False)
        z = torch.zeros_like(pre).scatter_(1, places, values)
        return (z @ W_dec + b_dec - x).square().sum(1).mean()

    return loop(batches, start(d_in, d_sae), loss)
