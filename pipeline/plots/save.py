"""Figures of a report beside its run (png, svg).

The figures of evaluations: of one beside its run, of several in a folder of their own.

The figures of connectors evaluated: of one beside its run, of several in a folder.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from pipeline.connect.report import ConnectorReport
from pipeline.evaluate.report import EvalReport
from pipeline.plots.connectors import (
    connector_frontier_figure,
    explained_figure,
    recovered_figure,
    weights_figure,
)
from pipeline.plots.evaluation import (
    dead_cosine_figure,
    density_figure,
    encoder_decoder_figure,
    frontier_figure,
    inserted_figure,
)
from pipeline.plots.style import save

_FORMATS = (".png", ".svg")


def save_figures(report: EvalReport) -> tuple[Path, ...]:
    """Draw a report's figures into its run directory, each as a picture and as vectors.

    Returns:
        The files written.

    Raises:
        OSError: the directory cannot be written to.
    """
    density, n_tokens = np.array(report.density), report.n_tokens
    cosine = None if report.dead_cosine is None else np.array(report.dead_cosine)
    figures = {
        "dead_cosine": dead_cosine_figure(cosine, density == 0, n_tokens=n_tokens),
        "density": density_figure(density, n_tokens=n_tokens),
        "encoder_decoder": encoder_decoder_figure(np.array(report.encoder_decoder_cosine)),
    }
    if report.inserted:
        figures["inserted"] = inserted_figure(report)
    return tuple(
        path for name, figure in figures.items() for path in _save(figure, report.run / name)
    )


def save_frontier(reports: Sequence[EvalReport], folder: Path) -> tuple[Path, ...]:
    """Draw what several runs recover, against the features they need, as `frontier` in a folder.

    Returns:
        The files written.

    Raises:
        OSError: the folder cannot be written to.
    """
    return _save(frontier_figure(reports), folder / "frontier")


def _save(figure: Figure, stem: Path) -> tuple[Path, ...]:
    paths = tuple(stem.with_name(stem.name + ending) for ending in _FORMATS)
    save(figure, *paths)
    return paths


_FORMATS_FIGURES = (".png", ".svg")


def save_connector_figures(report: ConnectorReport) -> tuple[Path, ...]:
    """Draw a report's figures into its run's folder, each as a picture and as vectors.

    Returns:
        The files written: `explained`, `weights`.

    Raises:
        OSError: the folder cannot be written to.
    """
    figures = {"explained": explained_figure(report), "weights": weights_figure(report)}
    return tuple(
        path for name, drawn in figures.items() for path in _save_figures(drawn, report.run / name)
    )


def save_connector_frontier(reports: Sequence[ConnectorReport], folder: Path) -> tuple[Path, ...]:
    """Draw several against each other and their baselines, as `frontier` and `recovered`.

    Returns:
        The files written; `recovered` only where there is a loss to recover.

    Raises:
        OSError: the folder cannot be written to.
    """
    files = _save_figures(connector_frontier_figure(reports), folder / "frontier")
    if any(report.connector.recovered_of_sae is not None for report in reports):
        files += _save_figures(recovered_figure(reports), folder / "recovered")
    return files


def _save_figures(figure: Figure, stem: Path) -> tuple[Path, ...]:
    paths = tuple(stem.with_name(stem.name + ending) for ending in _FORMATS_FIGURES)
    save(figure, *paths)
    return paths
