"""The latents of both SAEs at the rows of a batch, in the form that training takes them."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from pipeline.sae.kernels import Kernels
from pipeline.sae.select import Picked, above


@dataclass(frozen=True, kw_only=True, eq=False)
class Latents:
    """Those of one batch; every connector between the same SAEs learns from the same."""

    z1: Float32[Tensor, "rows n_in"]
    z2: Float32[Tensor, "rows n_out"]

    @cached_property
    def density(self) -> float:
        """Share of input latents that are active."""
        return len(self.picked.col) / max(1, self.z1.numel())

    @cached_property
    def picked(self) -> Picked:
        """Pairs of rows and active input latents."""
        return above(self.z1[None], 0.0)

    @cached_property
    def values(self) -> Float[Tensor, " n"]:
        """Of the input latents at these pairs."""
        return self.picked.values(self.z1[None])

    def times(
        self, W: Float[Tensor, "n_in n_out"], *, kernels: Kernels | None, dtype: torch.dtype
    ) -> Float32[Tensor, "rows n_out"]:
        """`z1 @ W`: of the active pairs alone where there are kernels for that."""
        if kernels is None:
            return (self.z1.to(dtype) @ W.to(dtype)).float()
        picked = self.picked
        return kernels.decode(picked.crow, picked.col, self.values, W, len(self.z1))

    def outer(
        self,
        y: Float32[Tensor, "rows n_out"],
        out: Float[Tensor, "n_in n_out"],
        *,
        kernels: Kernels | None,
        dtype: torch.dtype,
    ) -> None:
        """Write `z1.T @ y` into `out`."""
        if kernels is None:
            out.copy_(self.z1.T.to(dtype) @ y.to(dtype))
            return
        flip = self.picked.transposed
        values = self.values.index_select(0, flip.order)
        kernels.outer(flip.crow, flip.row, values, y, out)
