"""ReLU latents under an L1 penalty, in three kinds: relu, relu-april and tied.

`L = mean ||x - x_hat||^2 + sum_i price_i mean z_i`, where `price` is the coefficient, or for
relu-april the coefficient times `||W_dec_i||`. By hand, with `z = relu(pre)`:

    dL/dz_bi     = r_b . W_dec_i + price_i / B
    dL/dpre      = dL/dz where z > 0, else 0
    dL/dW_dec_i  = sum_b z_bi r_b  (+ coefficient * mean z_i * W_dec_i / ||W_dec_i||: relu-april)
    dL/dE_i      = sum_b dL/dpre_bi (x_b - b_dec)
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.architectures import PenalisedByL1
from pipeline.sae.active_pairs import Latents
from pipeline.sae.architecture import (
    Activation,
    Architecture,
    Params,
    Parts,
    Problem,
    backward,
    reconstruct,
    require_l0,
)
from pipeline.sae.jumprelu import Threshold
from pipeline.sae.select import Picked, above

TINY = torch.finfo(torch.float32).tiny
FIRST_L1 = 0.5
"""Where a penalty starts that finds its own size, in mean norms of a row."""


def penalty_of(config: PenalisedByL1, *, d_in: int, rms: float) -> float:
    """The L1 coefficient to start with."""
    return FIRST_L1 * rms * d_in**0.5 if config.l1 is None else config.l1


RAISED = 0.5
"""Of what is below zero, so much is looked at, in root mean squares of x."""


def shift_to(blocks: Iterable[Float[Tensor, "_ d_sae"]], *, l0: float, rms: float) -> float:
    """What to add to these pre-activations so that `l0` of a row are above zero, on average."""
    raised = RAISED * rms
    return raised - Threshold.fitted((pre + raised for pre in blocks), l0=l0)


@final
class Relu(Activation):
    """`max(pre, 0)`."""

    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of these pre-activations."""
        return pre.relu()


class ReluArchitecture(Architecture):
    """`relu`: rows of `W_dec` have unit norm."""

    def __init__(self, config: PenalisedByL1, *, d_in: int, d_sae: int, rms: float) -> None:
        require_l0(config, d_in=d_in, d_sae=d_sae)
        self.coefficient = penalty_of(config, d_in=d_in, rms=rms)
        self.fitted_l0 = config.l0
        self.begins_fitted = config.l0 is not None
        self._rms = rms

    def activation(self) -> Relu:
        """ReLU."""
        return Relu()

    def fit(
        self,
        activation: Activation,
        b_enc: Float[Tensor, " d_sae"],
        blocks: Iterable[Float[Tensor, "_ d_sae"]],
        *,
        l0: float,
    ) -> None:
        """Shift the biases of all latents alike."""
        b_enc.add_(shift_to(blocks, l0=l0, rms=self._rms))

    def pick(self, pre: Float[Tensor, "M B F"], params: Params) -> Picked:
        """The active ones."""
        return above(pre, 0.0)

    def learn(self, latents: Latents, problem: Problem) -> Parts:
        """Loss and gradient; `latents.pre` becomes `z`."""
        W_dec, n_rows = problem.params["W_dec"], len(problem.x)
        z = latents.pre.relu_()
        parts = reconstruct(latents, z, problem)
        price = problem.coefficient[:, None].expand_as(parts.sums)
        norms = None if self.unit_norm else torch.linalg.vector_norm(W_dec, dim=-1)
        if norms is not None:
            price = price * norms
        backward(latents, z, parts.residual, problem, base=price / n_rows)
        if norms is not None:
            weight = (problem.coefficient / n_rows)[:, None] * parts.sums / norms.clamp_min(TINY)
            problem.grads["W_dec"].addcmul_(weight[..., None], W_dec)
        return replace(parts, sparsity=(parts.sums * price).sum(-1) / n_rows)


@final
class ReluAprilArchitecture(ReluArchitecture):
    """`relu-april`: rows of any norm, by which the L1 of each latent is weighed."""

    unit_norm = False
    encoder_norm = decoder_norm = 0.1


@final
class TiedArchitecture(ReluArchitecture):
    """`tied`: the encoder is the dictionary, and there is no `b_dec` to learn."""

    trained = ("W_dec", "b_enc")
