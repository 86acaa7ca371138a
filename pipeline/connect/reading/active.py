"""Latents above zero, held in memory row after row and feature after feature."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float32, Float64, Int, Int32, Int64


@dataclass(frozen=True, kw_only=True, eq=False)
class Active:
    """The active latents of some rows at one site, row after row."""

    n_rows: int
    n_features: int
    row: Int32[np.ndarray, " n"]
    """In ascending order."""
    feature: Int32[np.ndarray, " n"]
    value: Float32[np.ndarray, " n"]

    @cached_property
    def n_active(self) -> Int64[np.ndarray, " n_features"]:
        """Rows on which each feature is active."""
        return np.bincount(self.feature, minlength=self.n_features)

    def rows_of(self, feature: int) -> Int32[np.ndarray, " n"]:
        """The rows on which a feature is active, ascending."""
        return self.row[self._of(feature)]

    def values_of(self, feature: int) -> Float32[np.ndarray, " n"]:
        """Its activations there."""
        return self.value[self._of(feature)]

    def mean_over(self, rows: Int[np.ndarray, " n"]) -> Float64[np.ndarray, " n_features"]:
        """Each feature's mean activation over some rows, zeros included."""
        starts, ends = self._starts[rows], self._starts[rows + 1]
        lengths = ends - starts
        before = np.cumsum(lengths) - lengths  # entries of the rows before each one
        entries = np.repeat(starts - before, lengths) + np.arange(lengths.sum())
        total = np.bincount(
            self.feature[entries], self.value[entries].astype(np.float64), self.n_features
        )
        return total / max(1, len(rows))

    def _of(self, feature: int) -> Int64[np.ndarray, " n"]:
        start, stop = self._first[feature : feature + 2].tolist()
        return self._order[start:stop]

    @cached_property
    def _order(self) -> Int64[np.ndarray, " n"]:
        """Entries feature after feature, the rows of each ascending."""
        return np.argsort(self.feature, kind="stable")

    @cached_property
    def _first(self) -> Int64[np.ndarray, " features_1"]:
        """Where in that order the entries of each feature begin."""
        return np.concatenate([[0], np.cumsum(self.n_active)])

    @cached_property
    def _starts(self) -> Int64[np.ndarray, " rows_1"]:
        """Where the entries of each row begin."""
        return np.searchsorted(self.row, np.arange(self.n_rows + 1))


def evenly(rows: Int32[np.ndarray, " n"], *, n: int) -> Int32[np.ndarray, " m"]:
    """At most `n` of some rows, evenly among them."""
    if len(rows) <= n:
        return rows
    return rows[np.linspace(0, len(rows) - 1, n).astype(np.int64)]


def rows_of_any(some: Sequence[Int32[np.ndarray, " _"]], *, n_rows: int) -> Int32[np.ndarray, " n"]:
    """Rows that are in any of these, each once, ascending."""
    met = np.zeros(n_rows, np.bool_)
    for rows in some:
        met[rows] = True
    return np.flatnonzero(met).astype(np.int32)
