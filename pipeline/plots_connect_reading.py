"""The figure of a connector's effects: what removing a feature was predicted to do, and did."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64
from matplotlib.figure import Figure

from pipeline.canvas import BLUE, GRAY, GRID, INK, LEGEND, RED, axes_in, make_figure, say
from pipeline.connect.reading.values import Effect, Effects

EFFECTS = "effects"
"""Name of the figure in the folder of a run."""
_EDGE = 0.06
"""Room beyond the outermost points, as a share of what they span."""


def effects_figure(effects: Effects) -> Figure:
    """Linear predictions against true effects, terms of equations and controls apart."""
    figure = make_figure(width=5.2, height=4.6)
    title = "Removing an input: predicted and true effect"
    axes = axes_in(figure, (1, 1, 1), title=title, y="true drop of the output, in the model")
    axes.set_xlabel("drop that the connector predicts")
    if not effects.points:
        say(axes, "no input of any equation is active")
        return figure
    everything = _places(effects.points)
    low, high = float(everything.min()), float(everything.max())
    room = _EDGE * max(high - low, 1e-6)
    ends = [min(low, 0.0) - room, high + room]
    axes.plot(ends, ends, color=GRAY, lw=1, ls="--", label="prediction = truth", zorder=1)
    for value in (axes.axhline, axes.axvline):
        value(0, color=GRID, lw=1.2, zorder=0)
    for control, color, name in ((True, RED, "unconnected"), (False, BLUE, "terms of equations")):
        some = [point for point in effects.points if point.control == control]
        if some:
            x, y = _places(some).T
            label = f"{name}: {len(some):,}"
            axes.scatter(x, y, s=14, color=color, alpha=0.6, lw=0, label=label, zorder=2)
    found = effects.connected
    if found.pearson is not None and found.slope is not None:
        words = f"terms: r = {found.pearson:.2f}, slope {found.slope:.2f}"
        axes.annotate(
            words, (0.98, 0.03), xycoords="axes fraction", ha="right", color=INK, fontsize=9
        )
    axes.set_xlim(*ends)
    axes.set_ylim(*ends)
    axes.legend(loc="upper left", **LEGEND)
    return figure


def _places(points: Sequence[Effect]) -> Float64[np.ndarray, "n 2"]:
    return np.array([(point.linear, point.true) for point in points], dtype=np.float64)
