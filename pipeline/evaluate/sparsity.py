"""How few latents speak, and which never do."""

from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from pipeline.evaluate.report import FREQUENT, QUANTILES, RARE
from pipeline.evaluate.sums import exact, zeros


@final
class Sparsity:
    """Counts, per latent, the tokens on which it is above zero, and per token the latents."""

    def __init__(self, d_sae: int, *, device: torch.device) -> None:
        self._n = 0
        self._fired = zeros(d_sae, device=device)
        self._histogram = torch.zeros(d_sae + 1, dtype=torch.int64, device=device)

    def add(self, z: Float32[Tensor, "rows d_sae"]) -> Float32[Tensor, "2 rows"]:
        """Take in the latents of some rows.

        Returns:
            Of each row, how many latents are above zero, and `sum_i |z_i|`; none is below zero.
        """
        active = (z > 0).float()
        l0 = active.sum(-1)
        self._n += len(z)
        self._fired += exact(active.sum(0))
        self._histogram += torch.bincount(l0.long(), minlength=len(self._histogram))
        return torch.stack([l0, z.sum(-1)])

    @property
    def density(self) -> Float64[Tensor, " d_sae"]:
        """Fraction of the tokens on which each latent is above zero."""
        return self._fired.cpu() / self._n

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that were above zero on none of these tokens."""
        return self._fired.cpu() == 0

    @property
    def n_rare(self) -> int:
        """Latents above zero on fewer than one in a million tokens, the dead included."""
        return int((self.density < RARE).sum())

    @property
    def n_frequent(self) -> int:
        """Latents above zero on more than a tenth of the tokens."""
        return int((self.density > FREQUENT).sum())

    @property
    def l0_quantiles(self) -> tuple[float, ...]:
        """Quantiles over tokens of the number of latents above zero, at `QUANTILES`."""
        return quantiles(self._histogram.cpu().numpy())


def quantiles(histogram: Int64[np.ndarray, " n"]) -> tuple[float, ...]:
    """Those of values of which `histogram[v]` are `v`, as of the values themselves.

    Between the two nearest of the sorted values, as numpy does it.
    """
    up_to = np.cumsum(histogram)
    rank = np.array(QUANTILES) * (up_to[-1] - 1)
    low, high = (
        np.searchsorted(up_to, np.array(whole, np.int64), side="right")
        for whole in (np.floor(rank), np.ceil(rank))
    )
    return tuple((low + (rank - np.floor(rank)) * (high - low)).tolist())
