"""The two SAEs that a connector lies between, on rows of one store."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float32
from torch import Tensor

from pipeline.run import Run
from pipeline.sae.coder import SparseCoder


@dataclass(frozen=True, kw_only=True)
class End:
    """One of them, as a connector names it."""

    run: Path
    site: str
    sha256: str
    """Of its sae.safetensors."""
    d_sae: int

    @staticmethod
    def of(run: Run) -> "End":
        """The end that a finished run is."""
        site = run.provenance.site
        return End(run=run.path.resolve(), site=site, sha256=run.sha256, d_sae=run.d_sae)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pair:
    """Both, loaded."""

    source: SparseCoder
    """Whose latents are read."""
    target: SparseCoder
    """Whose latents are predicted."""
    sites: tuple[str, str]

    @torch.no_grad()
    def latents(
        self, batch: Mapping[str, Tensor]
    ) -> tuple[Float32[Tensor, "rows n_in"], Float32[Tensor, "rows n_out"]]:
        """The latents of both at each row of a batch of activations by site."""
        x1, x2 = (batch[site] for site in self.sites)
        return self.source.encode(x1), self.target.encode(x2)
