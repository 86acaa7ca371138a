"""What an architecture minimises: the base class, the parts of a loss, what curves show of it.

What an architecture minimises, and by which gradient.

Gradients are written out by hand: the activations' part of a step is then a few products of whole
matrices, or of the active pairs alone, with every large temporary reused. Tests hold them to the
formulas of the papers, differentiated numerically in float64.

With B rows, `r = 2/B (x_hat - x)` is the gradient of the mean squared error at the output, and
`r_b . W_dec_i` what it means to latent `i` of row `b`.

What the curves show of one batch; the names are those of a line of metrics.jsonl.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.sae.active_pairs import Latents
from pipeline.sae.select import Picked

Params = Mapping[str, Tensor]
"""Of M coders, the members first: `E` `[M, F, d]` (rows are latents: the transpose of `W_enc`),
`b_enc` `[M, F]`, `W_dec` `[M, F, d]`, `b_dec` `[M, d]`, and what an architecture adds."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What a step starts from, and where its gradients go."""

    x: Float[Tensor, "B d"]
    centred: Float[Tensor, "M B d"]
    """`x - b_dec` of each member."""
    params: Params
    grads: Params
    """Of the shapes of `params`; overwritten. `b_enc` takes the gradient of the pre-activations
    summed over rows, whether or not an architecture trains `b_enc`."""
    coefficient: Float[Tensor, " M"]
    """Of the sparsity penalty."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """The loss of each member, in named parts of which `total` is the sum, and what was active."""

    recon: Float[Tensor, " M"]
    """Mean over rows of `||x - x_hat||^2`."""
    sparsity: Float[Tensor, " M"]
    """The penalty, its coefficient included."""
    aux: Float[Tensor, " M"]
    """All else that is minimised: AuxK, the gate's reconstruction, nested dictionaries."""
    l1: Float[Tensor, " M"]
    """Mean over rows of `||z||_1`."""
    counts: Float[Tensor, "M F"]
    """Rows in which each latent was active."""
    residual: Float[Tensor, "M B d"]
    """`x_hat - x`."""

    @property
    def total(self) -> Float[Tensor, " M"]:
        """What is minimised."""
        return self.recon + self.sparsity + self.aux


class Objective(ABC):
    """The loss and gradient of one architecture, for M coders of one shape at once."""

    unit_norm: bool
    """Whether rows of `W_dec` are held at unit norm."""

    trained: tuple[str, ...]
    """Names of the parameters that are learned."""

    share: float | None
    """The share of pairs that are active, where latents compete for that: pairs must then be
    picked even where all are computed. None where each latent decides for itself."""

    @abstractmethod
    def pick(self, pre: Float[Tensor, "M B F"], params: Params) -> Picked:
        """The pairs that have a part in the loss or its gradient."""

    @abstractmethod
    def learn(self, latents: Latents, problem: Problem) -> Parts:
        """Loss of these rows, its gradient written into `problem.grads`.

        `b_dec` is left to the caller, but for what the loss itself means to it: the sum of `r`.
        """


def reconstruct(
    latents: Latents, z: Float[Tensor, "..."], problem: Problem
) -> tuple[Float[Tensor, "M B d"], Float[Tensor, " M"]]:
    """`x_hat - x` and the mean over rows of its squared norm."""
    x_hat = latents.decode(z, problem.params["W_dec"])
    residual = x_hat.add_(problem.params["b_dec"][:, None]).sub_(problem.x)
    return residual, mean_square(residual)


def mean_square(residual: Float[Tensor, "M B d"]) -> Float[Tensor, " M"]:
    """Mean over rows of the squared norm."""
    norm = torch.linalg.vector_norm(residual, dim=(1, 2))
    return norm.square() / residual.shape[1]


@torch.no_grad()
def measure(x: Float[Tensor, "B d"], parts: Parts) -> dict[str, Float[Tensor, " M"]]:
    """Losses, sparsity and explained variance of each member.

    `explained_variance` is `1 - sum ||x - x_hat||^2 / sum ||x - mean||^2` with the mean of *this*
    batch; evaluation uses one mean over its whole set.
    """
    spread = (x - x.mean(0)).square().sum()
    unexplained = parts.recon * len(x) / spread
    return {
        "loss": parts.total,
        "recon": parts.recon,
        "sparsity": parts.sparsity,
        "aux": parts.aux,
        "l0": parts.counts.sum(-1) / len(x),
        "l1": parts.l1,
        "explained_variance": 1 - unexplained.nan_to_num(),
    }
