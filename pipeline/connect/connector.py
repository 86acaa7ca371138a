"""A connector: latents of one SAE, linearly combined, are latents of another.

With it the two SAEs that it lies between, and their latents as training and scoring take them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.training import Rectify
from pipeline.runs.sae_run import SAERun
from pipeline.sae.kernels import Kernels
from pipeline.sae.sae import SAE
from pipeline.sae.select import Picked, above


class Connector(nn.Module):
    """`z2 = relu(z1 @ W + b)`, or `z1 @ W + b` where it is linear.

    `W[i, o]` is what an activation of input feature `i` adds to output feature `o`: the transpose
    of `W2` in Riggs, Mitchell and Kaufman, "Finding Sparse Linear Connections between Features in
    LLMs" (2023).
    """

    def __init__(
        self,
        W: Float[Tensor, "n_in n_out"],
        b: Float[Tensor, " n_out"],
        *,
        activation: Rectify = "relu",
    ) -> None:
        super().__init__()
        self.W = nn.Parameter(W)
        self.b = nn.Parameter(b)
        self.activation: Rectify = activation

    @property
    def n_in(self) -> int:
        """Latents it reads."""
        return self.W.shape[0]

    @property
    def n_out(self) -> int:
        """Latents it predicts."""
        return self.W.shape[1]

    def forward(self, z1: Float[Tensor, "*batch n_in"]) -> Float[Tensor, "*batch n_out"]:
        """Predicted latents of each row."""
        z2 = F.linear(z1, self.W.T, self.b)
        return z2.relu() if self.activation == "relu" else z2


@dataclass(frozen=True, kw_only=True)
class End:
    """One of the two SAEs, as a connector names it."""

    run: Path
    site: str
    sha256: str
    """Of its sae.safetensors."""
    d_sae: int

    @staticmethod
    def of(run: SAERun) -> "End":
        """The end that a finished run is."""
        site = run.provenance.site
        return End(run=run.path.resolve(), site=site, sha256=run.sha256, d_sae=run.d_sae)


Ends = tuple[End, End]
"""The SAE whose latents are read, and the one whose are predicted."""


@dataclass(frozen=True, kw_only=True, eq=False)
class SAEPair:
    """Both SAEs, loaded."""

    source: SAE
    """Whose latents are read."""
    target: SAE
    """Whose latents are predicted."""
    sites: tuple[str, str]

    @torch.no_grad()
    def latents(
        self, batch: Mapping[str, Tensor]
    ) -> tuple[Float32[Tensor, "rows n_in"], Float32[Tensor, "rows n_out"]]:
        """The latents of both at each row of a batch of activations by site."""
        x1, x2 = (batch[site] for site in self.sites)
        return self.source.encode(x1), self.target.encode(x2)


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLatents:
    """Latents of one batch; every connector between the same SAEs learns from the same."""

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
