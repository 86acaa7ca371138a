"""The curves of a run: `metrics.jsonl`, one JSON line every few steps."""

import json
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar, cast

from actstore.files import sync_folder
from pipeline.errors import CheckpointError
from pipeline.runs.checkpoints import FOLDER


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Where a training stands; all but `run`, `n_steps` and `reused` are in metrics.jsonl."""

    run: Path
    step: int
    """Steps done; `n_steps - step` are left."""
    n_steps: int
    rows: int
    """Rows seen, `step` times the batch size."""
    loss: float
    """All that is minimised, of this step's batch before its update, as all that follows; but for
    the last line of an SAE's curves, which tells what the one that is left behind makes of it."""
    recon: float
    """Mean over rows of the squared error's sum: `||x - x_hat||^2`, `||z2 - z2_hat||^2`."""
    sparsity: float
    """The penalty with its coefficient."""
    beta: float
    """Coefficient of the penalty."""
    lr: float
    sparse: bool
    """Whether only active latents are computed."""
    rows_per_s: float
    """Since the line before; the one figure that two equal runs do not share."""
    reused: bool = False
    """The run was already complete: nothing was trained."""


@dataclass(frozen=True, kw_only=True)
class TrainReport(StepReport):
    """Where the training of a sparse autoencoder stands."""

    aux: float
    """AuxK, the gate's own reconstruction, or what nested dictionaries add to `recon`."""
    l0: float
    """Mean number of active latents of a row."""
    l1: float
    """Mean of `||z||_1`."""
    explained_variance: float | None = None
    """Over the batch, around the batch's mean; None where its rows are all equal."""
    n_dead: int
    """Latents silent for the config's `dead_window`, or for as long as training goes on so far."""
    dead_over: int = 0
    """So many rows; 0 in runs of versions that counted none before the window was full."""
    n_constant: int = 0
    """Latents active on nearly all rows of the batch."""
    n_resampled: int
    """Latents resampled so far."""


@dataclass(frozen=True, kw_only=True)
class ConnectStep(StepReport):
    """Where the training of a connector stands."""

    fvu: float | None = None
    """`sum (z2 - z2_hat)^2 / sum (z2 - mean)^2` over the batch and the outputs predicted; None
    where these are all equal."""
    weights: float
    """Weights per output predicted whose size is above `WEIGHTY`."""
    nonzero: float
    """Weights per output predicted that are not zero."""


WEIGHTY = 0.1
"""From where on the authors of connectors count a weight: Riggs, Mitchell and Kaufman 2023."""
AnyReport = TypeVar("AnyReport", bound=StepReport)
METRICS = "metrics.jsonl"
NOT_IN_LINES = {"run", "n_steps", "reused"}


class Curves(AbstractContextManager["Curves"]):
    """Appends reports to a run's metrics.jsonl, after its first `keep` bytes; closed at exit.

    Raises:
        CheckpointError: these are not all there, or not lines of curves. What follows them is what
            a crash left, and goes.
    """

    def __init__(self, path: Path, *, keep: int) -> None:
        _require_whole(path, keep)
        self._file = path.open("ab")
        self._file.truncate(min(keep, path.stat().st_size))
        self._file.seek(0, os.SEEK_END)
        sync_folder(path.parent)

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def append(self, report: StepReport) -> None:
        """Write one line, at once visible to whoever follows the file."""
        names = [f.name for f in fields(report) if f.name not in NOT_IN_LINES]
        line = {name: getattr(report, name) for name in names}
        self._file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._file.flush()

    def sync(self) -> int:
        """Make all lines survive a power cut; the file's length in bytes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()


def _require_whole(path: Path, n_bytes: int) -> None:
    try:
        kept = path.read_bytes()[:n_bytes] if n_bytes else b""
        if len(kept) < n_bytes:
            raise ValueError(f"{len(kept)} of its first {n_bytes} bytes are left")  # noqa: TRY301
        if len(kept) > sum(len(line) + 1 for line, _ in _lines(kept)):
            raise ValueError("a line has no end")  # noqa: TRY301
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is damaged ({error}): put a copy back, or delete {path.parent / FOLDER} to "
            "train from the start, or choose another --out"
        ) from error


def _lines(data: bytes) -> Iterator[tuple[bytes, dict[str, float | None]]]:
    """Each whole line, and what it says; a last one without an end is none."""
    for line in data.split(b"\n")[:-1]:
        told = json.loads(line)
        if not isinstance(told, dict):
            raise ValueError(f"{told!r} is no line of curves")  # noqa: TRY004 - of a file
        yield line, cast("dict[str, float | None]", told)


def defined(value: float) -> float | None:
    """What JSON and a reader can take: not a number is None."""
    return value if math.isfinite(value) else None


def read_curves(path: Path) -> Iterator[dict[str, float]]:
    """The lines of a metrics.jsonl, as dicts without what is undefined.

    An unfinished last line is left out.
    """
    try:
        for _, told in _lines(path.read_bytes()):
            yield {key: value for key, value in told.items() if value is not None}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"cannot read the curves in {path}: {error}") from error


def last_report(
    run: Path, kind: type[AnyReport], *, n_steps: int, reused: bool = True
) -> AnyReport:
    """How a complete run ended."""
    path = run / METRICS
    lines = list(read_curves(path))
    try:
        return kind(run=run, **lines[-1], n_steps=n_steps, reused=reused)  # pyright: ignore[reportArgumentType]
    except (IndexError, TypeError) as error:
        raise CheckpointError(f"{path} does not end in a line of curves: {error}") from error
