"""The outputs of one connector: how well each is predicted, and from how many inputs."""

from itertools import pairwise

import numpy as np
from jaxtyping import Integer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from pipeline.canvas import BLUE, GRAY, INK, LEGEND, axes_in, make_figure, say
from pipeline.connect.evaluation.report import CONNECTOR, MAP_WORDS, ConnectorReport

_LOWEST = -0.5
"""Explained variance below this is drawn as this."""
_ROOM = 1.3
"""Height of a histogram's axes, that of its highest bar being 1."""
_MORE_ROOM = 1.45
"""The same, with three lines and a number above the bars."""


def explained_figure(report: ConnectorReport) -> Figure:
    """How much of the variance of each output the connector explains; below, the baselines.

    A baseline's line goes from 5 to 95 % of the outputs, its bar from 25 to 75 %, its dot is the
    median.
    """
    figure = make_figure(width=6.4, height=3.0 + 0.28 * len(report.maps))
    title = "How much of each output is explained?"
    upper = axes_in(figure, (2, 1, 1), title=title, y="outputs")
    values = np.array([value for value in report.explained if value is not None])
    if not values.size:
        figure.clear()
        say(axes_in(figure, (1, 1, 1), title=title, y=""), "no output was active on these tokens")
        return figure
    lower = axes_in(figure, (2, 1, 2), title="", y="")
    grid = upper.get_gridspec()
    assert grid is not None
    grid.set_height_ratios((2.2, 0.28 * len(report.maps) + 0.1))
    label = f"{values.size:,} of {report.n_out:,} outputs, median {np.median(values):.2f}"
    upper.hist(values.clip(_LOWEST), np.linspace(_LOWEST, 1, 76).tolist(), color=BLUE, label=label)
    upper.axvline(float(np.median(values)), ymax=1 / _ROOM, color=INK, lw=1.2, ls="--")
    low, high = upper.get_ylim()
    upper.set_ylim(low, high * _ROOM)
    upper.legend(loc="upper left", **LEGEND)
    upper.tick_params(labelbottom=False)
    _draw_ranges(lower, report)
    lower.set_xlabel("variance explained" + (f" (≤ {_LOWEST:g} at the left edge)" * _cut(report)))
    for axes in (upper, lower):
        axes.set_xlim(_LOWEST - 0.02, 1.02)
        axes.xaxis.set_major_locator(MultipleLocator(0.25))
    return figure


def _cut(report: ConnectorReport) -> bool:
    return any(value is not None and value < _LOWEST for value in report.explained)


def _draw_ranges(axes: Axes, report: ConnectorReport) -> None:
    """A line for each map."""
    for i, one in enumerate(report.maps):
        color = BLUE if one.name == CONNECTOR else GRAY
        if one.explained_quantiles:
            least, low, middle, high, most = np.clip(one.explained_quantiles, _LOWEST, 1)
            axes.plot([least, most], [i, i], color=color, lw=1.0)
            axes.plot([low, high], [i, i], color=color, lw=4.5, alpha=0.6, solid_capstyle="butt")
            axes.plot(middle, i, "o", color=color, mfc="white", ms=4.5, zorder=3)
    axes.set_yticks(range(len(report.maps)), _names(report), color=INK)
    axes.set_ylim(len(report.maps) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


def _names(report: ConnectorReport) -> list[str]:
    return [MAP_WORDS.get(one.name, one.name) for one in report.maps]


def weights_figure(report: ConnectorReport) -> Figure:
    """How many alive outputs have how many weights above tau."""
    figure = make_figure(width=6.4, height=3.4)
    title = "How many inputs does an output have?"
    axes = axes_in(figure, (1, 1, 1), title=title, y="outputs")
    alive = np.array([value is not None for value in report.explained])
    above = np.array(report.above)[alive]
    if not above.size:
        say(axes, "no output was active on these tokens")
        return figure
    edges = _edges(int(above.max()))
    counts, _ = np.histogram(above, edges)
    bars = axes.bar(range(len(counts)), counts, 0.82, color=BLUE)
    axes.bar_label(bars, [f"{n:,}" if n else "" for n in counts], fontsize=7.5, color=GRAY)
    names = [
        f"{low:,}" if end == low + 1 else f"{low:,}-{end - 1:,}" for low, end in pairwise(edges)
    ]
    axes.set_xticks(range(len(counts)), names)
    axes.set_xlabel(f"weights of the output above {report.tau:g}")
    axes.set_ylim(0, _MORE_ROOM * counts.max())
    axes.grid(visible=False, axis="x")
    for words in _totals(report, above):
        axes.plot([], [], " ", label=words)
    axes.legend(loc="upper right", handlelength=0, handletextpad=0, **LEGEND)
    return figure


def _edges(most: int) -> list[int]:
    """Of bins for 0, 1, 2, 3 to 4, 5 to 8, 9 to 16, and so on; the last is an end."""
    edges = [0, 1, 2, 3]
    while edges[-1] <= most:
        edges.append(2 * edges[-1] - 1)
    return edges


def _totals(report: ConnectorReport, above: Integer[np.ndarray, " n"]) -> list[str]:
    """What the legend says of all weights together."""
    words = [
        f"median {np.median(above):g}, mean {above.mean():.3g}, most {above.max():,}",
        f"{report.connector.n_above:,} of {report.n_in * report.n_out:,} weights",
    ]
    if report.layer is not None:
        words.append(f"the MLP itself: {report.layer.n_above:,} of {report.layer.n:,}")
    return words
