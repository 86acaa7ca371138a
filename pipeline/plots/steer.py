"""The figure of a sweep of strengths: what steering brings, against what it costs."""

from pathlib import Path

from matplotlib.figure import Figure

from pipeline.plots.style import (
    GRAY,
    INK,
    KINDS,
    LEGEND,
    Label,
    as_log_if_wide,
    axes_in,
    label_points,
    make_figure,
    save,
)
from pipeline.steer.report import FIGURES, SteerReport

_NAMED = 12
"""Features that have a name below the figure, at most."""


def save_steer_figure(report: SteerReport) -> tuple[Path, ...]:
    """Draw a sweep beside its report; of a single strength there is nothing to draw."""
    if not report.is_sweep:
        return ()
    figure = steer_figure(report)
    return save(figure, *(report.path.with_suffix(ending) for ending in FIGURES))


def steer_figure(report: SteerReport, *, width: float = 6.4, height: float = 3.8) -> Figure:
    """Activation of each feature against the perplexity of the texts, a point a strength.

    Both are of the model that is not steered, reading what was written. Sizes are in inches; names
    are put where there is room for them at this size.
    """
    figure = make_figure(width=width, height=height)
    of = f": {report.title}" if len(report.names) == 1 else ""
    axes = axes_in(
        figure, (1, 1, 1), title=f"Effect against damage{of}", y="mean activation on the new tokens"
    )
    points = (report.clean, *sorted(report.effects, key=lambda one: one.amounts))
    x = [one.perplexity for one in points]
    labels = list[Label]()
    for i, name in enumerate(report.names):
        color = KINDS[i % len(KINDS)]
        y = [one.activations[i] for one in points]
        axes.plot(x[1:], y[1:], color=color, marker="o", ms=5, lw=1.2, alpha=0.8, label=name)
        axes.plot(x[:1], y[:1], color=INK, marker="o", ms=8, mfc="none", lw=0)
        labels += [
            Label(at=at, text=report.label(one), color=GRAY if one is report.clean else color)
            for at, one in zip(zip(x, y, strict=True), points, strict=True)
        ]
    axes.set_xlabel("perplexity of the new tokens in the model that is not steered")
    as_log_if_wide(axes, "x", x)
    axes.margins(0.12)
    if len(report.names) > 1:
        lines = axes.lines[::2][:_NAMED]
        figure.legend(handles=lines, loc="outside lower center", ncols=3, **LEGEND)
    axes.autoscale_view()
    label_points(axes, labels, n_shown=len(labels))
    return figure
