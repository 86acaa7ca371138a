"""The figures about connectors."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.connect.evaluation.report import ConnectorReport
from pipeline.plots_connect import frontier_figure, recovered_figure
from pipeline.plots_connect_outputs import explained_figure, weights_figure
from pipeline.plots_connect_reading import effects_figure
from pipeline.plots_training import curve_figures
from pipeline.report.connect_gather import Connections
from pipeline.report.figures import WIDE, Drawing, drawing

_HIGH = 4.4
"""Inches: of figures that stand in one row."""


def connector_drawings(
    report: ConnectorReport | None, connections: Connections | None, *, place: int
) -> list[Drawing]:
    """What the evaluation and the reading of one connector show."""
    found: dict[str, Figure] = {}
    if report:
        found["explained"] = explained_figure(report)
        found["weights"] = weights_figure(report)
    if connections and connections.reading.effects:
        found["effects"] = effects_figure(connections.reading.effects)
    for figure in found.values():
        figure.set_size_inches(WIDE, _HIGH)
    return [drawing(figure, f"w{place}-{key}") for key, figure in found.items()]


def connector_curves(curves: Path | None, *, place: int) -> list[Drawing]:
    """The curves of a training; none without them.

    Raises:
        CheckpointError: metrics.jsonl is damaged.
    """
    if curves is None:
        return []
    return [drawing(figure, f"w{place}-{key}") for key, figure in curve_figures(curves).items()]


def frontier_drawings(reports: Sequence[ConnectorReport]) -> list[Drawing]:
    """Several connectors against each other; none where there are not several."""
    if len(reports) < 2:
        return []
    figures = {"weights-fvu": frontier_figure(reports)}
    if any(report.ce_clean is not None for report in reports):
        figures["weights-recovered"] = recovered_figure(reports)
    return [drawing(figure, name) for name, figure in figures.items()]
