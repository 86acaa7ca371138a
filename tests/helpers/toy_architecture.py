"""An architecture in one file: what a package of somebody else's would bring.

z = |pre|            L = mean ||x - x_hat||^2 + price * mean ||z||_1
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch

from pipeline.config.architectures import ArchConfig
from pipeline.config.checks import require_not_negative
from pipeline.sae.architecture import Activation, Architecture, reconstruct
from pipeline.sae.select import above


@dataclass(frozen=True, kw_only=True)
class ToyConfig(ArchConfig):
    """Magnitudes of pre-activations."""

    kind: Literal["toy"] = "toy"
    made_by: ClassVar = "tests.helpers.toy_architecture:Toy"
    price: float = 0.1

    def __post_init__(self) -> None:
        require_not_negative(self, "price")


class Magnitude(Activation):
    def forward(self, pre):
        return pre.abs()


@final
class Toy(Architecture):
    encoder_norm = 0.5

    def __init__(self, config: ToyConfig, *, d_in: int, d_sae: int, rms: float) -> None:
        self.coefficient = config.price * rms

    def activation(self):
        return Magnitude()

    def pick(self, pre, params):
        return above(pre.abs(), 0.0)

    def learn(self, latents, problem):
        params, grads, n = problem.params, problem.grads, len(problem.x)
        z, sign = latents.pre.abs(), latents.pre.sign()
        parts = reconstruct(latents, z, problem)
        r = parts.residual * (2 / n)
        latents.outer(z, r, grads["W_dec"])
        price = (problem.coefficient / n)[:, None].expand_as(parts.sums)
        d_pre = latents.pull(r, params["W_dec"], base=price) * sign
        latents.outer(d_pre, problem.centred, grads["E"])
        grads["b_enc"].copy_(latents.by_latent(d_pre))
        torch.sum(r, 1, out=grads["b_dec"])
        return replace(parts, sparsity=(parts.sums * price).sum(-1))
