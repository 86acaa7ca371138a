"""How well predictions agree with what happened."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of pairs (predicted, true); None where one of both does not vary."""

    n: int
    pearson: float | None
    spearman: float | None
    """Pearson's of the ranks, equals sharing their mean rank."""
    slope: float | None
    """Least squares of the true on the predicted, with an intercept."""


def agreement(points: Sequence[tuple[float, float]]) -> Agreement:
    """That of some points."""
    predicted, true = np.array(points, dtype=np.float64).reshape(-1, 2).T
    varies = len(points) > 0 and float(np.ptp(predicted)) > 0
    centred = predicted - predicted.mean() if varies else predicted
    return Agreement(
        n=len(points),
        pearson=_correlation(predicted, true),
        spearman=_correlation(_ranks(predicted), _ranks(true)),
        slope=float(centred @ true / (centred @ centred)) if varies else None,
    )


def _correlation(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float | None:
    if len(x) < 2:
        return None
    varies = min(float(np.ptp(x)), float(np.ptp(y))) > 0
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if varies else None


def _ranks(x: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Each value's place in order; equals get the mean of their places."""
    _, where, n = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(n).astype(np.float64)
    return (last - (n - 1) / 2)[where]
