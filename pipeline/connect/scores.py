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
exactly zero are counted too. Where the two sites are the input and output of one MLP, so are its
own weights.

What a map costs the model is told by losses; how far these would move with another text of the same
kind, by the bootstrap of `evaluate/intervals.py`.
"""

from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from pipeline.connect.connector import Connector, PairLatents
from pipeline.connect.report import BOUNDED, LayerWeights
from pipeline.evaluate.intervals import percentiles
from pipeline.evaluate.metrics import Totals, ratio, recovered
from pipeline.evaluate.report import QUANTILES
from pipeline.evaluate.sums import exact, zeros
from pipeline.lm.model import LanguageModel
from pipeline.lm.sites import MLP, LayerSite, Site
from pipeline.sae.kernels import kernels_for

_CONSTANT = 1e-12
"""Variance, as a share of the mean square, that float32 latents cannot have."""


@final
class OutputStats:
    """Statistics over the rows that were added, on the CPU."""

    def __init__(self, n_out: int, *, device: torch.device) -> None:
        self.n_rows = 0
        self._sum, self._square = (zeros(n_out, device=device) for _ in range(2))
        self._n_active = torch.zeros(n_out, dtype=torch.int64)

    @torch.no_grad()
    def add(self, z2: Float32[Tensor, "rows n_out"]) -> None:
        """Take in the latents of the next rows."""
        wide = exact(z2)
        self.n_rows += len(z2)
        self._sum += wide.sum(0)
        self._square += wide.square().sum(0)
        self._n_active += (z2 > 0).sum(0).cpu()

    @property
    def mean(self) -> Float64[Tensor, " n_out"]:
        """Over rows."""
        return self._sum.cpu() / max(1, self.n_rows)

    @property
    def spread(self) -> Float64[Tensor, " n_out"]:
        """Sum over rows of the squared distance from the mean; exactly 0 of what is constant."""
        square = self._square.cpu()
        spread = square - self._sum.cpu().square() / max(1, self.n_rows)
        return torch.where(spread > _CONSTANT * square, spread, 0.0)

    @property
    def alive(self) -> Bool[Tensor, " n_out"]:
        """Those above zero in at least one row."""
        return self._n_active > 0

    @property
    def l0(self) -> float:
        """How many are above zero in a row, on average."""
        return int(self._n_active.sum()) / max(1, self.n_rows)


SPARSE = 0.05
"""Share of inputs that are active, below which only those are multiplied.

