"""What each command shows while it runs and when it ends.

What brings torch is imported inside of functions: a harvest that is complete needs none.
"""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.errors import StoreError
from actstore.files import make_folder
from pipeline.config.serialization import to_json
from pipeline.config.stages import (
    EvalConfig,
    FeatureOrder,
    FeaturesConfig,
    FinetuneConfig,
    HarvestConfig,
    ReportConfig,
)
from pipeline.errors import ConfigError
from pipeline.runs.names import beside
from pipeline.terminal.screen import Screen
from pipeline.terminal.words import size

if TYPE_CHECKING:
    from pipeline.config.grid import Point
    from pipeline.connect.reading.values import Reading, ReadingConfig
    from pipeline.connect.report import ConnectorReport
    from pipeline.evaluate.report import EvalReport
    from pipeline.features.files import FeatureSet
    from pipeline.finetune.run import FinetuneReport
    from pipeline.harvest.harvest import HarvestSummary
    from pipeline.runs.curves import StepReport


def run_connector_eval(config: EvalConfig, *, screen: Screen) -> "tuple[ConnectorReport, ...]":
    """Evaluate connectors, and draw their figures beside what was written."""
    from pipeline.connect.evaluate import evaluate_connectors
    from pipeline.connect.figures import save_connector_figures, save_connector_frontier
    from pipeline.connect.report import TABLE

    with screen.progress("eval", "tokens") as show:
        reports = evaluate_connectors(config, on_progress=lambda p: show(p.done, p.total, p.stage))
    for report in reports:
        save_connector_figures(report)
    if len(reports) > 1:
        folder = config.out or beside(config.runs)
        save_connector_frontier(reports, folder)
        screen.say(f"eval      {len(reports)} connectors: {folder}/{TABLE}, connectors.png")
    return reports


def run_reading(config: "ReadingConfig", *, screen: Screen) -> "Reading":
    """Read a connector, or find it read; `connections.json` and its figure go into the run."""
    from pipeline.connect.figures import save_reading_figure
    from pipeline.connect.reading.read import read_connector

    with screen.progress("reading", "done") as show:
        reading = read_connector(
            config, on_progress=lambda p: show(p.done, p.total, f"{p.stage} {p.words}".strip())
        )
    save_reading_figure(reading)
    return reading


def show_reading(
    reading: "Reading", chosen: Sequence[int], *, rows: int, screen: Screen
) -> list[dict[str, object]]:
    """The output features asked for, each closely, or else tables; gives what JSON is to hold."""
    from pipeline.connect.reading.document import output_document, reading_document
    from pipeline.connect.reading.read import effects_on, features_of_both
    from pipeline.connect.tables import output_tables, reading_tables

    ends = features_of_both(reading)
    documents: list[dict[str, object]] = []
    if not chosen:
        for table in reading_tables(reading, ends, rows=rows):
            screen.draw(table)
        documents.append(reading_document(reading, ends, rows=rows))
    for output in chosen:
        effects = effects_on(reading, output, device=reading.config.device)
        for table in output_tables(reading, output, effects, ends):
            screen.draw(table)
        documents.append(output_document(reading, output, effects, ends))
    screen.note(reading.notes)
    return documents


