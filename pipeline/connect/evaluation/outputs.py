"""What the latents to be predicted are like, before anything is predicted."""

from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from pipeline.evaluate.sums import exact, zeros

_CONSTANT = 1e-12
"""Variance, as a share of the mean square, that float32 latents cannot have."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OutputStats:
    """Statistics over all rows that are scored, on the CPU."""

    n_rows: int
    mean: Float64[Tensor, " n_out"]
    spread: Float64[Tensor, " n_out"]
    """Sum over rows of the squared distance from the mean; exactly 0 of what is constant."""
    n_active: Int64[Tensor, " n_out"]
    """In how many rows each is above zero."""

    @property
    def alive(self) -> Bool[Tensor, " n_out"]:
        """Those above zero in at least one row."""
        return self.n_active > 0

    @property
    def l0(self) -> float:
        """How many are above zero in a row, on average."""
        return int(self.n_active.sum()) / max(1, self.n_rows)


@final
class OutputSums:
    """Finds them, block of rows after block of rows."""

    def __init__(self, n_out: int, *, device: torch.device) -> None:
        self._n_rows = 0
        self._sum, self._square = (zeros(n_out, device=device) for _ in range(2))
        self._n_active = torch.zeros(n_out, dtype=torch.int64)

    @torch.no_grad()
    def add(self, z2: Float32[Tensor, "rows n_out"]) -> None:
        """Take in the latents of the next rows."""
        wide = exact(z2)
        self._n_rows += len(z2)
        self._sum += wide.sum(0)
        self._square += wide.square().sum(0)
        self._n_active += (z2 > 0).sum(0).cpu()

    def result(self) -> OutputStats:
        """Of all rows so far."""
        n_rows = max(1, self._n_rows)
        total, square = self._sum.cpu(), self._square.cpu()
        spread = square - total.square() / n_rows
        return OutputStats(
            n_rows=self._n_rows,
            mean=total / n_rows,
            spread=torch.where(spread > _CONSTANT * square, spread, 0.0),
            n_active=self._n_active,
        )
