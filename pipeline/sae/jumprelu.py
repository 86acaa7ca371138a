"""JumpReLU (Rajamanoharan et al. 2024, arXiv 2407.14435) towards a number of active latents.

    z = pre where pre > theta, else 0          theta = exp(log_threshold)
    L = mean ||x - x_hat||^2 + coefficient L0

Thresholds start low, and where an L0 is asked for the coefficient rises until it is there: latents
that are active on most rows learn, those that start behind a high threshold do not. A price that
follows L0 slowly is better than a loss of its distance from the aim (their appendix), whose price
changes its sign from batch to batch.

A threshold moves no output but by a jump. Its gradient is therefore estimated (their eq. 11 and
12) from the latents within half a bandwidth `e` of it, with `K = 1` there and 0 elsewhere:

    dz/dtheta  = -theta / e K((pre - theta) / e)        dL0/dtheta = -1 / e K((pre - theta) / e)
"""

from collections.abc import Iterable
from dataclasses import replace
from math import log
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.config.architectures import JumpReluConfig
from pipeline.sae.active_pairs import Latents
from pipeline.sae.architecture import (
    Activation,
    Architecture,
    Params,
    Parts,
    Problem,
    aux_of,
    reconstruct,
    require_l0,
)
from pipeline.sae.select import Picked, above


@final
class Threshold(Activation):
    """`pre` where it is above a threshold, else zero.

    One threshold for all latents stands for the batch that BatchTopK and Matryoshka were trained
    with; JumpReLU has one each.
    """

    def __init__(self, threshold: Float[Tensor, "*d_sae"]) -> None:
        super().__init__()
        self.threshold = nn.Parameter(threshold)

    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of these pre-activations."""
        return pre.relu() * (pre > self.threshold)

    @classmethod
    def fitted(cls, blocks: Iterable[Float[Tensor, "_ d_sae"]], *, l0: float) -> float:
        """One for all latents of these pre-activations; see `fit`."""
        one = cls(torch.zeros(()))
        one.fit(blocks, l0=l0)
        return float(one.threshold)

    @torch.no_grad()
    def fit(self, blocks: Iterable[Float[Tensor, "_ d_sae"]], *, l0: float) -> None:
        """Scale by one factor so that of these pre-activations `l0` a row pass, on average.

        Where fewer are above zero, all of those pass. The factor is found to 2^-11 of itself in a
        histogram, whose bins are floats that share their leading bits.
        """
        unit = self.threshold.detach().clone()
        unit[unit <= 0] = 1.0
        counts = torch.zeros(2**31 >> FINE, dtype=torch.int64, device=unit.device)
        n_rows = 0
        for pre in blocks:
            ratio = pre.float() / unit
            above = ratio[ratio > 0]  # nor what is not a number, or zero with a sign
            counts += torch.bincount(above.view(torch.int32) >> FINE, minlength=len(counts))
            n_rows += len(pre)
        at_least = counts.flip(0).cumsum(0).flip(0)
        enough = (at_least >= l0 * max(1, n_rows)).nonzero()[-1:, 0]
        factor = (enough << FINE).int().view(torch.float32).sum()  # of one, or of none: 0
        self.threshold.copy_(unit * factor.to(unit))


def fit_threshold(
    activation: Activation, blocks: Iterable[Float[Tensor, "_ d_sae"]], *, l0: float
) -> None:
    """The same for an activation that has a threshold."""
    assert isinstance(activation, Threshold)
    activation.fit(blocks, l0=l0)


FINE = 12
"""Trailing bits of a float32 that do not tell bins apart: 11 bits of its mantissa do."""


FIRST_THRESHOLD = 0.1
"""In root mean squares of x."""
FIRST_PRICE = 1e-3
"""Of an active latent, where it is adjusted, in mean squared norms of a row."""


@final
class JumpReluArchitecture(Architecture):
    """`jumprelu`; thresholds and bandwidth are in units of `rms`."""

    trained = ("E", "b_enc", "W_dec", "b_dec", "log_threshold")

    def __init__(self, config: JumpReluConfig, *, d_in: int, d_sae: int, rms: float) -> None:
        require_l0(config, d_in=d_in, d_sae=d_sae)
        self.fitted_l0 = config.l0
        self.aux = aux_of(config)
        self.d_sae = d_sae
        self.bandwidth = config.bandwidth * rms
        first = FIRST_THRESHOLD if config.threshold is None else config.threshold
        self.threshold = first * rms
        self._rms = rms
        price = FIRST_PRICE if config.coefficient is None else config.coefficient
        self.coefficient = price * rms * rms * d_in
        self.starts = {"b_enc": 0.0, "log_threshold": log(self.threshold)}

    def activation(self) -> Threshold:
        """A threshold each."""
        return Threshold(torch.full((self.d_sae,), self.threshold))

    def fit(
        self,
        activation: Activation,
        b_enc: Float[Tensor, " d_sae"],
        blocks: Iterable[Float[Tensor, "_ d_sae"]],
        *,
        l0: float,
    ) -> None:
        """Scale all thresholds by one factor."""
        fit_threshold(activation, blocks, l0=l0)

    def revive(
        self, params: Params, dead: Bool[Tensor, "M F"], *, step: Float[Tensor, "M F"]
    ) -> None:
        """Lower their thresholds to where those start, then raise their biases.

        A bias raised against a high threshold makes a latent large at once, where it is active. A
        threshold that went on falling would take as long to rise again, its latent active on every
        row meanwhile, and the price of all others with it.
        """
        at, start = params["log_threshold"], log(self.threshold)
        push, high = dead.to(step) * step, at > start
        at.copy_(torch.where(high & dead, (at - push / self._rms).clamp_min(start), at))
        params["b_enc"].add_(push.masked_fill_(high, 0.0))

    def pick(self, pre: Float[Tensor, "M B F"], params: Params) -> Picked:
        """The active ones, and those a little below their threshold."""
        return above(pre, params["log_threshold"].exp() - self.bandwidth / 2)

    def learn(self, latents: Latents, problem: Problem) -> Parts:
        """Loss and gradient."""
        params, grads, n_rows = problem.params, problem.grads, len(problem.x)
        threshold = params["log_threshold"].exp()
        pre, theta = latents.pre, latents.spread(threshold)
        on = pre > theta
        z = pre * on
        parts = reconstruct(latents, z, problem)

        r = parts.residual * (2 / n_rows)
        latents.outer(z, r, grads["W_dec"])
        d_z = latents.pull(r, params["W_dec"])
        near = ((pre - theta).abs() < self.bandwidth / 2).to(pre.dtype)
        jump = latents.by_latent(near) * (problem.coefficient / n_rows)[:, None]
        jump += latents.by_latent(near * d_z) * threshold
        grads["log_threshold"].copy_(jump * (-threshold / self.bandwidth))
        d_pre = d_z * on
        latents.outer(d_pre, problem.centred, grads["E"])
        grads["b_enc"].copy_(latents.by_latent(d_pre))
        torch.sum(r, 1, out=grads["b_dec"])
        return replace(parts, sparsity=problem.coefficient * parts.counts.sum(-1) / n_rows)
