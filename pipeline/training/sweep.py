"""Train a grid of settings in one pass, into one folder with a table."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.curves import StepReport
from pipeline.errors import DataError
from pipeline.train import OnStep, Outcome, require_trainable, train_all
from pipeline.training.grid import Point
from pipeline.training.record import writing
from pipeline.training.sweep_table import enter_sweep, write_table


def train_sweep(
    points: Sequence[Point], *, out: Path, resume: bool = False, on_step: OnStep | None = None
) -> list[Outcome]:
    """Train every point; `out/sweep.csv` says at any time how each of them stands.

    One point alone is a plain run. A point that diverges stops alone; its run and the table keep
    the reason.

    Args:
        points: What `pipeline.training.grid.expand` made of the settings.
        out: Folder of the sweep.
        resume: Go on with what is unfinished.
        on_step: Called with each line of each run's curves.

    Returns:
        How each ended, in their order.

    Raises:
        ConfigError: `out` holds another sweep or something else, or a setting is impossible.
        CheckpointError: a run in it is damaged, or the disk fails.
        StoreError: the store is missing, unfinished or damaged.
    """
    configs = [point.config for point in points]
    if len(points) == 1:
        return train_all(configs, resume=resume, on_step=on_step)
    require_trainable(configs)  # before there is a folder that other points could not have
    enter_sweep(out, points)
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
