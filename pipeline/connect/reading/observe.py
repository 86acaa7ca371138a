"""One pass over rows: what both SAEs see in them, and how well the connector predicts it.

Latents above zero are held in memory row after row and feature after feature.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int, Int32, Int64
from torch import Tensor

from pipeline.connect.connector import Connector, PairLatents
from pipeline.connect.scores import OutputStats, explained_of, predict, squared_errors
from pipeline.errors import DataError
from pipeline.evaluate.sums import zeros


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


_BLOCK = 2**22
"""Latents of the wider end that are compared at once."""
MAX_ACTIVE = 2**26
"""Active latents that are kept of both ends together: about 1.5 GiB."""

_Entries = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Row, feature and value of some latents."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Observed:
    """What was seen on some rows of a store."""

    source: Active
    target: Active
    explained: Float64[np.ndarray, " n_out"]
    """Share of each output's variance that the connector predicts; NaN where it does not vary."""

    @property
    def n_rows(self) -> int:
        """Rows read."""
        return self.source.n_rows


@torch.inference_mode()
def observe(
    feed: Iterable[PairLatents],
    connector: Connector,
    *,
    on_rows: Callable[[int], None] = lambda _: None,
) -> Observed:
    """Keep the active latents of rows, and see how well the first predict the second.

    The feed is on the connector's device; `on_rows` is told the number of rows done. It stops early
    where more than `MAX_ACTIVE` latents are active.

    Raises:
        DataError: a latent is not finite, or there is no row.
    """
    device = connector.W.device
    outputs = OutputStats(connector.n_out, device=device)
    errors = zeros(connector.n_out, device=device)
    ends: tuple[list[_Entries], list[_Entries]] = ([], [])
    n_rows = n_active = 0
    for block in feed:
        for rows in _pieces(block):
            outputs.add(rows.z2)
            errors += squared_errors(rows.z2, predict(connector, rows)).sum(0)
        for found, z in zip(ends, (block.z1, block.z2), strict=True):
            found.append(_active(z, first_row=n_rows))
            n_active += len(found[-1][0])
        n_rows += len(block.z1)
        on_rows(n_rows)
        if n_active > MAX_ACTIVE:
            break
    if not n_rows:
        raise DataError("the store has no row that both SAEs were trained on: nothing can be read")

    def joined(found: Sequence[_Entries], n_features: int) -> Active:
        row, feature, value = map(np.concatenate, zip(*found, strict=True))
        return Active(n_rows=n_rows, n_features=n_features, row=row, feature=feature, value=value)

    return Observed(
        source=joined(ends[0], connector.n_in),
        target=joined(ends[1], connector.n_out),
        explained=explained_of(errors.cpu(), outputs).numpy(),
    )


def _pieces(block: PairLatents) -> Iterator[PairLatents]:
    """Fewer rows at a time: predictions are compared in float64."""
    n_rows = max(1, _BLOCK // max(block.z1.shape[1], block.z2.shape[1]))
    for z1, z2 in zip(block.z1.split(n_rows), block.z2.split(n_rows), strict=True):
        if len(z1):
            yield PairLatents(z1=z1, z2=z2)


def _active(z: Float32[Tensor, "rows features"], *, first_row: int) -> _Entries:
    """Those above zero."""
    if not bool(z.isfinite().all()):
        raise DataError(
            "latents are not finite: the weights of an SAE, or the rows of the store, overflow or "
            "hold NaN; train it again, with a lower --lr"
        )
    latents = z.cpu().numpy()
    where = np.flatnonzero(latents > 0)
    row, feature = np.divmod(where, z.shape[1])
    value = latents.reshape(-1)[where]
    return (row + first_row).astype(np.int32), feature.astype(np.int32), value
