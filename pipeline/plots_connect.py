"""How few weights predict how much: connectors of a sweep against each other and baselines."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from pipeline.canvas import (
    GRAY,
    INK,
    KINDS,
    LEGEND,
    axes_in,
    make_figure,
    say,
    short,
)
from pipeline.connect.evaluation.report import MAP_WORDS, QUANTILES, ConnectorReport, ScoredMap
from pipeline.connect.evaluation.sweep import Line, lines_of
from pipeline.point_labels import Label, label_points

_MARKERS = {"weights": "s", "correlation": "^", "ridge": "D"}
"""Of baselines; the mean, which has no weights, is a line."""
_LABELS = 14
"""Points of a figure that are named."""


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """What is drawn of a map, and the bounds that it is drawn within."""

    words: str
    value: Callable[[ScoredMap], float | None]
    low: float = -np.inf
    high: float = np.inf


@dataclass(frozen=True, kw_only=True)
class _Count:
    """A number of weights per output."""

    words: str
    mean: Callable[[ScoredMap], float | None]
    median: Callable[[ScoredMap], float]


_FVU = _Axis(words="variance unexplained (FVU)", value=lambda one: one.fvu, low=0.0, high=1.25)
_RECOVERED = _Axis(
    words="loss recovered, as a share of the SAE's",
    value=lambda one: one.recovered_of_sae,
    low=0.0,
    high=1.25,
)


def _counts(tau: float) -> tuple[_Count, _Count]:
    return (
        _Count(
            words=f"weights above {tau:g} per output",
            mean=lambda one: one.above_mean,
            median=lambda one: one.above_quantiles[QUANTILES.index(0.5)],
        ),
        _Count(
            words="weights that are not zero per output",
            mean=lambda one: one.nonzero_mean,
            median=lambda one: one.nonzero_quantiles[QUANTILES.index(0.5)],
        ),
    )


def frontier_figure(reports: Sequence[ConnectorReport]) -> Figure:
    """Weights per alive output against FVU: dots at the mean, a tick at the median.

    Connectors of a sweep are joined in the order of their coefficient; baselines stand beside them.
    """
    return _against_weights(reports, _FVU, title="Variance unexplained, for how many weights")


def recovered_figure(reports: Sequence[ConnectorReport]) -> Figure:
    """The same against the loss recovered, where there is a language model to recover it."""
    return _against_weights(reports, _RECOVERED, title="Loss recovered, for how many weights")


def _against_weights(reports: Sequence[ConnectorReport], y: _Axis, *, title: str) -> Figure:
    figure = make_figure(width=9.0, height=4.1)
    lines = [line for line in lines_of(reports) if _drawn(line, y)]
    if not lines:
        say(axes_in(figure, (1, 1, 1), title=title, y=y.words), "nothing to draw")
        return figure
    counts = _counts(reports[0].tau)
    labels: list[Sequence[Label]] = []
    for place, count in enumerate(counts, 1):
        axes = axes_in(figure, (1, 2, place), title=title if place == 1 else "", y=y.words)
        axes.set_xlabel(count.words)
        labels.append(_draw_panel(axes, lines, count, y))
    figure.axes[1].set_ylabel("")
    _legend(figure.axes[1], lines)
    figure.draw_without_rendering()  # names are placed in axes that have their place
    for axes, its in zip(figure.axes, labels, strict=True):
        label_points(axes, its, n_shown=_LABELS if len(lines) == 1 else 0)
    return figure


def _drawn(line: Line, y: _Axis) -> bool:
    return any(y.value(one) is not None for one in line.maps)


def _draw_panel(axes: Axes, lines: Sequence[Line], count: _Count, y: _Axis) -> list[Label]:
    """All lines and baselines; what has no weight at all stands at the left edge."""
    maps = [one for line in lines for one in (*line.maps, *line.baselines)]
    found = [mean for one in maps if (mean := count.mean(one))]
    edge = min(found, default=1.0) / 2
    labels: list[Label] = []
    for i, line in enumerate(lines):
        color = KINDS[i % len(KINDS)]
        labels += _draw_line(axes, line, count, y, color=color, edge=edge)
        labels += _draw_baselines(axes, line, count, y, color=color, alone=len(lines) == 1)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator())
    axes.xaxis.set_major_formatter(short)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.14, y=0.12)
    axes.autoscale_view()
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, y.low - 0.05), min(high, y.high + 0.05))
    return labels


def _draw_line(
    axes: Axes, line: Line, count: _Count, y: _Axis, *, color: str, edge: float
) -> list[Label]:
    """The connectors of a sweep."""
    labels: list[Label] = []
    at: list[tuple[float, float]] = []
    for one, name in zip(line.maps, line.names, strict=True):
        value = y.value(one)
        if value is None:
            continue
        mean, median = count.mean(one) or 0.0, count.median(one)
        spot = max(mean, edge), float(np.clip(value, y.low, y.high))
        if median > 0:
            axes.plot([median, spot[0]], [spot[1]] * 2, color=color, lw=0.8, alpha=0.6)
            axes.plot(median, spot[1], "|", color=color, ms=8, mew=1.4)
        axes.plot(*spot, "o" if mean else "<", color=color, ms=5.5, zorder=3)
        at.append(spot)
        labels.append(Label(at=spot, text=_told(name, value, y), color=INK))
    axes.plot(*zip(*at, strict=True), color=color, lw=1.3, alpha=0.5)
    return labels


def _draw_baselines(
    axes: Axes, line: Line, count: _Count, y: _Axis, *, color: str, alone: bool
) -> list[Label]:
    """The baselines of a line's ends."""
    labels: list[Label] = []
    for one in line.baselines:
        value, mean = y.value(one), count.mean(one)
        if value is None:
            continue
        height = float(np.clip(value, y.low, y.high))
        if not mean:
            axes.axhline(height, color=color, lw=0.9, ls=":")
            if alone:
                axes.annotate(
                    _told(one.name, value, y), (1, height), (-2, 2), ha="right", fontsize=7,
                    xycoords=("axes fraction", "data"), textcoords="offset points", color=GRAY,
                )  # fmt: skip
            continue
        marker = _MARKERS.get(one.name, "P")
        axes.plot(mean, height, marker, color=color, mfc="white", ms=5.5, zorder=3)
        labels.append(Label(at=(mean, height), text=_told(one.name, value, y), color=GRAY))
    return labels


def _told(name: str, value: float, y: _Axis) -> str:
    """A name, with the number where it is beyond the bounds."""
    name = MAP_WORDS.get(name, name)
    return name if y.low <= value <= y.high else f"{name} ({value:.2f})"


def _legend(axes: Axes, lines: Sequence[Line]) -> None:
    """Colours of the lines, if there are several, and shapes."""
    handles: list[Line2D] = []
    if len(lines) > 1:
        for i, line in enumerate(lines):
            color = KINDS[i % len(KINDS)]
            handles.append(Line2D([], [], color=color, marker="o", ms=5, label=line.kind))
        names = dict.fromkeys(one.name for line in lines for one in line.baselines)
        for name in names:
            marker, dots = (_MARKERS[name], "") if name in _MARKERS else ("", ":")
            handles.append(
                Line2D(
                    [],
                    [],
                    color=GRAY,
                    marker=marker,
                    ls=dots,
                    ms=5,
                    mfc="white",
                    label=MAP_WORDS.get(name, name),
                )
            )
    else:
        handles.append(Line2D([], [], color=KINDS[0], marker="o", ms=5, label="connectors: mean"))
    handles.append(Line2D([], [], color=GRAY, ls="", marker="|", ms=8, label="median, above 0"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), **LEGEND)
