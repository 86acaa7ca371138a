"""Everything about some runs that can be drawn, into their folders, from what lies there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.disk import require_run_writable
from pipeline.errors import CheckpointError, ConfigError
from pipeline.finetune.run import is_finetuned
from pipeline.plots.finetune import save_finetune_figures
from pipeline.plots.steer import save_steer_figure
from pipeline.plots.training import save_curves, save_sweep_figure
from pipeline.runs.belongs import RUN, told_by
from pipeline.runs.curves import METRICS
from pipeline.runs.folder import require_own
from pipeline.runs.kinds import RunKind, by_kind, kind_of
from pipeline.runs.names import beside
from pipeline.runs.sweep import SWEEP, members_of
from pipeline.steer.report import steerings_of


def draw(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Draw the curves of runs as far as they have come, their evaluations, and what compares them.

    Of what was steered with a run, sweeps of strengths are drawn.

    Args:
        paths: Of runs and sweeps. The comparison of a sweep goes into its folder, that of several
            runs' evaluations into the folder that they have in common.

    Returns:
        The files.

    Raises:
        ConfigError: there is nothing to draw yet, or a folder may only be read.
        CheckpointError: a folder is not a run, or a file of it is damaged.
    """
    runs, sweeps, files = list[Path](), dict[Path, dict[str, Path]](), list[Path]()
    for path in paths:
        if (path / SWEEP).exists():
            members = {name: path / name for name in members_of(path)}
            drawn = {name: run for name, run in members.items() if _has_curves(run)}
            runs += drawn.values()
            sweeps[path] = {n: run for n, run in drawn.items() if not is_finetuned(run)}
        else:
            runs.append(path)
    for run in runs:  # nothing is drawn before all can be
        require_run_writable(run, what="figures")
        _require_own_curves(run)
    reports = _evaluations(runs)
    steerings = [report for run in runs for report in steerings_of(run)]
    for path, members in sweeps.items():
        files += save_sweep_figure(members, path) if members else ()
    for run in runs:
        files += save_finetune_figures(run) if is_finetuned(run) else _curves(run)
    for kind, its in reports.items():
        for report in its:
            files += kind.eval_figures(report)
        files += kind.comparison(its, beside(runs)) if len(its) > 1 else ()
    for steering in steerings:
        files += save_steer_figure(steering)
    if not files:
        raise ConfigError(f"{paths[0]} has nothing to draw yet: no line of its curves is written")
    return tuple(files)


def _has_curves(run: Path) -> bool:
    curves = run / METRICS
    return curves.exists() and curves.stat().st_size > 0


def _require_own_curves(run: Path) -> None:
    """Raise CheckpointError where there is no run, or one that has ended without its curves."""
    if not (told := told_by(run)):
        damaged = (run / RUN).exists()
        why = f"{RUN} is damaged" if damaged else "type saepipe plot RUN, a training's --out"
        raise CheckpointError(f"{run} is not a run: {why}")
    if told.get("sha256"):
        require_own(run / METRICS, str(told.get("curves_sha256", "")))


def _curves(run: Path) -> tuple[Path, ...]:
    return save_curves(run) if _has_curves(run) else ()


def _evaluations(runs: Sequence[Path]) -> dict[RunKind, list[Any]]:
    """The reports that runs have, by their kind."""
    found = {run: kind_of(run).evaluation(run) for run in runs}
    by = by_kind([run for run, report in found.items() if report is not None])
    return {kind: [found[run] for run in its] for kind, its in by.items()}
