"""The sparse coder: encode, sparsify, decode. An architecture is its activation, not a subclass."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config import ArchConfig, TopKConfig
from pipeline.errors import ConfigError
from pipeline.sae.activation import Activation, make_activation


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

    @torch.no_grad()
    def renormalise(self) -> None:
        """Bring every row of `W_dec` back to unit norm."""
        norm = torch.linalg.vector_norm(self.W_dec, dim=-1, keepdim=True)
        self.W_dec.div_(norm.clamp_min(torch.finfo(norm.dtype).tiny))


def require_possible(config: ArchConfig, *, d_in: int, d_sae: int) -> None:
    """Check that a coder of these widths can have this architecture.

    Raises:
        ConfigError: `k` is above `d_sae`.
    """
    if isinstance(config, TopKConfig) and config.k > d_sae:
        raise ConfigError(
            f"k = {config.k} is above the number of latents, {d_sae} (the site's width is "
            f"{d_in}): lower --k or raise --expansion"
        )


def make_coder(config: ArchConfig, *, d_in: int, d_sae: int, seed: int = 0) -> SparseCoder:
    """A coder at its random start, on the CPU: one seed gives the same bits for every device.

    Raises:
        ConfigError: `k` is above `d_sae`.
    """
    require_possible(config, d_in=d_in, d_sae=d_sae)
    generator = torch.Generator().manual_seed(seed)
    return SparseCoder(d_in, d_sae, make_activation(config), generator=generator)
