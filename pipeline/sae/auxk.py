"""AuxK: dead latents learn to reconstruct what the living leave over.

`L = coefficient * mean ||e - e_hat||^2` where `e = x - x_hat` is taken as given and `e_hat` is
made of the `k_aux` largest of the dead latents of each row (Gao et al. 2024, appendix A.2).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from pipeline.sae.objective import Params


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
