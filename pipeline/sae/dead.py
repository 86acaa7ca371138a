"""Which latents have gone silent."""

import torch
from jaxtyping import Bool, Int64, Real
from torch import Tensor


class SilentRows:
    """For each latent of M coders, the rows since the last batch in which it was active.

    Counted in whole batches: a latent that is active anywhere in a batch starts again from zero.
    """

    def __init__(self, n_members: int, d_sae: int, *, device: torch.device | None = None) -> None:
        self.silent: Int64[Tensor, "M F"] = torch.zeros(
            n_members, d_sae, dtype=torch.int64, device=device
        )

    @torch.no_grad()
    def update(self, counts: Real[Tensor, "M F"], *, n_rows: int) -> None:
        """Count one batch.

        Args:
            counts: Rows of it in which each latent was active.
            n_rows: How long the batch was; with what was excluded from it, if windows of silence
                are to be lengths of training.
        """
        self.silent.add_(n_rows).masked_fill_(counts > 0, 0)

    def dead(self, window: int) -> Bool[Tensor, "M F"]:
        """Which latents have been silent for at least `window` rows."""
        return self.silent >= window

    def forgive(self, which: Bool[Tensor, "M F"]) -> None:
        """Start these again from zero: they were given new weights."""
        self.silent.masked_fill_(which, 0)
