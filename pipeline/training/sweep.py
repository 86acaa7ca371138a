"""Train a grid of settings in one pass, into one folder with a table.

sweep.json          which runs are its members, and what varies between them
sweep.csv           a line a member: its folder, how it stands, what varies, its last curves
sweep.png           the members' frontier
l1=0.001+seed=0/    a run, as one that was trained alone
"""

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

from pipeline.config.grid import Point, plain_name
from pipeline.disk import writing
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.runs.belongs import RUN
from pipeline.runs.curves import METRICS, StepReport
from pipeline.runs.folder import is_free, taken_back, training_in
from pipeline.runs.sweep import SWEEP, SweepDocument, members_of
from pipeline.tables import write_csv
from pipeline.training.train import OnStep, Outcome, require_trainable, train_all

TABLE = "sweep.csv"
LAST = "last_"
"""Begins the names of columns that are measured: `l1` is also a setting, as are `l0` and `lr`."""

_TAIL = 2**16  # bytes that surely hold a line of curves


def enter_sweep(path: Path, points: Sequence[Point], *, locks: ExitStack) -> None:
    """Make `path` the folder of a sweep of `points`, unless it is; `locks` hold it.

    Raises:
        ConfigError: the folder holds another sweep, or something else, or is trained into by
            another process.
        CheckpointError: its sweep.json is damaged.
    """
    members = tuple(point.name for point in points)
    if not (path / SWEEP).exists():
        if (path / RUN).exists():
            raise ConfigError(f"{path} is a single run, not a sweep: choose another --out")
        if not is_free(path, but=SWEEP):
            raise ConfigError(f"{path} exists and is not a sweep: choose another --out")
    locks.enter_context(training_in(path))
    if (path / SWEEP).exists():
        _require_same(path, there={*members_of(path)}, now={*members})
        return
    locks.enter_context(
        taken_back(
            path / SWEEP, path / TABLE, began=lambda: any((path / m).exists() for m in members)
        )
    )
    SweepDocument(members=members, varies=_varying(points)).write(path)


def named_as_there(points: Sequence[Point]) -> tuple[Point, ...]:
    """The points under the names that their folders have: sweeps of before had commas in them.

    Raises:
        CheckpointError: the sweep that is there has a damaged sweep.json.
    """
    out = points[0].config.out.parent
    if len(points) == 1 or not (out / SWEEP).exists():
        return tuple(points)
    members = members_of(out)
    there = {plain_name(name): name for name in members} | {name: name for name in members}
    names = [there.get(point.name, point.name) for point in points]
    return tuple(
        replace(point, name=name, config=replace(point.config, out=out / name))
        for name, point in zip(names, points, strict=True)
    )


def _varying(points: Sequence[Point]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for point in points for key in point.varies))


def write_table(path: Path, points: Sequence[Point], *, states: Mapping[str, str]) -> None:
    """Write sweep.csv: how each member stands now.

    Args:
        path: Folder of the sweep.
        points: Its members.
        states: By member: `running`, `complete`, or `diverged: ...` with the reason.

    Raises:
        CheckpointError: the curves of a member cannot be read.
        OSError: the disk is full or fails; the table is as it was.
    """
    ends = [
        {LAST + key: value for key, value in _last_line(point.config.out / METRICS).items()}
        for point in points
    ]
    measured = dict.fromkeys(key for end in ends for key in end)
    rows = [
        {"folder": point.name, "state": states[point.name]}
        | {key: _cell(value) for key, value in point.varies.items()}
        | end
        for point, end in zip(points, ends, strict=True)
    ]
    columns = ["folder", "state", *_varying(points), *measured]
    write_csv(path / TABLE, rows, columns=columns, line_end="\r\n")


def _require_same(path: Path, *, there: set[str], now: set[str]) -> None:
    """Raise ConfigError naming the members that only one of two sweeps has."""
    if there != now:
        only = [f"only there: {_some(there - now)}"] if there - now else []
        only += [f"only now: {_some(now - there)}"] if now - there else []
        raise ConfigError(
            f"{path} holds a sweep of other members ({'; '.join(only)}): choose another --out"
        )


def _some(names: set[str]) -> str:
    first = sorted(names)[:3]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def _last_line(metrics: Path) -> dict[str, object]:
    """The last whole line of a run's curves; nothing where there is none yet."""
    try:
        with metrics.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            lines = file.read().split(b"\n")[:-1]
        return cast("dict[str, object]", json.loads(lines[-1])) if lines else {}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read the curves in {metrics}: {error}") from error


def _cell(value: object) -> object:
    """A setting as one cell: lists as the names of folders have them."""
    if isinstance(value, list | tuple):
        return " ".join(map(str, cast("Sequence[object]", value)))
    return "none" if value is None else value


def train_sweep(
    points: Sequence[Point], *, out: Path, resume: bool = True, on_step: OnStep | None = None
) -> list[Outcome]:
    """Train every point; `out/sweep.csv` says at any time how each of them stands.

    One point alone is a plain run. A point that diverges stops alone; its run and the table keep
    the reason.

    Args:
        points: What `pipeline.config.grid.expand` made of the settings.
        out: Folder of the sweep.
        resume: Whether to go on with what is unfinished.
        on_step: Called with each line of each run's curves.

    Returns:
        How each ended, in their order.

    Raises:
        ConfigError: `out` holds another sweep or something else, or is trained into by another
            process, or a setting is impossible.
        CheckpointError: a run in it is damaged, or the disk fails.
        StoreError: the store is missing, unfinished or damaged.
    """
    configs = [point.config for point in points]
    if len(points) == 1:
        return train_all(configs, resume=resume, on_step=on_step)
    require_trainable(configs)  # before there is a folder that other points could not have
    with ExitStack() as locks:
        enter_sweep(out, points, locks=locks)
        return _train_points(points, out=out, resume=resume, on_step=on_step)


def _train_points(
    points: Sequence[Point], *, out: Path, resume: bool, on_step: OnStep | None
) -> list[Outcome]:
    names = {point.config.out.resolve(): point.name for point in points}
    states = {point.name: "running" for point in points}

    def end(path: Path, outcome: Outcome) -> None:
        diverged = isinstance(outcome, DataError)
        states[names[path]] = f"diverged: {outcome}" if diverged else "complete"
        tell()

    def tell() -> None:
        with writing(out):
            write_table(out, points, states=states)

    tell()
    configs = [point.config for point in points]
    return train_all(configs, resume=resume, on_step=on_step, on_end=end)


def complete(outcomes: Sequence[Outcome]) -> list[StepReport]:
    """Those that reached their end.

    Raises:
        DataError: none did; the reason of the first.
    """
    reports = [outcome for outcome in outcomes if isinstance(outcome, StepReport)]
    if not reports:
        raise next(outcome for outcome in outcomes if isinstance(outcome, DataError))
    return reports
