"""The figure of an evaluation, beside its run."""

from pathlib import Path

import numpy as np

from pipeline import plots
from pipeline.evaluate.report import EvalReport

DEAD_COSINE = "dead_cosine.png"


def save_figures(report: EvalReport) -> tuple[Path, ...]:
    """Draw a report's figures into its run directory.

    Returns:
        The files written.

    Raises:
        OSError: the directory cannot be written to.
    """
    cosine = None if report.dead_cosine is None else np.array(report.dead_cosine)
    out = report.run / DEAD_COSINE
    plots.dead_cosine(cosine, np.array(report.density) == 0, out, n_tokens=report.n_tokens)
    return (out,)
