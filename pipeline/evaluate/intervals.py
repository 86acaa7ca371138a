"""How far a metric would move with another text of the same kind: a bootstrap over contexts.

Tokens of one context are alike, so contexts are resampled, never tokens (Efron and Tibshirani
1993, percentile intervals). A resampling is a weight a context, and its metrics are those of
weighted sums.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from pipeline.evaluate.metrics import metrics
from pipeline.evaluate.report import Interval
from pipeline.evaluate.sums import Columns

LEVEL = 0.95
METRICS = (
    "ce_patched", "loss_recovered", "loss_recovered_mean", "kl", "explained_variance", "mse",
    "cosine", "l0",
)  # fmt: skip
"""Those that get an interval."""

_BLOCK = 1 << 21
"""Weights in memory at a time, of 8 bytes."""


def intervals(sums: Columns, *, n: int, seed: int) -> tuple[Interval, ...]:
    """Percentile intervals from `n` resamplings; the mean of explained variance is held fixed.

    One number of contexts and one seed always give the same resamplings. A single context gives no
    interval, nor does a metric that some resampling leaves undefined.
    """
    table = np.stack(list(sums.values()), 1)
    if n == 0 or len(table) < 2:
        return ()
    totals = np.concatenate([weights @ table for weights in _weights(len(table), n, seed)])
    drawn = metrics(dict(zip(sums, totals.T, strict=True)))
    found: list[Interval] = []
    for metric in METRICS:
        if np.isfinite(drawn[metric]).all():
            low, high = np.quantile(drawn[metric], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            found.append(Interval(metric=metric, low=float(low), high=float(high)))
    return tuple(found)


def _weights(n_contexts: int, n: int, seed: int) -> Iterator[Float64[np.ndarray, "some contexts"]]:
    """How often each resampling drew each context, some resamplings at a time."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // n_contexts)
    for start in range(0, n, block):
        size = min(block, n - start)
        drawn = rng.integers(n_contexts, size=(size, n_contexts))
        drawn += np.arange(size)[:, None] * n_contexts
        counts = np.bincount(drawn.ravel(), minlength=size * n_contexts)
        yield counts.reshape(size, n_contexts).astype(np.float64)
