"""What each command shows while it runs and when it ends.

What brings torch is imported inside of functions: a harvest that is complete needs none.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.config.stages import (
    EvalConfig,
    FeatureOrder,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    ReportConfig,
)
from pipeline.progress import Progress
from pipeline.tables import many
from pipeline.terminal.screen import Screen
from pipeline.terminal.words import size

if TYPE_CHECKING:
    from pipeline.config.grid import Point
    from pipeline.finetune.run import FinetuneReport
    from pipeline.harvest.harvest import HarvestSummary
    from pipeline.runs.curves import StepReport


def run_harvest(config: HarvestConfig, *, screen: Screen) -> "HarvestSummary":
    """Harvest what is missing."""
    from pipeline.harvest.harvest import harvest
    from pipeline.terminal.lines import harvest_lines, plan_line, reused_line

    with screen.progress("harvest") as show:
        summary = harvest(
            config,
            on_plan=lambda plan, seconds: screen.say(plan_line(plan, seconds)),
            on_progress=show,
        )
    for line in [reused_line(summary)] if summary.reused else harvest_lines(summary):
        screen.say(line)
    return summary


def run_train(
    points: "Sequence[Point]",
    *,
    out: Path,
    resume: bool,
    screen: Screen,
    log: Sequence[str] = (),
) -> "list[StepReport]":
    """Train what is not complete already, and draw the curves."""
    from pipeline.plots.training import save_curves
    from pipeline.terminal.lines import curve_words, outcome_line
    from pipeline.training.sweep import complete, train_sweep
    from pipeline.training.trackers import make_loggers

    configs = [point.config for point in points]
    with screen.progress("train") as show, closing(make_loggers(log, configs)) as loggers:

        def on_step(report: "StepReport") -> None:
            loggers.log(report)
            total = report.n_steps * configs[0].batch_size
            words = curve_words(report)
            show(Progress(stage="train", done=report.rows, total=total, unit="rows", words=words))

        outcomes = train_sweep(points, out=out, resume=resume, on_step=on_step)
    reports = complete(outcomes)
    save_curves({point.name: point.config.out for point in points}, out)
    for config, outcome in zip(configs, outcomes, strict=True):
        screen.say(outcome_line(outcome, config.out))
    return reports


def run_eval(config: EvalConfig, *, screen: Screen) -> tuple[Any, ...]:
    """Evaluate, and draw figures: of each run into its folder, of several beside them."""
    from pipeline.evaluate.evaluate import draw, evaluate
    from pipeline.runs.kinds import by_kind

    with screen.progress("eval") as show:
        reports = evaluate(config, on_progress=show)
    figures, runs_of = draw(config, reports), by_kind(config.runs)
    for kind, together in figures.items():
        if together:
            files = ", ".join([kind.eval_table, *(path.name for path in together)])
            told = many(len(runs_of[kind]), kind.noun)
            screen.say(f"eval      {told}: {together[0].parent}/{files}")
    return reports


def show_evaluations(config: EvalConfig, *, screen: Screen) -> tuple[Any, ...]:
    """Evaluate, and show it; gives the reports."""
    from pipeline.runs.kinds import by_kind

    reports = run_eval(config, screen=screen)
    for kind, runs in by_kind(config.runs).items():
        for table in kind.eval_tables([report for report in reports if report.run in runs]):
            screen.draw(table)
    screen.note(note for report in reports for note in report.notes)
    return reports


def run_features(config: FeaturesConfig, *, screen: Screen) -> Any:  # noqa: ANN401 - of its kind
    """Find what a run's features fire on, or what a connector makes of them."""
    from pipeline.runs.kinds import kind_of

    with screen.progress("features") as show:
        return kind_of(config.run).features(config, on_progress=show)


def show_features(
    config: FeaturesConfig,
    chosen: Sequence[int],
    *,
    order: FeatureOrder,
    rows: int,
    screen: Screen,
) -> Sequence[Mapping[str, object]]:
    """Find it and show it, or some of it closely; gives what JSON is to hold."""
    from pipeline.runs.kinds import kind_of

    found = run_features(config, screen=screen)
    shown = kind_of(config.run).shown(found, chosen, order=order, rows=rows)
    for line in shown.lines:
        screen.say(line)
    for table in shown.tables:
        screen.draw(table)
    screen.note(shown.notes)
    return shown.documents


def run_report(config: ReportConfig, *, screen: Screen) -> Path:
    """Write the page, having made what is missing for it."""
    from pipeline.report.page import write_report

    with screen.progress("report") as show:
        summary = write_report(config, on_progress=show)
    for words in summary.made:
        screen.say(f"report    made {words}")
    screen.note(summary.notes)
    screen.say(f"report    {summary.path} ({size(summary.path.stat().st_size)})")
    return summary.path


def run_finetune(config: FinetuneConfig, *, screen: Screen) -> "FinetuneReport":
    """Fine-tune, unless that run is complete already."""
    from pipeline.finetune.finetune import finetune as run
    from pipeline.plots.finetune import save_finetune_figures
    from pipeline.terminal.lines import finetune_line

    with screen.progress("finetune") as show:
        report = run(config, on_progress=show)
    save_finetune_figures(config.out)
    screen.say(finetune_line(report, config.out))
    return report
