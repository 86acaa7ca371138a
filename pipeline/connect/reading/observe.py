"""One pass over rows: what both SAEs see in them, and how well the connector predicts it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32
from torch import Tensor

from pipeline.connect.connector import Connector
from pipeline.connect.evaluation.predict import predict
from pipeline.connect.latents import Latents
from pipeline.connect.reading.active import Active
from pipeline.errors import DataError

_BLOCK = 2**22
"""Latents of the wider end that are compared at once."""
MAX_ACTIVE = 2**26
"""Active latents that are kept of both ends together: about 1.5 GiB."""


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
    feed: Iterable[Latents], connector: Connector, *, on_rows: Callable[[int], None] | None = None
) -> Observed:
    """Keep the active latents of rows, and see how well the first predict the second.

    It stops early where more than `MAX_ACTIVE` latents are active.

    Args:
        feed: The latents of both SAEs, block after block, on the connector's device.
        connector: Between them.
        on_rows: Told the number of rows done.

    Raises:
        StoreError: bytes of the store were altered.
        DataError: a latent is not finite, or there is no row.
    """
    ends = _Kept(connector.n_in), _Kept(connector.n_out)
    errors = _Errors(connector.n_out)
    for block in feed:
        for rows in _pieces(block):
            errors.add(predict(connector, rows), rows.z2)
        for end, z in zip(ends, (block.z1, block.z2), strict=True):
            end.add(z)
        if on_rows is not None:
            on_rows(ends[0].n_rows)
        if sum(end.n for end in ends) > MAX_ACTIVE:
            break
    if not ends[0].n_rows:
        raise DataError("the store has no row that both SAEs were trained on: nothing can be read")
    source, target = (end.result() for end in ends)
    return Observed(source=source, target=target, explained=errors.explained(source.n_rows))


def _pieces(block: Latents) -> Iterator[Latents]:
    """Fewer rows at a time: predictions are compared in float64."""
    n_rows = max(1, _BLOCK // max(block.z1.shape[1], block.z2.shape[1]))
    for z1, z2 in zip(block.z1.split(n_rows), block.z2.split(n_rows), strict=True):
        if len(z1):
            yield Latents(z1=z1, z2=z2)


@final
class _Kept:
    """The active latents of one end, so far."""

    def __init__(self, n_features: int) -> None:
        self.n = self.n_rows = 0
        self._n_features = n_features
        self._rows: list[Int32[np.ndarray, " n"]] = []
        self._features: list[Int32[np.ndarray, " n"]] = []
        self._values: list[Float32[np.ndarray, " n"]] = []

    def add(self, z: Float32[Tensor, "rows features"]) -> None:
        if not bool(z.isfinite().all()):
            raise DataError(
                "latents are not finite: the weights of an SAE, or the rows of the store, overflow "
                "or hold NaN; train it again, with a lower --lr"
            )
        latents = z.cpu().numpy()
        where = np.flatnonzero(latents > 0)
        row, feature = np.divmod(where, self._n_features)
        self._rows.append((row + self.n_rows).astype(np.int32))
        self._features.append(feature.astype(np.int32))
        self._values.append(latents.reshape(-1)[where])
        self.n_rows += len(latents)
        self.n += len(where)

    def result(self) -> Active:
        return Active(
            n_rows=self.n_rows,
            n_features=self._n_features,
            row=np.concatenate(self._rows),
            feature=np.concatenate(self._features),
            value=np.concatenate(self._values),
        )


@final
class _Errors:
    """Sums in float64 that say how much of each output's variance is predicted."""

    def __init__(self, n_out: int) -> None:
        self._sums = torch.zeros(3, n_out, dtype=torch.float64)

    def add(
        self, predicted: Float32[Tensor, "rows n_out"], z2: Float32[Tensor, "rows n_out"]
    ) -> None:
        true = z2.double()
        of_error = (predicted.double() - true).square().sum(0)
        self._sums += torch.stack([of_error, true.sum(0), true.square().sum(0)]).cpu()

    def explained(self, n_rows: int) -> Float64[np.ndarray, " n_out"]:
        error, total, squares = self._sums.numpy()
        around_mean = squares - total**2 / max(1, n_rows)
        varies = around_mean > 1e-12 * squares
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(varies, 1 - error / around_mean, np.nan)
