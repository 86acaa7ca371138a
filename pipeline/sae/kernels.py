"""The three sums over pairs that exact sparse training is made of, and who computes them where.

Pairs come as compressed sparse rows: of row `i` those from `crow[i]` to `crow[i + 1]`. The same
arguments always give the same bits.
"""

from importlib.util import find_spec
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int32
from torch import Tensor


@runtime_checkable
class Kernels(Protocol):
    """What a device must offer; a module can be one."""

    def decode(
        self,
        crow: Int32[Tensor, " rows_1"],
        col: Int32[Tensor, " n"],
        values: Float[Tensor, " n"],
        W: Float[Tensor, "latents d"],
        n_rows: int,
    ) -> Float[Tensor, "rows d"]:
        """`sum_j values_j W[col_j]` over the pairs of each row."""
        ...

    def pull(
        self,
        crow: Int32[Tensor, " rows_1"],
        col: Int32[Tensor, " n"],
        row: Int32[Tensor, " n"],
        r: Float[Tensor, "rows d"],
        W: Float[Tensor, "latents d"],
    ) -> Float[Tensor, " n"]:
        """`r[row_j] . W[col_j]` at each pair."""
        ...

    def outer(
        self,
        crow_t: Int32[Tensor, " latents_1"],
        row_t: Int32[Tensor, " n"],
        values_t: Float[Tensor, " n"],
        y: Float[Tensor, "rows d"],
        out: Float[Tensor, "latents d"],
    ) -> None:
        """Write `sum_j values_j y[row_j]` over the pairs of each latent into `out`."""
        ...


def kernels_for(device: torch.device) -> Kernels | None:
    """Those of this device; None where there are none, and products stay dense."""
    if device.type == "cpu" and torch.backends.mkl.is_available():
        from pipeline.sae import kernels_cpu

        return kernels_cpu
    if device.type == "cuda" and find_spec("triton") is not None:
        from pipeline.sae import kernels_triton

        return kernels_triton
    return None
