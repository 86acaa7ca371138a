"""Where `b_dec` starts: in the middle of the rows, so that the latents need not learn the offset.

The mean is the middle for the squared loss; the geometric median hardly moves for a few rows that
lie far out (Bricken et al. 2023, "Towards Monosemanticity").
"""

from typing import assert_never

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from pipeline.train_config import BDecStart
from pipeline.training.feed import Feed, Feeder

START_ROWS = 2**14
"""Of the sample, where one is needed: its middle is off by less than a hundredth of a deviation."""
BLOCK_ROWS = 2**10
MAX_ITERATIONS = 500
TOLERANCE = 1e-9
"""Largest step, against the mean distance, that counts as none."""


def b_dec_start(feeder: Feeder, feed: Feed, start: BDecStart) -> Float64[Tensor, " d"]:
    """Where `b_dec` of a member starts, in the unit of the rows it is fed; on the CPU.

    The mean is that of all rows of the store if none is excluded, else that of a seeded sample.

    Raises:
        StoreError: bytes of the store were altered.
    """
    match start:
        case "zero":
            return torch.zeros(feeder.store.width(feed.site), dtype=torch.float64)
        case "mean" if not feed.excludes:
            return torch.from_numpy(feeder.store.mean(feed.site)) / feeder.scale(feed)
        case "mean":
            return feeder.sample(feed, n_rows=START_ROWS).mean(0, dtype=torch.float64).cpu()
        case "median":
            return geometric_median(feeder.sample(feed, n_rows=START_ROWS).cpu())
        case _:
            assert_never(start)


def geometric_median(x: Float[Tensor, "n d"]) -> Float64[Tensor, " d"]:
    """The point with the smallest sum of distances to the rows, at least one.

    Weiszfeld's iteration (1937), from the mean, with the step of Vardi and Zhang (PNAS 2000) that
    is right where the point falls on rows.
    """
    y = x.mean(0, dtype=torch.float64)
    for _ in range(MAX_ITERATIONS):
        pull, weight = torch.zeros_like(y), y.new_zeros(())
        total, on_rows = 0.0, 0
        for block in x.split(BLOCK_ROWS):
            away = block.double() - y
            distance = torch.linalg.vector_norm(away, dim=-1)
            inverse = torch.where(distance > 0, 1 / distance, 0.0)
            pull += inverse @ away
            weight += inverse.sum()
            total += float(distance.sum())
            on_rows += int((distance == 0).sum())
        strength = float(torch.linalg.vector_norm(pull))
        if strength <= on_rows:  # the rows here outweigh all others; true too where all are equal
            return y
        step = pull / weight * (1 - on_rows / strength)
        y = y + step
        if float(torch.linalg.vector_norm(step)) <= TOLERANCE * total / len(x):
            return y
    return y
