"""Nested dictionaries (Bussmann et al. 2025, arXiv 2503.17547), picked by BatchTopK.

The first `F_1 < F_2 < ... < F_G = F` latents must each reconstruct alone:

    L = 1/G sum_g mean ||x - x_hat_g||^2,    x_hat_g = b_dec + sum_{i < F_g} z_i W_dec_i

A latent of group `g` has a part in every reconstruction from the `g`-th on, so that its gradient
is that of one squared error with `r` summed over those.
"""

from itertools import pairwise
from typing import final

import torch
from torch import Tensor

from pipeline.config.architectures import MatryoshkaConfig
from pipeline.sae.active_pairs import Latents
from pipeline.sae.architecture import Parts, Problem, masked, mean_square, require_latents
from pipeline.sae.topk import BatchTopKArchitecture


@final
class MatryoshkaArchitecture(BatchTopKArchitecture):
    """`matryoshka`: prefixes of `d_sae / 2^(n-1), ..., d_sae / 2, d_sae` latents."""

    def __init__(self, config: MatryoshkaConfig, *, d_in: int, d_sae: int, rms: float) -> None:
        super().__init__(config, d_in=d_in, d_sae=d_sae, rms=rms)
        halvings = config.prefixes - 1
        told = f"2^{halvings} for the prefixes"
        require_latents(2**halvings, told, "--set arch.prefixes", d_in=d_in, d_sae=d_sae)
        self.groups = tuple(pairwise([0, *(d_sae >> i for i in range(halvings, -1, -1))]))

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
            sums=sums,
            counts=counts,
            residual=residuals[-1],
        )
