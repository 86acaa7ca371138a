"""How few latents speak, and which never do."""

from typing import final

import torch
from jaxtyping import Bool, Float32, Float64
from torch import Tensor

from pipeline.evaluate.sums import exact, zeros


@final
class Sparsity:
    """Counts, per latent, the tokens on which it is above zero."""

    def __init__(self, d_sae: int, *, device: torch.device) -> None:
        self._n = 0
        self._fired = zeros(d_sae, device=device)
        self._l1 = zeros(1, device=device)

    def add(self, z: Float32[Tensor, "rows d_sae"]) -> None:
        """Take in the latents of some rows."""
        self._n += len(z)
        self._fired += exact((z > 0).sum(0).float())
        self._l1 += exact(z.abs().sum(-1)).sum()

    @property
    def l0(self) -> float:
        """Mean over tokens of the number of latents above zero."""
        return self._fired.sum().item() / self._n

    @property
    def l1(self) -> float:
        """Mean over tokens of `sum_i |z_i|`."""
        return self._l1.item() / self._n

    @property
    def density(self) -> Float64[Tensor, " d_sae"]:
        """Fraction of the tokens on which each latent is above zero."""
        return self._fired.cpu() / self._n

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that were above zero on none of these tokens."""
        return self._fired.cpu() == 0
