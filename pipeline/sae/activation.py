"""From pre-activations to latents. A new architecture is a config, a class and a `case` here."""

from abc import ABC, abstractmethod
from typing import assert_never, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.config import ArchConfig, ReluConfig, TopKConfig


class Activation(nn.Module, ABC):
    """Makes pre-activations sparse. Subclasses are final: compose, do not override."""

    @abstractmethod
    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents, none below zero, of these pre-activations."""

    @abstractmethod
    def penalty(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
        """Sparsity loss of these latents; zero where sparsity is built in."""


@final
class Relu(Activation):
    """`max(pre, 0)` under the penalty `l1 * mean over rows of ||z||_1`."""

    def __init__(self, config: ReluConfig) -> None:
        super().__init__()
        self.l1 = config.l1

    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of these pre-activations."""
        return pre.relu()

    def penalty(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
        """`l1` times the mean L1 norm; the plain sum, as no latent is negative."""
        return self.l1 * z.sum(-1).mean()


@final
class TopK(Activation):
    """Keep the `k` largest latents of each row, clipped at zero (Gao et al. 2024)."""

    def __init__(self, config: TopKConfig) -> None:
        super().__init__()
        self.k = config.k

    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of these pre-activations."""
        values, latents = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, latents, values.relu())

    def penalty(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, ""]:
        """Zero: `k` fixes the sparsity."""
        return z.new_zeros(())


def make_activation(config: ArchConfig) -> Activation:
    """The activation this config describes."""
    match config:
        case ReluConfig():
            return Relu(config)
        case TopKConfig():
            return TopK(config)
        case _:
            assert_never(config)
