"""Sums of products of latents over rows, in float64, by whichever way is faster."""

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from pipeline.sae.select import Picked, above

PAIR_COST = 1000
"""Times that a pair of active latents takes as long as a multiplication of a dense product.

Measured on one core: 45 to 57 ns a pair, 0.044 to 0.06 ns a multiplication, for 640 to 16,384
latents. More cores make dense products alone faster, but where few latents are active that does
not matter: with 50 active of 16,384, pairs are faster by a hundred.
"""
STRIPE = 2**24
"""Values of the result of a dense product in memory at a time."""
PAIRS = 2**20
"""Pairs in memory at a time, about."""


def add_latents(
    total: Float64[Tensor, "n_in n_out"],
    z1: Float32[Tensor, "rows n_in"],
    z2: Float32[Tensor, "rows n_out"],
) -> None:
    """Add `z1.T @ z2` of latents, none below zero, to a total.

    On a CPU, where few are active, only pairs that are active in the same row are multiplied, in
    float64. Else the product of these rows is in float32: its sums have no terms of opposite sign,
    so that its error is about that of float32, 1e-7 of each sum, and sums of products are float64.
    """
    if total.device.type == "cpu":
        first, second = above(z1[None], 0.0), above(z2[None], 0.0)
        n_pairs = int((first.crow.diff().long() * second.crow.diff()).sum())
        if n_pairs * PAIR_COST < len(z1) * total.numel():
            _add_pairs(total, first, first.values(z1[None]), second, second.values(z2[None]))
            return
    add_dense(total, z1, z2)


def add_dense(
    total: Float64[Tensor, "n_1 n_2"],
    a: Float[Tensor, "rows n_1"],
    b: Float[Tensor, "rows n_2"],
) -> None:
    """Add `a.T @ b`, computed in their dtype, to a total, so many of its rows at a time."""
    step = max(1, STRIPE // total.shape[1])
    for start in range(0, len(total), step):
        stripe = slice(start, start + step)
        total[stripe] += a[:, stripe].T @ b


def _add_pairs(
    total: Float64[Tensor, "n_in n_out"],
    first: Picked,
    values1: Float32[Tensor, " n1"],
    second: Picked,
    values2: Float32[Tensor, " n2"],
) -> None:
    """Latent after latent of the first, so that what is added to stays in the cache.

    The pairs of an active latent of a row are with those of the second that are active in it, which
    lie one after another: pair `j` of all is with `j + shift` of them.
    """
    transposed = first.transposed
    latent, value = (of.index_select(0, transposed.order) for of in (first.col, values1.double()))
    n_pairs = second.crow.diff().long().index_select(0, transposed.row)
    begin = second.crow[:-1].index_select(0, transposed.row)
    step = max(1, PAIRS * len(latent) // max(1, int(n_pairs.sum())))
    for start in range(0, len(latent), step):
        part = slice(start, start + step)
        counts = n_pairs[part]
        n = int(counts.sum())
        shift = begin[part] - (counts.cumsum(0) - counts)
        own = torch.arange(len(counts)).repeat_interleave(counts, output_size=n)
        other = torch.arange(n) + shift.index_select(0, own)
        at = latent[part].long() * total.shape[1]
        total.view(-1).index_add_(
            0,
            at.index_select(0, own) + second.col.index_select(0, other),
            value[part].index_select(0, own) * values2.index_select(0, other),
        )
