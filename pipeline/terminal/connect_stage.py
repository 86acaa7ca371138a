"""The stages about connectors: each runs, shows its progress, and tells what it found."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.files import make_folder
from pipeline.config import EvalConfig
from pipeline.connect.reading.values import Reading, ReadingConfig
from pipeline.features.files import FeatureSet
from pipeline.terminal.screen import Screen

if TYPE_CHECKING:
    from pipeline.connect.evaluation.report import ConnectorReport
    from pipeline.connect.reading.read import ReadingProgress


TABLE = "connectors.csv"


def run_connector_eval(
    config: EvalConfig, *, screen: Screen, out: Path | None = None
) -> "tuple[ConnectorReport, ...]":
    """Evaluate connectors; reports and figures go into their folders, a comparison beside them."""
    from pipeline.connect.evaluation.evaluate import evaluate_connectors
    from pipeline.connect.evaluation.figures import save_connector_figures, save_connector_frontier
    from pipeline.connect.evaluation.files import save_connector_report
    from pipeline.connect.evaluation.table import write_connector_table
    from pipeline.terminal.stages import beside

    with screen.progress("eval", "tokens") as show:
        reports = evaluate_connectors(
            config, on_progress=lambda p: show(p.n_done, p.n_tokens, p.stage)
        )
    for report in reports:
        save_connector_report(report)
        save_connector_figures(report)
    if len(reports) > 1:
        folder = out or beside(config.runs)
        make_folder(folder)
        write_connector_table(reports, folder / TABLE)
        save_connector_frontier(reports, folder)
        screen.say(f"eval      {len(reports)} connectors: {folder}/{TABLE}, frontier.png")
    return reports


def run_reading(config: ReadingConfig, *, screen: Screen) -> Reading:
    """Read a connector, or find it read; `connections.json` and its figure go into the run."""
    from pipeline.canvas import save
    from pipeline.connect.reading.read import read_connector
    from pipeline.plots_connect_reading import EFFECTS, effects_figure

    with screen.progress("reading", "done") as show:

        def tell(progress: "ReadingProgress") -> None:
            show(progress.n_done, progress.n_total, progress.stage)

        reading = read_connector(config, on_progress=tell)
    figure = config.run / f"{EFFECTS}.png"
    if reading.effects is not None:
        save(effects_figure(reading.effects), figure, figure.with_suffix(".svg"))
    return reading


def show_reading(
    reading: Reading, chosen: Sequence[int], *, rows: int, screen: Screen
) -> list[dict[str, object]]:
    """The output features asked for, each closely, or else tables; gives what JSON is to hold."""
    from pipeline.connect.reading.document import output_document, reading_document
    from pipeline.connect.reading.read import effects_on
    from pipeline.terminal.connect_feature import output_tables
    from pipeline.terminal.connect_reading import reading_tables

    ends = opened(reading)
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


def opened(reading: Reading) -> tuple[FeatureSet | None, FeatureSet | None]:
    """What the features of both SAEs fire on; None without a language model."""
    from pipeline.connect.reading.scene import features_of

    if not reading.model:
        return None, None
    config = reading.config
    source, target = (
        features_of(end, store=config.store, device=config.device)
        for end in (reading.source, reading.target)
    )
    return source, target
