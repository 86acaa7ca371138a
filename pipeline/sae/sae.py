"""SAE: from_pretrained, encode, decode, save_pretrained; its activations; TunedSAE.

From pre-activations to latents, once a coder is trained. How it learns is `objective.py`'s.

The sparse coder: encode, sparsify, decode. An architecture is its activation, not a subclass.

A coder trained on scaled activations, made into one for activations as they are.

A frozen coder seen through one learned scale and one learned bias per latent.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from typing import assert_never, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.architectures import (
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
from pipeline.errors import ConfigError


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


APRIL_NORM = 0.1
"""Of the rows of `W_dec` at the start of relu-april (Anthropic, April 2024)."""
COMPETING_NORM = 0.2
"""Of the columns of `W_enc` at the start of the TopK kinds: many latents of length 1 would together
overshoot. From 0.1 to 0.3 they end 0.01 higher in explained variance; at 0.1 more of them die."""


class SparseCoder(nn.Module):
    """`x_hat = f((x - b_dec) @ W_enc + b_enc) @ W_dec + b_dec`.

    Rows of `W_dec` are the dictionary: `W_dec[i]` is the direction latent `i` writes. They start
    as random unit vectors and `W_enc` as their transpose; both biases start at zero.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        activation: Activation,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        W_dec = F.normalize(torch.randn(d_sae, d_in, generator=generator), dim=-1)
        self.W_enc = nn.Parameter(W_dec.T.contiguous())  # tied at the start only
        self.b_enc = nn.Parameter(torch.zeros(d_sae))
        self.W_dec = nn.Parameter(W_dec)
        self.b_dec = nn.Parameter(torch.zeros(d_in))
        self.activation = activation

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.W_dec.shape[1]

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.W_dec.shape[0]

    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Pre-activations: what fine-tuning scales and shifts."""
        return F.linear(x - self.b_dec, self.W_enc.T, self.b_enc)

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of each row."""
        return self.activation(self.pre(x))

    def decode(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from latents."""
        return F.linear(z, self.W_dec.T, self.b_dec)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction of each row."""
        return self.decode(self.encode(x))


def require_possible(config: ArchConfig, *, d_in: int, d_sae: int) -> None:
    """Check that a coder of these widths can have this architecture.

    Raises:
        ConfigError: more latents would have to be active, or more prefixes nested, than there are.
    """
    match config:
        case TopKConfig() | BatchTopKConfig() | MatryoshkaConfig() if config.k > d_sae:
            wanted, option = f"k = {config.k} is", "--k"
        case JumpReluConfig() if config.l0 > d_sae:
            wanted, option = f"l0 = {config.l0:g} is", "--set arch.l0"
        case MatryoshkaConfig() if d_sae >> (config.prefixes - 1) == 0:
            wanted, option = f"2^{config.prefixes - 1} for the prefixes is", "--set arch.prefixes"
        case _:
            return
    raise ConfigError(
        f"{wanted} above the number of latents, {d_sae} (the site's width is {d_in}): lower "
        f"{option} or raise --expansion"
    )


def make_coder(
    config: ArchConfig, *, d_in: int, d_sae: int, seed: int = 0, rms: float = 1.0
) -> SparseCoder:
    """A coder at its random start, on the CPU: one seed gives the same bits for every device.

    Args:
        config: Its architecture.
        d_in: Width of the activations.
        d_sae: Number of latents.
        seed: Of the dictionary's random directions.
        rms: Root mean square of the activations, the unit of JumpReLU's thresholds.

    Raises:
        ConfigError: `k` is above `d_sae`, or the like.
    """
    require_possible(config, d_in=d_in, d_sae=d_sae)
    generator = torch.Generator().manual_seed(seed)
    activation = make_activation(config, d_sae=d_sae, rms=rms)
    coder = SparseCoder(d_in, d_sae, activation, generator=generator)
    with torch.no_grad():
        match config:
            case ReluAprilConfig():
                coder.W_dec.mul_(APRIL_NORM)
                coder.W_enc.mul_(APRIL_NORM)
            case TopKConfig() | BatchTopKConfig() | MatryoshkaConfig():
                coder.W_enc.mul_(COMPETING_NORM)
            case _:
                pass
    return coder


def fold(state: Mapping[str, Tensor], *, scale: float) -> dict[str, Tensor]:
    """A coder that was trained on `x / scale`, as the one that takes `x` to the same latents.

        ((x / s) - b_dec) @ W_enc + b_enc = (x - s b_dec) @ (W_enc / s) + b_enc
        s (z @ W_dec + b_dec)             = z @ (s W_dec) + s b_dec

    Latents do not change, so that thresholds do not either.
    """
    folded = dict(state)
    folded["W_enc"] = state["W_enc"] / scale
    folded["W_dec"] = state["W_dec"] * scale
    folded["b_dec"] = state["b_dec"] * scale
    return folded


@final
class TunedCoder(nn.Module):
    """`z = f(c * pre(x) + d)`: `c` and `d` act just before the activation `f` of a frozen coder.

    It starts at `c = 1, d = 0`, which is the coder itself, bit for bit.
    """

    def __init__(self, coder: SparseCoder) -> None:
        super().__init__()
        self.coder = coder.requires_grad_(False)
        self.c = nn.Parameter(torch.ones_like(coder.b_enc))
        self.d = nn.Parameter(torch.zeros_like(coder.b_enc))

    @property
    def d_in(self) -> int:
        """Width of the activations."""
        return self.coder.d_in

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.coder.d_sae

    @property
    def W_dec(self) -> Float[Tensor, "d_sae d_in"]:  # noqa: N802
        """The dictionary, as the frozen coder has it."""
        return self.coder.W_dec

    def pre(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Scaled and shifted pre-activations of each row."""
        return self.c * self.coder.pre(x) + self.d

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of each row."""
        return self.coder.activation(self.pre(x))

    def decode(self, z: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from latents."""
        return self.coder.decode(z)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction of each row."""
        return self.decode(self.encode(x))

    @torch.no_grad()
    def fold(self) -> SparseCoder:
        """The plain coder that computes the same, for tools that know no `c` and `d`.

        `c * ((x - b_dec) W_enc + b_enc) + d = (x - b_dec) (W_enc * c) + (c * b_enc + d)`:
        the centring and the dictionary stay as they are.
        """
        plain = deepcopy(self.coder)
        plain.W_enc.mul_(self.c)
        plain.b_enc.mul_(self.c).add_(self.d)
        return plain


Coder = SparseCoder | TunedCoder
"""Whatever encodes and decodes."""
