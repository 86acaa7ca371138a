"""The figures of connectors evaluated: of one beside its run, of several in a folder."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from pipeline.canvas import save
from pipeline.connect.evaluation.report import ConnectorReport
from pipeline.plots_connect import frontier_figure, recovered_figure
from pipeline.plots_connect_outputs import explained_figure, weights_figure

_FORMATS = (".png", ".svg")


def save_connector_figures(report: ConnectorReport) -> tuple[Path, ...]:
    """Draw a report's figures into its run's folder, each as a picture and as vectors.

    Returns:
        The files written: `explained`, `weights`.

    Raises:
        OSError: the folder cannot be written to.
    """
    figures = {"explained": explained_figure(report), "weights": weights_figure(report)}
    return tuple(
        path for name, drawn in figures.items() for path in _save(drawn, report.run / name)
    )


def save_connector_frontier(reports: Sequence[ConnectorReport], folder: Path) -> tuple[Path, ...]:
    """Draw several against each other and their baselines, as `frontier` and `recovered`.

    Returns:
        The files written; `recovered` only where there is a loss to recover.

    Raises:
        OSError: the folder cannot be written to.
    """
    files = _save(frontier_figure(reports), folder / "frontier")
    if any(report.connector.recovered_of_sae is not None for report in reports):
        files += _save(recovered_figure(reports), folder / "recovered")
    return files


def _save(figure: Figure, stem: Path) -> tuple[Path, ...]:
    paths = tuple(stem.with_name(stem.name + ending) for ending in _FORMATS)
    save(figure, *paths)
    return paths
