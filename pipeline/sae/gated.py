"""Gated SAEs (Rajamanoharan et al. 2024, arXiv 2404.16014): which and how much, apart.

With `a = (x - b_dec) W_enc`, shared by both paths:

    gate = relu(a + b_gate)            mag = relu(exp(r_mag) a + b_mag)
    z = mag where gate > 0, else 0
    L = mean ||x - x_hat(z)||^2 + l1 mean ||gate||_1 + mean ||x - x_hat_frozen(gate)||^2

The last part, through a frozen dictionary, teaches the gate to detect what reconstructs; only
it and the penalty reach `b_gate`.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from pipeline.config.architectures import GatedConfig
from pipeline.sae.active_pairs import Latents
from pipeline.sae.architecture import (
    Activation,
    Architecture,
    Params,
    Parts,
    Problem,
    aux_of,
    mean_square,
    reconstruct,
    require_l0,
    residual_of,
)
from pipeline.sae.relu import penalty_of, shift_to
from pipeline.sae.select import Picked, above


@final
class Gated(Activation):
    """`relu(exp(r_mag) pre + b_mag)` where `pre + b_gate > 0`, else zero.

    The SAE's own `b_enc` stays zero.
    """

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        self.b_gate = nn.Parameter(torch.zeros(d_sae))
        self.r_mag = nn.Parameter(torch.zeros(d_sae))
        self.b_mag = nn.Parameter(torch.zeros(d_sae))

    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of these pre-activations."""
        return (self.r_mag.exp() * pre + self.b_mag).relu() * (pre + self.b_gate > 0)

    def take_bias(self, b_enc: Float[Tensor, " d_sae"]) -> None:
        """Into the biases of both paths."""
        self.b_gate.add_(b_enc)
        self.b_mag.addcmul_(self.r_mag.exp(), b_enc)
        b_enc.zero_()


@final
class GatedArchitecture(Architecture):
    """`gated`."""

    trained = ("E", "b_gate", "r_mag", "b_mag", "W_dec", "b_dec")
    starts: Mapping[str, float] = dict.fromkeys(("b_enc", "b_gate", "r_mag", "b_mag"), 0.0)

    def __init__(self, config: GatedConfig, *, d_in: int, d_sae: int, rms: float) -> None:
        require_l0(config, d_in=d_in, d_sae=d_sae)
        self.coefficient = penalty_of(config, d_in=d_in, rms=rms)
        self.aux = aux_of(config)
        self.fitted_l0 = config.l0
        self.begins_fitted = config.l0 is not None
        self._rms = rms
        self.d_sae = d_sae

    def activation(self) -> Gated:
        """Both paths."""
        return Gated(self.d_sae)

    def fit(
        self,
        activation: Activation,
        b_enc: Float[Tensor, " d_sae"],
        blocks: Iterable[Float[Tensor, "_ d_sae"]],
        *,
        l0: float,
    ) -> None:
        """Shift the gates of all latents alike; where a magnitude is zero, none helps."""
        assert isinstance(activation, Gated)
        b_gate, b_mag, scale = activation.b_gate, activation.b_mag, activation.r_mag.exp()
        gates = (
            (pre + b_gate).masked_fill_(scale * pre + b_mag <= 0, -torch.inf) for pre in blocks
        )
        b_gate.add_(shift_to(gates, l0=l0, rms=self._rms))

    def revive(
        self, params: Params, dead: Bool[Tensor, "M F"], *, step: Float[Tensor, "M F"]
    ) -> None:
        """Open their gates, and let what comes through be above zero."""
        for name in ("b_gate", "b_mag"):
            params[name].addcmul_(dead.to(step), step)

    def pick(self, pre: Float[Tensor, "M B F"], params: Params) -> Picked:
        """Those whose gate is open."""
        return above(pre, -params["b_gate"])

    def learn(self, latents: Latents, problem: Problem) -> Parts:
        """Loss and gradient."""
        params, grads, n_rows = problem.params, problem.grads, len(problem.x)
        a, scale = latents.pre, latents.spread(params["r_mag"].exp())
        gate = (a + latents.spread(params["b_gate"])).relu_()
        z = (a * scale + latents.spread(params["b_mag"])).relu_() * (gate > 0)
        parts, gate_sums = reconstruct(latents, z, problem), latents.by_latent(gate)
        gate_residual = residual_of(latents, gate, problem)

        r = parts.residual * (2 / n_rows)
        latents.outer(z, r, grads["W_dec"])
        torch.sum(r, 1, out=grads["b_dec"])
        d_mag = latents.pull(r, params["W_dec"]) * (z > 0)
        price = (problem.coefficient / n_rows)[:, None].expand_as(gate_sums)
        gate_r = gate_residual * (2 / n_rows)
        d_gate = latents.pull(gate_r, params["W_dec"], base=price) * (gate > 0)
        grads["b_mag"].copy_(latents.by_latent(d_mag))
        d_mag = d_mag * scale
        grads["r_mag"].copy_(latents.by_latent(d_mag * a))
        grads["b_gate"].copy_(latents.by_latent(d_gate))
        d_a = d_mag.add_(d_gate)
        latents.outer(d_a, problem.centred, grads["E"])
        grads["b_enc"].copy_(latents.by_latent(d_a))
        penalty = problem.coefficient * gate_sums.sum(-1) / n_rows
        return replace(parts, sparsity=penalty, aux=mean_square(gate_residual))
