"""What a sweep's folder says of itself: sweep.json, which its members are and what varies."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actstore.files import write_json
from pipeline.config.serialization import from_json, to_json
from pipeline.errors import CheckpointError, ConfigError
from pipeline.runs.listing import state_of

FORMAT = 1
SWEEP = "sweep.json"
_LEFT_OUT = ("unfinished", "diverged", "not there")

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class SweepDocument:
    """sweep.json."""

    format: int = FORMAT
    kind: Literal["sweep"] = "sweep"
    members: tuple[str, ...] = ()
    """Names of the folders of its runs."""
    varies: tuple[str, ...] = ()
    """Settings that differ between members; those of `arch` by their own name."""

    def write(self, path: Path) -> None:
        """Write it into the folder of the sweep."""
        write_json(path / SWEEP, to_json(self))


def members_of(path: Path) -> tuple[str, ...]:
    """The names of the folders of a sweep's runs.

    Raises:
        CheckpointError: its sweep.json is damaged, names no run, or is of another version.
    """
    try:
        document = from_json(SweepDocument, json.loads((path / SWEEP).read_bytes()), where=SWEEP)
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{path / SWEEP} is damaged: {error}") from error
    if document.format != FORMAT:
        raise CheckpointError(
            f"{path} is a sweep of format {document.format}, this saepipe reads {FORMAT}"
        )
    if not document.members:
        raise CheckpointError(f"{path / SWEEP} is damaged: it names no run")
    return document.members


def runs_at(
    paths: Sequence[Path], *, note: Callable[[str], None] = log.warning
) -> tuple[Path, ...]:
    """These runs, a sweep's folder being those of its runs that are finished.

    Files of a sweep's folder are passed over, so that `SWEEP/*` is its runs, too.

    Args:
        paths: Of runs and sweeps.
        note: Told of each run that a sweep has and that is left out.

    Raises:
        CheckpointError: a sweep.json is damaged.
        ConfigError: no run of a sweep is finished.
    """
    found = list[Path]()
    for path in paths:
        if (path / SWEEP).exists():
            found += _finished(path, note)
        elif not (path.is_file() and (path.parent / SWEEP).exists()):
            found.append(path)
    return tuple(found)


def _finished(path: Path, note: Callable[[str], None]) -> list[Path]:
    states = {path / name: state_of(path / name) for name in members_of(path)}
    out = {run: state for run, state in states.items() if state.startswith(_LEFT_OUT)}
    if len(out) == len(states):
        run, state = next(iter(out.items()))
        raise ConfigError(f"no run of the sweep {path} is finished; {run.name}: {state}")
    for run, state in out.items():
        note(f"{run} is left out: {state}")
    return [run for run in states if run not in out]
