"""Topk, batchtopk, AuxK.

Latents that compete: the `k` largest of each row (TopK) or of all rows together (BatchTopK).

Which latents are kept is not differentiated; on those, the loss is the squared error alone
(Gao et al. 2024, arXiv 2406.04093; Bussmann et al. 2024, arXiv 2412.06410).

AuxK: dead latents learn to reconstruct what the living leave over.

`L = coefficient * mean ||e - e_hat||^2` where `e = x - x_hat` is taken as given and `e_hat` is
made of the `k_aux` largest of the dead latents of each row (Gao et al. 2024, appendix A.2).
"""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.sae.active_pairs import Latents
from pipeline.sae.objective import Objective, Params, Parts, Problem, reconstruct
from pipeline.sae.relu import backward
from pipeline.sae.select import Picked, batch_top_k, top_k

THRESHOLD_RATE = 0.1
"""Weight of the newest batch in the running threshold of BatchTopK."""
HINT = 0.9
"""The largest values of a batch are looked for above this share of the running threshold."""


@final
class TopKObjective(Objective):
    """Of `topk`, and over whole batches of `batchtopk`."""

    unit_norm = True
    trained = ("E", "b_enc", "W_dec", "b_dec")

    def __init__(self, k: int, *, d_sae: int, over_batch: bool = False) -> None:
        self.k = k
        self.share = k / d_sae
        self.over_batch = over_batch

    def pick(self, pre: Float[Tensor, "M B F"], params: Params) -> Picked:
        """The largest; for whole batches the running threshold is moved on."""
        return pick_of_batch(pre, self.k, params) if self.over_batch else top_k(pre, self.k)

    def learn(self, latents: Latents, problem: Problem) -> Parts:
        """Loss and gradient; `latents.pre` becomes `z`."""
        z = latents.pre.relu_()
        counts, sums = latents.counts(z), latents.by_latent(z)
        residual, recon = reconstruct(latents, z, problem)
        backward(latents, z, residual, problem)
        return Parts(
            recon=recon,
            sparsity=torch.zeros_like(recon),
            aux=torch.zeros_like(recon),
            l1=sums.sum(-1) / len(problem.x),
            counts=counts,
            residual=residual,
        )


def pick_of_batch(pre: Float[Tensor, "M B F"], k: int, params: Params) -> Picked:
    """The `k * B` largest positive values of each member, whose smallest moves its threshold."""
    threshold = params["threshold"]
    picked, smallest = batch_top_k(pre, k * pre.shape[1], hint=threshold * HINT)
    began = threshold > 0
    threshold.copy_(torch.where(began, threshold.lerp(smallest, THRESHOLD_RATE), smallest))
    return picked


@dataclass(frozen=True, kw_only=True)
class AuxK:
    """How many dead latents try, and what their success is worth."""

    k: int
    coefficient: float

    def learn(
        self,
        pre: Float[Tensor, "B n"],
        dead: Int64[Tensor, " n"],
        *,
        residual: Float[Tensor, "B d"],
        centred: Float[Tensor, "B d"],
        params: Params,
        grads: Params,
    ) -> Float[Tensor, ""]:
        """The loss of one member; its gradient is added to `grads`.

        Args:
            pre: Pre-activations of the dead latents.
            dead: Which they are.
            residual: `x_hat - x`.
            centred: `x - b_dec`.
            params: Of the one member, without its leading axis.
            grads: Likewise.
        """
        W_dead, n_rows = params["W_dec"][dead], len(pre)
        values, places = pre.topk(min(self.k, pre.shape[1]), dim=-1, sorted=False)
        z = torch.zeros_like(pre).scatter_(-1, places, values.relu_())
        error = (z @ W_dead).add_(residual)
        r = error * (2 * self.coefficient / n_rows)
        d_pre = (r @ W_dead.T) * (z > 0)
        # Not index_add_, which on CUDA adds in any order: each latent is in `dead` once.
        grads["W_dec"][dead] += z.T @ r
        grads["E"][dead] += d_pre.T @ centred
        grads["b_enc"][dead] += d_pre.sum(0)
        return error.square().sum() * (self.coefficient / n_rows)
