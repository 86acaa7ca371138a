"""What a command shows of runs of any kind."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from pipeline.config import EvalConfig, FeatureOrder, FeaturesConfig
from pipeline.connect.run import is_connector
from pipeline.terminal.connect_stage import run_connector_eval, run_reading, show_reading
from pipeline.terminal.connect_tables import connector_tables
from pipeline.terminal.screen import Screen
from pipeline.terminal.stages import run_eval, run_features, show_features
from pipeline.terminal.tables import eval_tables


def show_evaluations(config: EvalConfig, *, out: Path | None, screen: Screen) -> list[object]:
    """Evaluate SAEs and connectors; gives their reports, SAEs first."""
    connectors = tuple(run for run in config.runs if is_connector(run))
    coders = tuple(run for run in config.runs if run not in connectors)
    found: list[object] = []
    if coders or not connectors:
        reports = run_eval(replace(config, runs=coders), out=out, screen=screen)
        for table in eval_tables(reports):
            screen.draw(table)
        screen.note(note for report in reports for note in report.notes)
        found += reports
    if connectors:
        between = run_connector_eval(replace(config, runs=connectors), out=out, screen=screen)
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
    if is_connector(config.run):
        from pipeline.connect.reading.values import ReadingConfig

        read = ReadingConfig(run=config.run, store=config.store, device=config.device)
        if config.tokens is not None:
            read = replace(read, tokens=config.tokens)
        return show_reading(run_reading(read, screen=screen), chosen, rows=rows, screen=screen)
    found = run_features(config, screen=screen)
    return show_features(found, chosen, order=order, rows=rows, screen=screen)
