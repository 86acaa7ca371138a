"""The best few entries of each feature, from a stream that is too long to keep."""

from typing import final

import numpy as np
from jaxtyping import Bool, Int, Shaped

KEYS = ("feature", "score", "context", "position")
"""Fields that every entry has; no two entries agree in feature, context and position."""
_MIN_BUFFER = 2**14  # entries: sorting fewer at a time costs more than it saves


def entry_dtype(score: str, **payload: object) -> np.dtype:
    """The dtype of entries: their keys, and what comes along with them.

    Args:
        score: Its dtype: an unsigned integer, or a float that is never below zero.
        payload: Dtypes by name, or pairs of a dtype and a shape.
    """
    fields: list[tuple[object, ...]] = [
        ("feature", np.int32), ("score", score), ("context", np.int64), ("position", np.int32),
    ]  # fmt: skip
    for name, kind in payload.items():
        fields.append((name, *kind) if isinstance(kind, tuple) else (name, kind))
    return np.dtype(fields)


@final
class Leaders:
    """Keeps, of every feature, the `n` entries of largest score: exactly what a sort would keep.

    Equal scores are ordered by context and position, so that the result does not depend on how
    the stream was cut, nor on its order. What is below a feature's `n`-th score is thrown away at
    once; the rest waits in a buffer, as long as all that is kept, and is then merged in by a sort.
    No more than `2 n_features n` entries and one addition are held.
    """

    def __init__(self, n_features: int, n: int, dtype: np.dtype) -> None:
        self.n = n
        self.dtype = dtype
        self.bound = np.zeros(n_features, dtype["score"])
        """Of each feature the score that an entry must reach to be among its `n` best so far."""
        self._best = np.empty(0, dtype)
        self._buffer: list[Shaped[np.ndarray, " _"]] = []
        self._n_buffered = 0
        self._max_buffered = max(_MIN_BUFFER, n_features * n)

    def admits(
        self, feature: Int[np.ndarray, "*pairs"], score: Shaped[np.ndarray, "*pairs"]
    ) -> Bool[np.ndarray, "*pairs"]:
        """Which pairs may be among the best: only of these need an entry be made."""
        return score >= self.bound[feature]

    def add(self, entries: Shaped[np.ndarray, " n"]) -> None:
        """Take in some entries, in any order."""
        self._buffer.append(entries[self.admits(entries["feature"], entries["score"])])
        self._n_buffered += len(self._buffer[-1])
        if self._n_buffered > self._max_buffered:
            self._merge()

    def best(self) -> Shaped[np.ndarray, " n"]:
        """What is kept: feature after feature, of each the largest score first."""
        self._merge()
        return self._best

    def _merge(self) -> None:
        entries = np.concatenate([self._best, *self._buffer])
        order = _order(entries)
        feature = entries["feature"][order]
        starts = np.searchsorted(feature, np.arange(len(self.bound)))
        rank = np.arange(len(order)) - starts[feature]
        self._best = entries[order[rank < self.n]]
        last = order[rank == self.n - 1]
        self.bound[entries["feature"][last]] = entries["score"][last]
        self._buffer, self._n_buffered = [], 0


def _order(entries: Shaped[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """By feature, then descending score, then context and position.

    One sort of 64 bits, of which the feature takes the first and the score the rest, takes a tenth
    of the time of a sort by four keys: that is left for those that it finds equal.
    """
    feature, score = entries["feature"], entries["score"]
    # The bits of a float that is not negative are in the order of its values.
    bits = ~(score if score.dtype.kind == "u" else score.view(f"u{score.dtype.itemsize}"))
    n_bits = 63 - int(feature.max(initial=0)).bit_length()
    n_lost = max(0, 8 * bits.dtype.itemsize - n_bits)
    key = (feature.astype(np.uint64) << n_bits) | (bits >> n_lost).astype(np.uint64)
    order = np.argsort(key)
    ordered = key[order]
    equal = ordered[1:] == ordered[:-1]
    if equal.any():
        tied = np.flatnonzero(np.append(equal, False) | np.append(False, equal))
        of = order[tied]
        keys = (entries["position"][of], entries["context"][of], bits[of], feature[of])
        order[tied] = of[np.lexsort(keys)]
    return order
