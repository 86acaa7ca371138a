"""`saepipe runs`: the runs below a folder, a line each."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.runs.listing import ListedRun, list_runs
from pipeline.tables import Column, Table
from pipeline.terminal.screen import Screen

_HEADS = ("run", "what", "when", "state", "L0", "EV", "loss\nadded", "loss\nrecovered")
_FOLDS = 4
"""Columns of words, which come first."""


def run_runs(folder: Path, *, screen: Screen) -> Sequence[ListedRun]:
    """Show which runs are in a folder and in all its folders."""
    found = list_runs(folder)
    if found:
        screen.draw(runs_table(folder, found))
    else:
        screen.say(f"no run in {folder}")
    return found


def runs_table(folder: Path, found: Sequence[ListedRun]) -> Table:
    """A line a run, and what they were evaluated on: once, where it is the same of all."""
    texts = {run.text for run in found} - {""}
    columns = [
        Column(head=head, folds=i < _FOLDS, align="left" if i < _FOLDS else "right")
        for i, head in enumerate(_HEADS)
    ]
    columns += [Column(head="on", folds=True)] * (len(texts) > 1)
    rows = [
        [
            str(run.path if run.path == folder else run.path.relative_to(folder)),
            f"{run.kind} {run.arch} {run.site}".strip(),
            run.when[:16].replace("T", " "),
            f"{run.state}, {run.steps:,} steps made" if _shows_steps(run) else run.state,
            *map(_short, (run.l0, run.explained_variance, run.loss_added, run.loss_recovered)),
            *[run.text or "-"] * (len(texts) > 1),
        ]
        for run in found
    ]
    on = f"; evaluated on {min(texts)}" if len(texts) == 1 else ""
    return Table(title=f"runs in {folder}{on}", columns=columns, sections=[rows], ruled=False)


def _shows_steps(run: ListedRun) -> bool:
    return run.state == "unfinished" and run.steps is not None


def _short(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
