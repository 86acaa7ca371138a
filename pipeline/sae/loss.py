"""What training minimises, kept in named parts so that nothing is added twice or dropped."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.sae.coder import SparseCoder


@dataclass(frozen=True, kw_only=True)
class Losses:
    """The parts of one batch's loss. Only `total` is ever differentiated."""

    recon: Float[Tensor, ""]
    """Mean over rows of `||x - x_hat||^2`, summed over the width."""
    sparsity: Float[Tensor, ""]
    """The activation's penalty, its coefficient included."""

    @property
    def total(self) -> Float[Tensor, ""]:
        """The number to minimise."""
        return self.recon + self.sparsity


@dataclass(frozen=True, kw_only=True)
class Coded:
    """A batch on its way through a coder: latents, reconstruction, loss."""

    x: Float[Tensor, "batch d_in"]
    z: Float[Tensor, "batch d_sae"]
    x_hat: Float[Tensor, "batch d_in"]
    losses: Losses


def code(coder: SparseCoder, x: Float[Tensor, "batch d_in"]) -> Coded:
    """Run one batch through the coder and price it."""
    z = coder.encode(x)
    x_hat = coder.decode(z)
    recon = (x_hat - x).square().sum(-1).mean()
    sparsity = coder.activation.penalty(z)
    return Coded(x=x, z=z, x_hat=x_hat, losses=Losses(recon=recon, sparsity=sparsity))


@torch.no_grad()
def measure(coded: Coded) -> dict[str, Float[Tensor, ""]]:
    """What the curves show of one batch; the names are those of a line of metrics.jsonl.

    `explained_variance` is `1 - sum ||x - x_hat||^2 / sum ||x - mean||^2` with the mean of *this*
    batch; evaluation uses one mean over its whole set.
    """
    x, z, losses = coded.x, coded.z, coded.losses
    spread = (x - x.mean(0)).square().sum()
    unexplained = (x - coded.x_hat).square().sum() / spread
    return {
        "loss": losses.total.detach(),
        "recon": losses.recon.detach(),
        "sparsity": losses.sparsity.detach(),
        "l0": (z > 0).sum(-1).to(x.dtype).mean(),
        "l1": z.sum(-1).mean(),
        "explained_variance": 1 - unexplained.nan_to_num(),
    }
