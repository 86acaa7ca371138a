"""How well maps from latents to latents predict, and with how many weights.

`z2` are the latents to predict, `z2_hat` what a map predicts. A latent of `z2` is alive if it is
above zero in at least one of the rows that are scored; `mean` is one mean per latent over all of
these rows. Sums over rows are in float64.

- fvu: `sum (z2 - z2_hat)^2 / sum (z2 - mean)^2`, both over all rows and alive outputs.
- variance explained of one output: `1 - sum (z2 - z2_hat)^2 / sum (z2 - mean)^2` over its rows.
- mse: mean of `(z2 - z2_hat)^2` over rows and all outputs.
- l1: mean of `|W|` over all pairs of an input and an output.

Weights above tau are counted as in Riggs, Mitchell and Kaufman, "Finding Sparse Linear Connections
between Features in LLMs" (2023). That count depends on the scales of the latents, hence on those of
the two sites: it compares maps between the same SAEs, not between others. Weights that are not
exactly zero are counted too.
"""

from collections.abc import Mapping, Sequence
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from pipeline.connect.connector import Connector
from pipeline.connect.evaluation.outputs import OutputStats, OutputSums
from pipeline.connect.evaluation.predict import predict
from pipeline.connect.evaluation.report import QUANTILES, TAU, ScoredMap
from pipeline.connect.latents import Latents
from pipeline.evaluate.sums import exact, zeros


@final
class Errors:
    """The squared errors of one map, block of rows after block of rows."""

    def __init__(self, outputs: OutputStats, *, device: torch.device) -> None:
        self._alive = exact(outputs.alive.to(device).float())
        self._sum = zeros(len(self._alive), device=device)

    @torch.no_grad()
    def add(
        self, z2: Float32[Tensor, "rows n_out"], z2_hat: Float32[Tensor, "rows n_out"]
    ) -> Float64[Tensor, " rows"]:
        """Take in the next rows; gives each one's sum over alive outputs."""
        squared = (exact(z2) - exact(z2_hat)).square()
        self._sum += squared.sum(0)
        return squared @ self._alive

    @property
    def per_output(self) -> Float64[Tensor, " n_out"]:
        """Their sum over all rows so far, on the CPU."""
        return self._sum.cpu()


def score(
    maps: Mapping[str, Connector], rows: Sequence[Latents], *, tau: float = TAU
) -> tuple[ScoredMap, ...]:
    """Score maps on latents of both sites, without a language model.

    Args:
        maps: By their names.
        rows: Latents of some rows each, on the device of the maps.
        tau: Weights above it are counted.
    """
    sums = OutputSums(rows[0].z2.shape[1], device=rows[0].z2.device)
    for block in rows:
        sums.add(block.z2)
    outputs = sums.result()
    errors = {name: Errors(outputs, device=rows[0].z2.device) for name in maps}
    for block in rows:
        for name, connector in maps.items():
            errors[name].add(block.z2, predict(connector, block))
    return tuple(
        scored(name, connector, errors[name].per_output, outputs, tau=tau)
        for name, connector in maps.items()
    )


def scored(
    name: str,
    connector: Connector,
    errors: Float64[Tensor, " n_out"],
    outputs: OutputStats,
    *,
    tau: float,
) -> ScoredMap:
    """What squared errors, summed over rows, and weights say of a map; nothing of losses."""
    alive = outputs.alive
    spread = outputs.spread.sum().item()
    explained = explained_of(errors, outputs)
    nonzero, above = above_of(connector, tau=0.0), above_of(connector, tau=tau)
    W = connector.W.detach()
    return ScoredMap(
        name=name,
        fvu=errors[alive].sum().item() / spread if spread else None,
        mse=errors.sum().item() / max(1, outputs.n_rows * len(errors)),
        explained_quantiles=_quantiles(explained[explained.isfinite()]),
        l1=sum(exact(rows.abs()).sum().item() for rows in W.split(_ROWS)) / W.numel(),
        n_nonzero=int(nonzero.sum()),
        nonzero_mean=_mean(nonzero[alive]),
        nonzero_quantiles=_quantiles(nonzero[alive].double()),
        n_above=int(above.sum()),
        above_mean=_mean(above[alive]),
        above_quantiles=_quantiles(above[alive].double()),
        above_max=int(above.max()),
        ce=None,
        kl=None,
        loss_recovered=None,
        recovered_of_sae=None,
        intervals=(),
    )


_ROWS = 256
"""Of `W`, looked at together: never a copy of all of it."""


def explained_of(
    errors: Float64[Tensor, " n_out"], outputs: OutputStats
) -> Float64[Tensor, " n_out"]:
    """Variance explained of each output; NaN of the dead, and of what has no variance."""
    return torch.where(outputs.spread > 0, 1 - errors / outputs.spread, torch.nan)


@torch.no_grad()
def above_of(connector: Connector, *, tau: float) -> Int64[Tensor, " n_out"]:
    """How many weights above tau each output has, on the CPU."""
    counts = torch.zeros(connector.n_out, dtype=torch.int64)
    for rows in connector.W.split(_ROWS):
        counts += (rows.abs() > tau).sum(0).cpu()
    return counts


def _mean(counts: Int64[Tensor, " n"]) -> float | None:
    return counts.double().mean().item() if len(counts) else None


def _quantiles(values: Float64[Tensor, " n"]) -> tuple[float, ...]:
    return tuple(np.quantile(values.numpy(), QUANTILES).tolist()) if len(values) else ()
