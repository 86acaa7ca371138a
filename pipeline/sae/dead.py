"""Which latents have gone silent."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


class SilentRows:
    """For each latent, the rows seen since the last batch in which it fired.

    Counted in whole batches: a latent that fires anywhere in a batch starts again from zero.
    """

    def __init__(self, d_sae: int, *, device: torch.device | None = None) -> None:
        self.silent: Int64[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, z: Float[Tensor, "batch d_sae"]) -> None:
        """Count one batch of latents."""
        self.silent.add_(len(z)).masked_fill_(z.amax(0) > 0, 0)

    def n_dead(self, window: int) -> Int64[Tensor, ""]:
        """How many latents have been silent for at least `window` rows; stays on the device."""
        return (self.silent >= window).sum()
