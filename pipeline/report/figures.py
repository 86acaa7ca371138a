"""The figures of a page."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from pipeline.curves import read_curves
from pipeline.evaluate.report import EvalReport
from pipeline.plots_evaluation import (
    dead_cosine_figure,
    density_figure,
    encoder_decoder_figure,
    frontier_figure,
    inserted_figure,
)
from pipeline.plots_finetune import loss_figure
from pipeline.plots_training import curve_figures
from pipeline.report.gather import Material
from pipeline.report.inline_svg import inline_svg

WIDE, HIGH = 5.2, 3.2
"""Inches: so narrow that their words can be read on a phone."""
_HELDOUT = ("ce_base", "ce_spliced", "ce_finetuned")
_SPARE = 1.0
"""Inches that figures of evaluations can do without."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure in the page."""

    name: str
    svg: Markup


def curve_drawings(material: Material, *, place: int) -> list[Drawing]:
    """The curves of a training, or the loss of a fine-tuning; none without them.

    Raises:
        CheckpointError: metrics.jsonl is damaged.
    """
    if material.curves is None:
        return []
    if material.tuned:
        report, losses = (
            material.tuned.report,
            [line["loss"] for line in read_curves(material.curves)],
        )
        heldout = {name: getattr(report, name) for name in _HELDOUT}
        figures = {"loss": loss_figure(losses, **heldout)}
    else:
        figures = curve_figures(material.curves)
    return [drawing(figure, f"r{place}-{key}") for key, figure in figures.items()]


def evaluation_drawings(report: EvalReport | None, *, place: int) -> list[Drawing]:
    """What the evaluation of one run shows."""
    if report is None:
        return []
    density, n_tokens = np.array(report.density), report.n_tokens
    figures = {
        "density": density_figure(density, n_tokens=n_tokens),
        "encdec": encoder_decoder_figure(np.array(report.encoder_decoder_cosine)),
    }
    if report.dead_cosine is not None:
        cosine = np.array(report.dead_cosine)
        figures["dead"] = dead_cosine_figure(cosine, density == 0, n_tokens=n_tokens)
    if report.inserted:
        figures["inserted"] = inserted_figure(report)
    for figure in figures.values():
        figure.set_size_inches(max(WIDE, figure.get_figwidth() - _SPARE), HIGH)
    return [drawing(figure, f"r{place}-{key}") for key, figure in figures.items()]


def frontier_drawing(reports: Sequence[EvalReport]) -> Drawing | None:
    """Several runs against each other; None where there are not several."""
    if len(reports) < 2:
        return None
    figure = frontier_figure(reports)
    figure.set_size_inches(WIDE, HIGH)
    return drawing(figure, "frontier")


def drawing(figure: Figure, name: str) -> Drawing:
    """A figure, told by the title of its first axes to who does not see it."""
    title = figure.axes[0].get_title(loc="left")
    return Drawing(name=name, svg=inline_svg(figure, name=name, label=title))
