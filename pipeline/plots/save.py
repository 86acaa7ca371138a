"""The figures of evaluations as files: of one beside its run, of several in a folder."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.evaluate.report import EvalReport
from pipeline.plots.evaluation import (
    dead_cosine_figure,
    density_figure,
    encoder_decoder_figure,
    frontier_figure,
    inserted_figure,
)
from pipeline.plots.style import save_all


def save_figures(reports: Sequence[EvalReport], folder: Path) -> tuple[Path, ...]:
    """Draw each report's figures into its run's folder, and what several recover into `folder`.

    Returns:
        The files of the latter, `frontier`; none of a single report.
    """
    for report in reports:
        density, n_tokens = np.array(report.density), report.n_tokens
        cosine = None if report.dead_cosine is None else np.array(report.dead_cosine)
        figures = {
            "dead_cosine": dead_cosine_figure(cosine, density == 0, n_tokens=n_tokens),
            "density": density_figure(density, n_tokens=n_tokens),
            "encoder_decoder": encoder_decoder_figure(np.array(report.encoder_decoder_cosine)),
        }
        if report.inserted:
            figures["inserted"] = inserted_figure(report)
        save_all(figures, report.run)
    if len(reports) < 2:
        return ()
    return save_all({"frontier": frontier_figure(reports)}, folder)
