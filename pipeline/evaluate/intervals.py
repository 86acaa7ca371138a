"""How far a number would move with another text of the same kind: a bootstrap over contexts.

Tokens of one context are alike, so contexts are resampled, never tokens (Efron and Tibshirani
1993, percentile intervals). A resampling is a weight a context, and its numbers are those of
weighted sums. What a number is measured against (the mean of an activation, which latents are
alive) is that of the whole text and held fixed.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from jaxtyping import Float64

from pipeline.evaluate.metrics import METRICS, OfSums, Totals
from pipeline.evaluate.report import Interval
from pipeline.evaluate.sums import Columns

LEVEL = 0.95

_BLOCK = 1 << 21
"""Weights in memory at a time, of 8 bytes."""


def intervals(sums: Columns, *, n: int, seed: int) -> tuple[Interval, ...]:
    """Those of the metrics that have one, from `n` resamplings; none of a single context."""
    draws = resampled(sums, n=n, seed=seed)
    if draws is None:
        return ()
    bounded = [m for m in METRICS.values() if isinstance(m, OfSums) and m.interval]
    return percentiles({metric.name: metric.formula(draws) for metric in bounded})


def resampled(sums: Columns, *, n: int, seed: int) -> Totals | None:
    """Sums of `n` draws of as many contexts, with replacement; None of a single context.

    One number of contexts and one seed always give the same draws, whatever is summed.
    """
    table = np.stack(list(sums.values()), 1)
    if n == 0 or len(table) < 2:
        return None
    totals = np.concatenate([weights @ table for weights in _weights(len(table), n, seed)])
    return dict(zip(sums, totals.T, strict=True))


def percentiles(drawn: Mapping[str, Float64[np.ndarray, " n"]]) -> tuple[Interval, ...]:
    """Between what bounds the middle `LEVEL` of the draws lie; none where one is undefined."""
    found: list[Interval] = []
    for name, values in drawn.items():
        if np.isfinite(values).all():
            low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            found.append(Interval(metric=name, low=float(low), high=float(high)))
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
