"""What each command shows while it runs and when it ends.

What brings torch is imported inside of functions: a harvest that is complete needs none.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import verbs
from pipeline.config.stages import (
    EvalConfig,
    FeatureOrder,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    ReportConfig,
)
from pipeline.demo import demo_configs
from pipeline.progress import size
from pipeline.tables import many
from pipeline.terminal.screen import Screen

if TYPE_CHECKING:
    from pipeline.config.grid import Point
    from pipeline.finetune.run import FinetuneReport
    from pipeline.harvest.harvest import HarvestSummary
    from pipeline.runs.curves import StepReport


def run_harvest(config: HarvestConfig, *, screen: Screen) -> "HarvestSummary":
    """Harvest what is missing."""
    from pipeline.harvest.harvest import harvest
    from pipeline.terminal.lines import harvest_lines, plan_line

    with screen.progress("harvest") as show:
        summary = harvest(
            config,
            on_plan=lambda plan, seconds: screen.say(plan_line(plan, seconds)),
            on_progress=show,
        )
    for line in harvest_lines(summary):
        screen.say(line)
    return summary


def run_train(
    points: "Sequence[Point]", *, resume: bool, screen: Screen, log: Sequence[str] = ()
) -> "list[StepReport]":
    """Train what is not complete already."""
    from pipeline.terminal.lines import curve_words, outcome_line
    from pipeline.training.sweep import complete
    from pipeline.training.trackers import Loggers

    configs = [point.config for point in points]
    with screen.progress("train") as show, closing(Loggers(log, configs)) as loggers:
        outcomes = verbs.train_points(
            points, resume=resume, on_progress=show, on_step=loggers.log, words=curve_words
        )
    for config, outcome in zip(configs, outcomes, strict=True):
        screen.say(outcome_line(outcome, config.out))
    return complete(outcomes)


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
    with screen.progress("features") as show:
        return verbs.features(config, on_progress=show)


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
    with screen.progress("report") as show:
        summary = verbs.report(config, on_progress=show)
    for words in summary.made:
        screen.say(f"report    made {words}")
    screen.note(summary.notes)
    screen.say(f"report    {summary.path} ({size(summary.path.stat().st_size)})")
    return summary.path


def run_finetune(config: FinetuneConfig, *, screen: Screen) -> "FinetuneReport":
    """Fine-tune, unless that run is complete already."""
    with screen.progress("finetune") as show:
        report = verbs.finetune(config, on_progress=show)
    what = "complete, reused" if report.reused else f"{report.n_steps} steps"
    screen.say(f"finetune  {what}: {config.out}")
    return report


def run_demo(out: Path, *, screen: Screen) -> dict[str, object]:
    """Run every stage in a folder; gives what JSON is to hold."""
    from pipeline.terminal.evaluations import TUNED_ROWS, metric_facts, named
    from pipeline.terminal.lines import features_line

    configs = demo_configs(out)
    run_harvest(configs.harvest, screen=screen)
    run_train([configs.train], resume=True, screen=screen)
    (report,) = run_eval(configs.evaluate, screen=screen)
    screen.say(features_line(run_features(configs.features, screen=screen)))
    tuned = run_finetune(configs.finetune, screen=screen)
    learned = {f"on arithmetic: {key}": x for key, x in named(tuned, TUNED_ROWS).items()}
    title = f"{report.arch} SAE at {report.site}, {report.d_sae:,} features"
    screen.show(f"{title}; losses in nats a token", {**metric_facts(report), **learned})
    page = run_report(configs.report, screen=screen)
    return {"eval": report, "finetune": tuned, "report": page}
