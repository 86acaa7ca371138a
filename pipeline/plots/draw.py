"""Everything about some runs that can be drawn, into their folders, from what lies there."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.disk import require_run_writable
from pipeline.errors import CheckpointError, ConfigError
from pipeline.finetune.run import is_finetuned
from pipeline.plots.finetune import save_finetune_figures
from pipeline.plots.training import save_curves, save_sweep_figure
from pipeline.runs.belongs import RUN
from pipeline.runs.curves import METRICS
from pipeline.runs.kinds import by_kind, kind_of
from pipeline.runs.names import beside
from pipeline.runs.sweep import SWEEP, members_of


def draw(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Draw the curves of runs as far as they have come, their evaluations, and what compares them.

    Args:
        paths: Of runs and sweeps. The comparison of a sweep goes into its folder, that of several
            runs' evaluations into the folder that they have in common.

    Returns:
        The files.

    Raises:
        ConfigError: there is nothing to draw yet, or a folder may only be read.
        CheckpointError: a folder is not a run, or a file of it is damaged.
    """
    runs, files = list[Path](), list[Path]()
    for path in paths:
        if not (path / SWEEP).exists():
            runs.append(path)
            continue
        members = {name: path / name for name in members_of(path)}
        members = {name: run for name, run in members.items() if _has_curves(run)}
        runs += members.values()
        if members:
            files += save_sweep_figure(members, path)
    for run in runs:
        require_run_writable(run, what="figures")
        files += _of_training(run)
    files += _of_evaluations(runs)
    if not files:
        raise ConfigError(f"{paths[0]} has nothing to draw yet: no line of its curves is written")
    return tuple(files)


def _has_curves(run: Path) -> bool:
    curves = run / METRICS
    return curves.exists() and curves.stat().st_size > 0


def _of_training(run: Path) -> Iterator[Path]:
    if is_finetuned(run):
        yield from save_finetune_figures(run)
    elif _has_curves(run):
        yield from save_curves(run)
    elif not (run / RUN).exists():
        raise CheckpointError(f"{run} is not a run: type saepipe plot RUN, a training's --out")


def _of_evaluations(runs: Sequence[Path]) -> Iterator[Path]:
    evaluated = [run for run in runs if kind_of(run).evaluation(run) is not None]
    for kind, its in by_kind(evaluated).items():
        reports = [kind.evaluation(run) for run in its]
        for report in reports:
            yield from kind.eval_figures(report)
        if len(reports) > 1:
            yield from kind.comparison(reports, beside(runs))
