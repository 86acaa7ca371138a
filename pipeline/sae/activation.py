"""From pre-activations to latents, once a coder is trained. How it learns is `objective.py`'s."""

from abc import ABC, abstractmethod
from typing import assert_never, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.archs import (
    ArchConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    ReluConfig,
    TiedConfig,
    TopKConfig,
)


class Activation(nn.Module, ABC):
    """Makes pre-activations sparse. Subclasses are final: compose, do not override."""

    @abstractmethod
    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents, none below zero, of these pre-activations."""


@final
class Relu(Activation):
    """`max(pre, 0)`."""

    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of these pre-activations."""
        return pre.relu()


@final
class TopK(Activation):
    """Keep the `k` largest latents of each row, clipped at zero (Gao et al. 2024)."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of these pre-activations."""
        values, latents = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, latents, values.relu())


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


@final
class Gated(Activation):
    """`relu(exp(r_mag) pre + b_mag)` where `pre + b_gate > 0`, else zero.

    Rajamanoharan et al. 2024; the coder's own `b_enc` stays zero.
    """

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        self.b_gate = nn.Parameter(torch.zeros(d_sae))
        self.r_mag = nn.Parameter(torch.zeros(d_sae))
        self.b_mag = nn.Parameter(torch.zeros(d_sae))

    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of these pre-activations."""
        return (self.r_mag.exp() * pre + self.b_mag).relu() * (pre + self.b_gate > 0)


def make_activation(config: ArchConfig, *, d_sae: int, rms: float = 1.0) -> Activation:
    """The activation this config describes, at its start.

    Args:
        config: The architecture.
        d_sae: Number of latents.
        rms: Root mean square of the activations, the unit of JumpReLU's threshold.
    """
    match config:
        case ReluConfig() | ReluAprilConfig() | TiedConfig():
            return Relu()
        case TopKConfig():
            return TopK(config.k)
        case BatchTopKConfig() | MatryoshkaConfig():
            return Threshold(torch.zeros(()))
        case JumpReluConfig():
            return Threshold(torch.full((d_sae,), config.threshold * rms))
        case GatedConfig():
            return Gated(d_sae)
        case _:
            assert_never(config)
