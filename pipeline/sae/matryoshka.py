"""Nested dictionaries (Bussmann et al. 2025, arXiv 2503.17547), picked by BatchTopK.

The first `F_1 < F_2 < ... < F_G = F` latents must each reconstruct alone:

    L = 1/G sum_g mean ||x - x_hat_g||^2,    x_hat_g = b_dec + sum_{i < F_g} z_i W_dec_i

A latent of group `g` has a part in every reconstruction from the `g`-th on, so that its gradient
is that of one squared error with `r` summed over those.
"""

from itertools import pairwise
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.sae.active_pairs import Latents
from pipeline.sae.objective import Objective, Params, Parts, Problem, mean_square
from pipeline.sae.relu import masked
from pipeline.sae.select import Picked
from pipeline.sae.topk import pick_of_batch


@final
class MatryoshkaObjective(Objective):
    """Of `matryoshka`: prefixes of `d_sae / 2^(n-1), ..., d_sae / 2, d_sae` latents."""

    unit_norm = True
    trained = ("E", "b_enc", "W_dec", "b_dec")

    def __init__(self, k: int, *, prefixes: int, d_sae: int) -> None:
        self.k = k
        self.share = k / d_sae
        ends = {d_sae >> i for i in range(prefixes)} - {0}
        self.groups = tuple(pairwise([0, *sorted(ends)]))

    def pick(self, pre: Float[Tensor, "M B F"], params: Params) -> Picked:
        """The largest of the batch; the running threshold is moved on."""
        return pick_of_batch(pre, self.k, params)

    def learn(self, latents: Latents, problem: Problem) -> Parts:
        """Loss and gradient; `latents.pre` becomes `z`."""
        params, grads, n_rows = problem.params, problem.grads, len(problem.x)
        parts = [latents.columns(*group) for group in self.groups]
        for part in parts:
            part.pre.relu_()
        residuals = list[Tensor]()
        so_far = (params["b_dec"][:, None] - problem.x).clone()
        for part, (start, stop) in zip(parts, self.groups, strict=True):
            so_far = so_far + part.decode(part.pre, params["W_dec"][:, start:stop])
            residuals.append(so_far)
        recons = torch.stack([mean_square(residual) for residual in residuals])

        counts, sums = torch.empty_like(grads["b_enc"]), torch.empty_like(grads["b_enc"])
        r = torch.zeros_like(so_far)
        for part, (start, stop), residual in reversed(
            list(zip(parts, self.groups, residuals, strict=True))
        ):
            here, z = slice(start, stop), part.pre
            r.add_(residual, alpha=2 / n_rows / len(parts))
            counts[:, here], sums[:, here] = part.counts(z), part.by_latent(z)
            part.outer(z, r, grads["W_dec"][:, here])
            d_pre = masked(part.pull(r, params["W_dec"][:, here]), z)
            part.outer(d_pre, problem.centred, grads["E"][:, here])
            grads["b_enc"][:, here] = part.by_latent(d_pre)
        torch.sum(r, 1, out=grads["b_dec"])
        return Parts(
            recon=recons[-1],
            sparsity=torch.zeros_like(recons[-1]),
            aux=recons.mean(0) - recons[-1],
            l1=sums.sum(-1) / n_rows,
            counts=counts,
            residual=residuals[-1],
        )
