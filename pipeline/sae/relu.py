"""ReLU latents under an L1 penalty (S0's SAE), in three kinds; latents that compete, too.

`L = mean ||x - x_hat||^2 + sum_i price_i mean z_i`, where `price` is the coefficient, or with
`weighted` the coefficient times `||W_dec_i||`. By hand, with `z = relu(pre)`:

    dL/dz_bi     = r_b . W_dec_i + price_i / B
    dL/dpre      = dL/dz where z > 0, else 0
    dL/dW_dec_i  = sum_b z_bi r_b  (+ coefficient * mean z_i * W_dec_i / ||W_dec_i|| if weighted)
    dL/dE_i      = sum_b dL/dpre_bi (x_b - b_dec)
"""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.sae.active_pairs import Latents, Values
from pipeline.sae.objective import Objective, Params, Parts, Problem, reconstruct
from pipeline.sae.select import Picked, above


@final
class ReluObjective(Objective):
    """Of `relu`, `relu-april` and `tied`.

    Args:
        weighted: Weigh each latent's L1 by the norm of its row of `W_dec`, which is then free.
        tied: The encoder is the dictionary; there is no `b_dec` to learn.
    """

    share = None

    def __init__(self, *, weighted: bool = False, tied: bool = False) -> None:
        self.weighted = weighted
        self.unit_norm = not weighted
        self.trained = ("W_dec", "b_enc") if tied else ("E", "b_enc", "W_dec", "b_dec")

    def pick(self, pre: Float[Tensor, "M B F"], params: Params) -> Picked:
        """The active ones."""
        return above(pre, 0.0)

    def learn(self, latents: Latents, problem: Problem) -> Parts:
        """Loss and gradient; `latents.pre` becomes `z`."""
        W_dec, n_rows = problem.params["W_dec"], len(problem.x)
        z = latents.pre.relu_()
        counts, sums = latents.counts(z), latents.by_latent(z)
        price = problem.coefficient[:, None].expand_as(sums)
        norms = torch.linalg.vector_norm(W_dec, dim=-1) if self.weighted else None
        if norms is not None:
            price = price * norms
        residual, recon = reconstruct(latents, z, problem)
        backward(latents, z, residual, problem, base=price / n_rows)
        if norms is not None:
            weight = (problem.coefficient / n_rows)[:, None] * sums / norms.clamp_min(TINY)
            problem.grads["W_dec"].addcmul_(weight[..., None], W_dec)
        return Parts(
            recon=recon,
            sparsity=(sums * price).sum(-1) / n_rows,
            aux=torch.zeros_like(recon),
            l1=sums.sum(-1) / n_rows,
            counts=counts,
            residual=residual,
        )


TINY = torch.finfo(torch.float32).tiny


def backward(
    latents: Latents,
    z: Values,
    residual: Float[Tensor, "M B d"],
    problem: Problem,
    *,
    base: Float[Tensor, "M F"] | None = None,
) -> None:
    """Write the gradients of a squared error through rectified latents.

    `base` is what else the loss has for each unit of a latent.
    """
    grads = problem.grads
    r = residual * (2 / len(problem.x))
    latents.outer(z, r, grads["W_dec"])
    d_pre = masked(latents.pull(r, problem.params["W_dec"], base=base), z)
    latents.outer(d_pre, problem.centred, grads["E"])
    grads["b_enc"].copy_(latents.by_latent(d_pre))
    torch.sum(r, 1, out=grads["b_dec"])


def masked(d_z: Values, z: Values) -> Values:
    """`d_z` in its own memory, zero where `z` is not above zero."""
    return torch.ops.aten.threshold_backward.grad_input(d_z, z, 0, grad_input=d_z)
