"""What a map costs the model, and how far that would move with another text of the same kind."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float64

from pipeline.connect.evaluation.report import ScoredMap
from pipeline.evaluate.intervals import LEVEL
from pipeline.evaluate.report import Interval
from pipeline.evaluate.sums import Columns

_BOUNDED = ("fvu", "loss_recovered", "recovered_of_sae")
"""Metrics that get an interval."""
_BLOCK = 1 << 21
"""Numbers of draws in memory at a time, of 8 bytes."""

Totals = Mapping[str, np.ndarray]
"""`[n]` sums by name: those of a whole text, or of so many resamplings of its contexts."""


def losses_of(s: Totals) -> dict[str, np.ndarray]:
    """Of the untouched model, and of the floor and the ceiling of every map."""
    ce = {name: _ratio(s[f"nll_{name}"], s["n_predictions"]) for name in ("clean", "zero", "sae")}
    return {
        **{f"ce_{name}": value for name, value in ce.items()},
        "loss_recovered_sae": _ratio(ce["zero"] - ce["sae"], ce["zero"] - ce["clean"]),
    }


def metrics_of(s: Totals, i: int) -> dict[str, np.ndarray]:
    """Of map number `i`, one formula a line; NaN where a ratio would divide by nothing."""
    ce = _ratio(s[f"nll_{i}"], s["n_predictions"])
    own = losses_of(s)
    gained = own["ce_zero"] - ce
    return {
        "ce": ce,
        "kl": _ratio(s[f"kl_{i}"], s["n_predictions"]),
        "fvu": _ratio(s[f"error_{i}"], s["spread"]),
        "loss_recovered": _ratio(gained, own["ce_zero"] - own["ce_clean"]),
        "recovered_of_sae": _ratio(gained, own["ce_zero"] - own["ce_sae"]),
    }


def resampled(sums: Columns, *, n: int, seed: int) -> Totals | None:
    """Sums of `n` draws of as many contexts, with replacement; None of a single context.

    Tokens of one context are alike, so contexts are drawn (Efron and Tibshirani 1993); the means
    of the outputs, and which of them are alive, are held fixed.
    """
    table = np.stack(list(sums.values()), 1)
    n_contexts = len(table)
    if n == 0 or n_contexts < 2:
        return None
    rng, block = np.random.default_rng(seed), max(1, _BLOCK // n_contexts)
    even = np.full(n_contexts, 1 / n_contexts)
    totals = np.concatenate(
        [
            rng.multinomial(n_contexts, even, size=min(block, n - start)) @ table
            for start in range(0, n, block)
        ]
    )
    return dict(zip(sums, totals.T, strict=True))


def with_losses(scored: ScoredMap, sums: Columns, draws: Totals | None, *, i: int) -> ScoredMap:
    """A map's scores with what it costs, as map number `i` of these sums."""
    totals = {name: values.sum(keepdims=True) for name, values in sums.items()}
    numbers = {name: number(value) for name, value in metrics_of(totals, i).items()}
    del numbers["fvu"]  # it is there, from the same errors
    found: list[Interval] = []
    for name, drawn in metrics_of(draws, i).items() if draws is not None else ():
        if name in _BOUNDED and np.isfinite(drawn).all():
            low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            found.append(Interval(metric=name, low=float(low), high=float(high)))
    return replace(scored, **numbers, intervals=tuple(found))


def number(value: Float64[np.ndarray, " 1"]) -> float | None:
    """As it stands in a report."""
    return None if np.isnan(value).any() else value.item()


def _ratio(
    above: Float64[np.ndarray, " n"], below: Float64[np.ndarray, " n"]
) -> Float64[np.ndarray, " n"]:
    return np.divide(above, below, out=np.full_like(below, np.nan), where=below != 0)