def run_harvest(config: HarvestConfig, *, screen: Screen) -> "HarvestSummary":
    """Harvest what is missing."""
    from pipeline.harvest.harvest import harvest
    from pipeline.terminal.lines import harvest_lines, plan_line, reused_line

    with screen.progress("harvest", "tokens") as show:
        summary = harvest(
            config,
            on_plan=lambda plan, seconds: screen.say(plan_line(plan, seconds)),
            on_progress=lambda p: show(p.done, p.total, p.words),
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
    with screen.progress("train", "rows") as show, closing(make_loggers(log, configs)) as loggers:

        def on_step(report: "StepReport") -> None:
            loggers.log(report)
            show(report.rows, report.n_steps * configs[0].batch_size, curve_words(report))

        outcomes = train_sweep(points, out=out, resume=resume, on_step=on_step)
    reports = complete(outcomes)
    save_curves({point.name: point.config.out for point in points}, out)
    for config, outcome in zip(configs, outcomes, strict=True):
        screen.say(outcome_line(outcome, config.out))
    return reports


def run_eval(
    config: EvalConfig, *, screen: Screen, out: Path | None = None
) -> "tuple[EvalReport, ...]":
    """Evaluate; reports and figures go into the folders of the runs, a comparison beside them."""
    from pipeline.evaluate.evaluate import evaluate as run
    from pipeline.evaluate.report import save_report, write_table
    from pipeline.plots.save import save_figures, save_frontier

    with screen.progress("eval", "tokens") as show:
        reports = run(config, on_progress=lambda p: show(p.n_done, p.n_tokens, p.stage))
    for report in reports:
        save_report(report)
        save_figures(report)
    if len(reports) > 1:
        folder = out or beside(config.runs)
        make_folder(folder)
        write_table(reports, folder / "eval.csv")
        save_frontier(reports, folder)
        screen.say(f"eval      {len(reports)} runs: {folder}/eval.csv, frontier.png, frontier.svg")
    return reports


def run_features(config: FeaturesConfig, *, screen: Screen) -> "FeatureSet":
    """Find what every feature fires on, unless that is known already."""
    from pipeline.features.collect import collect_features
    from pipeline.terminal.lines import features_line

    with screen.progress("features", "tokens") as show:
        found = collect_features(config, on_progress=lambda p: show(p.done, p.total, ""))
    screen.say(features_line(found))
    return found


def show_features(
    found: "FeatureSet", chosen: Sequence[int], *, order: FeatureOrder, rows: int, screen: Screen
) -> list[dict[str, object]]:
    """The features asked for, each closely, or else a table; gives what JSON is to hold."""
    from pipeline.features.ablation import ablation_effects
    from pipeline.features.feature import feature_document
    from pipeline.features.files import ordered
    from pipeline.terminal.features import feature_tables, features_table

    indices = ordered(found, order)[:rows]
    effects = ablation_effects(found, chosen)
    if not chosen:
        screen.draw(features_table(found, indices))
    for index in chosen:
        for table in feature_tables(found, index, effect=effects[index]):
            screen.draw(table)
    screen.note(found.facts.notes)
    return [
        feature_document(found.feature(index), found.texts)
        | ({"ablation": to_json(effects[index])} if chosen else {})
        for index in chosen or indices.tolist()
    ]


def run_report(
    runs: Sequence[Path], *, screen: Screen, out: Path | None = None, n_features: int = 200
) -> Path:
    """Write the page, having made what is missing for it."""
    from pipeline.connect.reading.values import ReadingConfig
    from pipeline.connect.report import load_connector_report
    from pipeline.evaluate.report import load_report
    from pipeline.features.files import has_features
    from pipeline.report.page import require_file, write_page
    from pipeline.runs.kinds import says_kind

    config = ReportConfig(
        runs=tuple(runs), out=out or beside(runs) / "report.html", n_features=n_features
    )
    require_file(config.out)  # before hours of work
    connectors = [run for run in runs if says_kind(run) == "connector"]
    coders = [run for run in runs if run not in connectors]
    missing = tuple(run for run in coders if load_report(run) is None)
    if missing:
        run_eval(EvalConfig(runs=missing), screen=screen)
    unknown = tuple(run for run in connectors if load_connector_report(run) is None)
    if unknown:
        run_connector_eval(EvalConfig(runs=unknown), screen=screen)
    for run in runs:
        try:
            if run in connectors:
                run_reading(ReadingConfig(run=run), screen=screen)
            elif not has_features(run):
                run_features(FeaturesConfig(run=run), screen=screen)
        except (ConfigError, StoreError) as error:
            screen.say(f"features  {error}")  # the page says how to make them
    path = write_page(config)
    screen.say(f"report    {path} ({size(path.stat().st_size)})")
    return path


def run_finetune(config: FinetuneConfig, *, screen: Screen) -> "FinetuneReport":
    """Fine-tune, unless that run is complete already."""
    from pipeline.finetune.finetune import finetune as run
    from pipeline.plots.finetune import save_finetune_figures
    from pipeline.terminal.lines import finetune_line

    with screen.progress("finetune", "steps") as show:
        report = run(config, on_progress=lambda p: show(p.done, p.total, p.words))
    save_finetune_figures(config.out)
    screen.say(finetune_line(report, config.out))
    return report


def show_evaluations(config: EvalConfig, *, out: Path | None, screen: Screen) -> list[object]:
    """Evaluate SAEs and connectors; gives their reports, SAEs first."""
    from pipeline.runs.kinds import says_kind
    from pipeline.terminal.evaluations import eval_tables

    connectors = tuple(run for run in config.runs if says_kind(run) == "connector")
    coders = tuple(run for run in config.runs if run not in connectors)
    found: list[object] = []
    if coders or not connectors:
        reports = run_eval(replace(config, runs=coders), out=out, screen=screen)
        for table in eval_tables(reports):
            screen.draw(table)
        screen.note(note for report in reports for note in report.notes)
        found += reports
    if connectors:
        from pipeline.connect.tables import connector_tables

        between = run_connector_eval(replace(config, runs=connectors, out=out), screen=screen)
        for table in connector_tables(between):
            screen.draw(table)
        screen.note(note for report in between for note in report.notes)
        found += between
    return found


def show_run(
    config: FeaturesConfig,
    chosen: Sequence[int],
    *,
    order: FeatureOrder,
    rows: int,
    screen: Screen,
) -> list[dict[str, object]]:
    """The features of an SAE, or the equations of a connector; gives what JSON is to hold."""
    from pipeline.runs.kinds import says_kind

    if says_kind(config.run) == "connector":
        from pipeline.connect.reading.values import ReadingConfig

        read = ReadingConfig(run=config.run, store=config.store, device=config.device)
        if config.tokens is not None:
            read = replace(read, tokens=config.tokens)
        return show_reading(run_reading(read, screen=screen), chosen, rows=rows, screen=screen)
    found = run_features(config, screen=screen)
    return show_features(found, chosen, order=order, rows=rows, screen=screen)
