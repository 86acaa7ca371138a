"""What a connector minimises, and by which gradient.

    mean over rows of sum_o (z2_o - z2_hat_o)^2  +  l1 * sum_io |W_io|

over the outputs o that are predicted. The mean over all elements that Riggs, Mitchell and Kaufman
(2023) take, beside `l1' * mean_o ||W_o||_1`, is this divided by the number of outputs, so that
`l1 = l1'` where all outputs are predicted.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.connect.latents import Latents
from pipeline.sae.kernels import Kernels
from pipeline.train_config import Rectify

BLOCK = 2**20
"""Weights that are looked at together: what they need stays in the cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What is learned, but for the rows."""

    W: Float[Tensor, "n_in n_out"]
    b: Float[Tensor, " n_out"]
    predicted: Bool[Tensor, " n_out"]
    """Outputs whose error counts."""
    activation: Rectify
    dtype: torch.dtype
    """Of the products of whole matrices."""

    def learn(
        self,
        latents: Latents,
        W_grad: Float[Tensor, "n_in n_out"],
        b_grad: Float[Tensor, " n_out"],
        *,
        kernels: Kernels | None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows n_out"]]:
        """Gradients of the squared error, written into `W_grad` and `b_grad`.

        Returns:
            The squared error, and `z2_hat - z2`, zero for outputs that are not predicted.
        """
        pre = latents.times(self.W, kernels=kernels, dtype=self.dtype).add_(self.b)
        silent = ~self.predicted if self.activation == "linear" else (pre <= 0) | ~self.predicted
        error = pre.relu_() if self.activation == "relu" else pre
        error.sub_(latents.z2).mul_(self.predicted)
        recon = torch.linalg.vector_norm(error).square() / len(error)
        slope = error.mul(2 / len(error)).masked_fill_(silent, 0.0)
        latents.outer(slope, W_grad, kernels=kernels, dtype=self.dtype)
        b_grad.copy_(slope.sum(0))
        return recon, error

    def add_penalty(self, W_grad: Float[Tensor, "n_in n_out"], coefficient: float) -> None:
        """The (sub)gradient of the penalty."""
        W_grad.add_(self.W.sign(), alpha=coefficient)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What there is to say of the weights' sizes."""

    total: float
    """`sum |W|`."""
    n_above: int
    n_nonzero: int


def sizes_of(W: Float[Tensor, "n_in n_out"], *, threshold: float) -> Sizes:
    """Totals over all weights, block by block: no second matrix is made."""
    total, n_above, n_nonzero = 0.0, 0, 0
    for some in W.split(max(1, BLOCK // W.shape[1])):
        size = some.abs()
        total += float(size.sum())
        n_above += int(torch.count_nonzero(size > threshold))
        n_nonzero += int(torch.count_nonzero(size))
    return Sizes(total=total, n_above=n_above, n_nonzero=n_nonzero)


def shrink(
    W: Float[Tensor, "n_in n_out"],
    second: Float[Tensor, "n_in n_out"],
    *,
    step: int,
    beta2: float,
    lr: float,
    coefficient: float,
    eps: float = 1e-8,
) -> None:
    """The proximal step of `coefficient * sum |W|` after one of Adam: towards zero, never past it.

    Adam moves a weight by its learning rate over `sqrt(second) + eps`; the penalty's share of that
    is what the weight loses in size (Yun, Lozano and Yang 2021, arXiv 2007.07869). Weights that the
    squared error does not hold become exactly zero.

    Args:
        W: Changed in place.
        second: Adam's second moments, not corrected.
        step: Steps that Adam has made.
        beta2: Of Adam.
        lr: Of this step.
        coefficient: Of the penalty.
        eps: Of Adam.
    """
    correction = (1 - beta2**step) ** 0.5
    rows = max(1, BLOCK // W.shape[1])
    for some, moments in zip(W.split(rows), second.split(rows), strict=True):
        reach = moments.sqrt().div_(correction).add_(eps).reciprocal_().mul_(lr * coefficient)
        some.sub_(torch.clamp(some, min=-reach, max=reach))