Measured on one core for 128 rows, with 640 and with 4096 latents: the sums over active inputs take
half as long as the dense product at this share, and as long as it at 0.1.
"""


@torch.no_grad()
def predict(connector: Connector, latents: PairLatents) -> Float32[Tensor, "rows n_out"]:
    """As `connector(latents.z1)`; which inputs are active is found once for all maps."""
    W, b = connector.W, connector.b
    kernels = kernels_for(W.device)
    if kernels is not None and latents.density > SPARSE:
        kernels = None
    z2 = latents.times(W, kernels=kernels, dtype=torch.float32).add_(b)
    return z2.relu_() if connector.activation == "relu" else z2


@torch.no_grad()
def squared_errors(
    z2: Float32[Tensor, "rows n_out"], z2_hat: Float32[Tensor, "rows n_out"]
) -> Float64[Tensor, "rows n_out"]:
    """Of each output in each row."""
    return (exact(z2) - exact(z2_hat)).square()


def scores_of(
    connector: Connector, errors: Float64[Tensor, " n_out"], outputs: OutputStats, *, tau: float
) -> dict[str, Any]:
    """What squared errors, summed over rows, and weights say of a map: fields of `MapScores`."""
    alive = outputs.alive
    spread = outputs.spread.sum().item()
    explained = explained_of(errors, outputs)
    nonzero, above = above_of(connector, tau=0.0), above_of(connector, tau=tau)
    W = connector.W.detach()
    return {
        "fvu": errors[alive].sum().item() / spread if spread else None,
        "mse": errors.sum().item() / max(1, outputs.n_rows * len(errors)),
        "explained_quantiles": _quantiles(explained[explained.isfinite()]),
        "l1": sum(exact(rows.abs()).sum().item() for rows in W.split(_ROWS)) / W.numel(),
        "n_nonzero": int(nonzero.sum()),
        "nonzero_mean": _mean(nonzero[alive]),
        "nonzero_quantiles": _quantiles(nonzero[alive].double()),
        "n_above": int(above.sum()),
        "above_mean": _mean(above[alive]),
        "above_quantiles": _quantiles(above[alive].double()),
        "above_max": int(above.max()),
    }


_ROWS = 256
"""Of `W`, looked at together: never a copy of all of it."""


def explained_of(
    errors: Float64[Tensor, " n_out"], outputs: OutputStats
) -> Float64[Tensor, " n_out"]:
    """Variance explained of each output; NaN of the dead, and of what has no variance."""
    spread = outputs.spread
    return torch.where(spread > 0, 1 - errors / spread, torch.nan)


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


def losses_of(s: Totals) -> dict[str, np.ndarray]:
    """Of the untouched model, and of the floor and the ceiling of every map."""
    ce = {name: ratio(s[f"nll_{name}"], s["n_predictions"]) for name in ("clean", "zero", "sae")}
    return {
        **{f"ce_{name}": value for name, value in ce.items()},
        "loss_recovered_sae": recovered(ce["zero"], ce["sae"], ce["clean"]),
    }


def metrics_of(s: Totals, i: int) -> dict[str, np.ndarray]:
    """Of map number `i`, one formula a line; NaN where a ratio would divide by nothing."""
    ce = ratio(s[f"nll_{i}"], s["n_predictions"])
    own = losses_of(s)
    return {
        "ce": ce,
        "kl": ratio(s[f"kl_{i}"], s["n_predictions"]),
        "fvu": ratio(s[f"error_{i}"], s["spread"]),
        "loss_recovered": recovered(own["ce_zero"], ce, own["ce_clean"]),
        "recovered_of_sae": recovered(own["ce_zero"], ce, own["ce_sae"]),
    }


def costs_of(totals: Totals, draws: Totals | None, i: int) -> dict[str, Any]:
    """What map number `i` of these sums costs the model: the other fields of `MapScores`."""
    numbers = {name: number(value) for name, value in metrics_of(totals, i).items()}
    del numbers["fvu"]  # `scores_of` has it, from the same errors
    drawn = {} if draws is None else metrics_of(draws, i)
    bounded = {name: values for name, values in drawn.items() if name in BOUNDED}
    return numbers | {"intervals": percentiles(bounded)}


def number(value: Float64[np.ndarray, " 1"]) -> float | None:
    """As it stands in a report."""
    return None if np.isnan(value).any() else value.item()


def layer_weights(
    lm: LanguageModel, source: Site, target: Site, *, tau: float
) -> LayerWeights | None:
    """How many weights the MLP between two sites has, biases aside; None where there is none.

    An MLP reads the residual stream after the attention; in a parallel layer (Pythia) it reads what
    the attention reads, the layer's own input.
    """
    if not (isinstance(source, LayerSite) and isinstance(target, LayerSite)):
        return None
    reads = "resid_pre" if lm.shape.parallel else "resid_mid"
    kinds = source.kind.name, target.kind.name
    has_mlp = MLP.module in lm.shape.family.parts
    if source.layer != target.layer or kinds != (reads, "mlp_out") or not has_mlp:
        return None
    mlp = lm.body.get_submodule(lm.shape.mlp_path(target.layer, name=lm.name))
    matrices = [weight for weight in mlp.parameters() if weight.dim() > 1]
    return LayerWeights(
        n=sum(weight.numel() for weight in matrices),
        n_above=sum(int((weight.float().abs() > tau).sum()) for weight in matrices),
    )
