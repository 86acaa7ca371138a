"""A frozen coder seen through one learned scale and one learned bias per latent."""

from copy import deepcopy
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.sae.coder import SparseCoder


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
