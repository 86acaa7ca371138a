"""Latents that compete: the `k` largest of each row (topk) or of all rows together (batchtopk).

Which latents are kept is not differentiated; on those, the loss is the squared error alone
(Gao et al. 2024, arXiv 2406.04093; Bussmann et al. 2024, arXiv 2412.06410).
"""

from collections.abc import Iterable
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.architectures import Competing as CompetingConfig
from pipeline.sae.active_pairs import Latents
from pipeline.sae.architecture import (
    Activation,
    Architecture,
    Params,
    Parts,
    Problem,
    aux_of,
    backward,
    reconstruct,
    require_latents,
)
from pipeline.sae.jumprelu import Threshold, fit_threshold
from pipeline.sae.select import Picked, batch_top_k, top_k

THRESHOLD_RATE = 0.1
"""Weight of the newest batch in the running threshold of BatchTopK."""
HINT = 0.9
"""The largest values of a batch are looked for above this share of the running threshold."""


@final
class TopK(Activation):
    """Keep the `k` largest latents of each row, clipped at zero."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, pre: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of these pre-activations."""
        values, latents = pre.topk(self.k, dim=-1, sorted=False)
        return torch.zeros_like(pre).scatter(-1, latents, values.relu())


class Competing(Architecture):
    """What topk and batchtopk share, and matryoshka.

    Many latents whose columns of `W_enc` have length 1 would together overshoot. From 0.1 to 0.3
    they end 0.01 higher in explained variance; at 0.1 more of them die.
    """

    encoder_norm = 0.2

    def __init__(self, config: CompetingConfig, *, d_in: int, d_sae: int, rms: float) -> None:
        require_latents(config.k, f"k = {config.k}", "--k", d_in=d_in, d_sae=d_sae)
        self.k = config.k
        self.share = config.k / d_sae
        self.aux = aux_of(config)

    def learn(self, latents: Latents, problem: Problem) -> Parts:
        """The squared error of what was kept, and its gradient; `latents.pre` becomes `z`."""
        z = latents.pre.relu_()
        parts = reconstruct(latents, z, problem)
        backward(latents, z, parts.residual, problem)
        return parts


@final
class TopKArchitecture(Competing):
    """`topk`."""

    def __init__(self, config: CompetingConfig, *, d_in: int, d_sae: int, rms: float) -> None:
        super().__init__(config, d_in=d_in, d_sae=d_sae, rms=rms)
        self.k_of_row = int(config.k)

    def activation(self) -> TopK:
        """The largest of each row."""
        return TopK(int(self.k))

    def pick(self, pre: Float[Tensor, "M B F"], params: Params) -> Picked:
        """The largest of each row."""
        return top_k(pre, int(self.k))


class BatchTopKArchitecture(Competing):
    """`batchtopk`; Matryoshka is picked in the same way."""

    def __init__(self, config: CompetingConfig, *, d_in: int, d_sae: int, rms: float) -> None:
        super().__init__(config, d_in=d_in, d_sae=d_sae, rms=rms)
        self.fitted_l0 = float(config.k)

    def activation(self) -> Threshold:
        """What is above the threshold, which takes the batch's place."""
        return Threshold(torch.zeros(()))

    def fit(
        self,
        activation: Activation,
        b_enc: Float[Tensor, " d_sae"],
        blocks: Iterable[Float[Tensor, "_ d_sae"]],
        *,
        l0: float,
    ) -> None:
        """Set the threshold."""
        fit_threshold(activation, blocks, l0=l0)

    def pick(self, pre: Float[Tensor, "M B F"], params: Params) -> Picked:
        """The `k * B` largest positive ones of each member, whose smallest moves the threshold."""
        threshold = params["threshold"]
        n = max(1, round(self.k * pre.shape[1]))
        picked, smallest = batch_top_k(pre, n, hint=threshold * HINT)
        began = threshold > 0
        threshold.copy_(torch.where(began, threshold.lerp(smallest, THRESHOLD_RATE), smallest))
        return picked
