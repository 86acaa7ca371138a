"""The sparse coder: encode, sparsify, decode. An architecture is its activation, not a subclass."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.archs import (
    ArchConfig,
    BatchTopKConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    TopKConfig,
)
from pipeline.errors import ConfigError
from pipeline.sae.activation import Activation, make_activation

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
