"""Figures of connectors: against each other and baselines; of one its outputs and effects."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress, pairwise
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MultipleLocator, NullFormatter

from pipeline.connect.reading.values import Effects
from pipeline.connect.report import CONNECTOR, ConnectorReport, MapScores, map_words
from pipeline.evaluate.report import QUANTILES
from pipeline.plots.style import (
    BLUE,
    GRAY,
    GRID,
    INK,
    KINDS,
    LEGEND,
    RED,
    Label,
    axes_in,
    label_points,
    make_figure,
    save_all,
    say,
    short,
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Connectors between the same SAEs, trained alike, and the baselines of these SAEs."""

    kind: str
    """What tells it from the other lines."""
    names: tuple[str, ...]
    """Of its connectors: their coefficients."""
    maps: tuple[MapScores, ...]
    baselines: tuple[MapScores, ...]
    """Empty where another line has the same."""


def lines_of(reports: Sequence[ConnectorReport]) -> list[Line]:
    """These connectors, sweep by sweep."""
    sweeps: dict[tuple[object, ...], list[ConnectorReport]] = {}
    for report in reports:
        sweeps.setdefault((report.shared, report.activation, report.start), []).append(report)
    kinds = _kinds([members[0] for members in sweeps.values()])
    seen, lines = set[tuple[object, ...]](), list[Line]()
    for kind, members in zip(kinds, sweeps.values(), strict=True):
        members.sort(key=lambda report: report.l1)
        lines.append(
            Line(
                kind=kind,
                names=tuple(f"l1 = {report.l1:g}" for report in members),
                maps=tuple(report.connector for report in members),
                baselines=() if members[0].shared in seen else members[0].baselines,
            )
        )
        seen.add(members[0].shared)
    return lines


def _kinds(reports: Sequence[ConnectorReport]) -> list[str]:
    """Their sites, with those of their other properties in which they differ."""
    words = [
        (
            " → ".join(report.sites),
            f"{report.source.name} → {report.target.name}",
            report.start,
            report.activation,
            Path(report.model).name,
            report.text,
        )
        for report in reports
    ]
    differs = [len(set(values)) > 1 for values in zip(*words, strict=True)]
    if differs[0]:
        differs[1] = len({its[0] for its in words}) < len({its[:2] for its in words})
    else:
        differs[0] = not any(differs)
    return [", ".join(compress(its, differs)) for its in words]


_MARKERS = {"weights": "s", "correlation": "^", "ridge": "D"}
"""Of baselines; the mean, which has no weights, is a line."""
_LABELS = 14
"""Points of a figure that are named."""


Height = Literal["fvu", "recovered_of_sae"]
"""What is drawn of a map, a field of `MapScores`."""
_HEIGHTS: dict[Height, tuple[str, str]] = {
    "fvu": ("Variance unexplained", "variance unexplained (FVU)"),
    "recovered_of_sae": ("Loss recovered", "loss recovered, as a share of the SAE's"),
}
"""Its name in the title, and at the axis."""
_LOWEST_HEIGHT, _HIGHEST = 0.0, 1.25
"""What is beyond stands at the edge."""

Count = Literal["above", "nonzero"]
"""Which weights of an output are counted."""


def connector_frontier_figure(reports: Sequence[ConnectorReport], y: Height = "fvu") -> Figure:
    """Weights per alive output against FVU, or loss recovered where there is a model to recover it.

    Dots stand at the mean of the outputs, a tick at their median. Connectors of a sweep are joined
    in the order of their coefficient; baselines stand beside them.
    """
    figure = make_figure(width=9.0, height=4.1)
    name, label = _HEIGHTS[y]
    title = f"{name}, for how many weights"
    lines = [
        line for line in lines_of(reports) if any(getattr(one, y) is not None for one in line.maps)
    ]
    if not lines:
        say(axes_in(figure, (1, 1, 1), title=title, y=label), "nothing to draw")
        return figure
    labels: list[Sequence[Label]] = []
    counts: dict[Count, str] = {
        "above": f"weights above {reports[0].tau:g} per output",
        "nonzero": "weights that are not zero per output",
    }
    for place, (count, words) in enumerate(counts.items(), 1):
        axes = axes_in(figure, (1, 2, place), title=title if place == 1 else "", y=label)
        axes.set_xlabel(words)
        labels.append(_draw_panel(axes, lines, count, y))
    figure.axes[1].set_ylabel("")
    _legend(figure.axes[1], lines)
    figure.draw_without_rendering()  # names are placed in axes that have their place
    for axes, its in zip(figure.axes, labels, strict=True):
        label_points(axes, its, n_shown=_LABELS if len(lines) == 1 else 0)
    return figure


def _draw_panel(axes: Axes, lines: Sequence[Line], count: Count, y: Height) -> list[Label]:
    """All lines and baselines; what has no weight at all stands at the left edge."""
    maps = [one for line in lines for one in (*line.maps, *line.baselines)]
    found = [mean for one in maps if (mean := _mean(one, count))]
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
    axes.set_ylim(max(low, _LOWEST_HEIGHT - 0.05), min(high, _HIGHEST + 0.05))
    return labels


def _draw_line(
    axes: Axes, line: Line, count: Count, y: Height, *, color: str, edge: float
) -> list[Label]:
    """The connectors of a sweep."""
    labels: list[Label] = []
    at: list[tuple[float, float]] = []
    for one, name in zip(line.maps, line.names, strict=True):
        value = getattr(one, y)
        if value is None:
            continue
        mean = _mean(one, count)
        median = getattr(one, f"{count}_quantiles")[QUANTILES.index(0.5)]
        spot = max(mean, edge), float(np.clip(value, _LOWEST_HEIGHT, _HIGHEST))
        if median > 0:
            axes.plot([median, spot[0]], [spot[1]] * 2, color=color, lw=0.8, alpha=0.6)
            axes.plot(median, spot[1], "|", color=color, ms=8, mew=1.4)
        axes.plot(*spot, "o" if mean else "<", color=color, ms=5.5, zorder=3)
        at.append(spot)
        labels.append(Label(at=spot, text=_told(name, value), color=INK))
    axes.plot(*zip(*at, strict=True), color=color, lw=1.3, alpha=0.5)
    return labels


def _draw_baselines(
    axes: Axes, line: Line, count: Count, y: Height, *, color: str, alone: bool
) -> list[Label]:
    """The baselines of a line's ends."""
    labels: list[Label] = []
    for one in line.baselines:
        value, mean = getattr(one, y), _mean(one, count)
        if value is None:
            continue
        height = float(np.clip(value, _LOWEST_HEIGHT, _HIGHEST))
        if not mean:
            axes.axhline(height, color=color, lw=0.9, ls=":")
            if alone:
                axes.annotate(
                    _told(map_words(one), value), (1, height), (-2, 2), ha="right", fontsize=7,
                    xycoords=("axes fraction", "data"), textcoords="offset points", color=GRAY,
                )  # fmt: skip
            continue
        marker = _MARKERS.get(one.name, "P")
        axes.plot(mean, height, marker, color=color, mfc="white", ms=5.5, zorder=3)
        labels.append(Label(at=(mean, height), text=_told(map_words(one), value), color=GRAY))
    return labels


def _mean(one: MapScores, count: Count) -> float:
    return getattr(one, f"{count}_mean") or 0.0


def _told(name: str, value: float) -> str:
    """A name, with the number where it is beyond the bounds."""
    return name if _LOWEST_HEIGHT <= value <= _HIGHEST else f"{name} ({value:.2f})"


def _legend(axes: Axes, lines: Sequence[Line]) -> None:
    """Colours of the lines, if there are several, and shapes."""
    handles: list[Line2D] = []
    if len(lines) > 1:
        for i, line in enumerate(lines):
            color = KINDS[i % len(KINDS)]
            handles.append(Line2D([], [], color=color, marker="o", ms=5, label=line.kind))
        baselines = {one.name: one for line in lines for one in line.baselines}
        for name, one in baselines.items():
            marker, dots = (_MARKERS[name], "") if name in _MARKERS else ("", ":")
            handles.append(
                Line2D(
                    [], [], color=GRAY, marker=marker, ls=dots, ms=5, mfc="white",
                    label=map_words(one),
                )
            )  # fmt: skip
    else:
        handles.append(Line2D([], [], color=KINDS[0], marker="o", ms=5, label="connectors: mean"))
    handles.append(Line2D([], [], color=GRAY, ls="", marker="|", ms=8, label="median, above 0"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), **LEGEND)


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
    values = np.array([value for value in report.explained if value is not None])
    if not values.size:
        say(axes_in(figure, (1, 1, 1), title=title, y=""), "no output was active on these tokens")
        return figure
    upper = axes_in(figure, (2, 1, 1), title=title, y="outputs")
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
    edge = f" (≤ {_LOWEST:g} at the left edge)" if values.min() < _LOWEST else ""
    lower.set_xlabel(f"variance explained{edge}")
    for axes in (upper, lower):
        axes.set_xlim(_LOWEST - 0.02, 1.02)
        axes.xaxis.set_major_locator(MultipleLocator(0.25))
    return figure


def _draw_ranges(axes: Axes, report: ConnectorReport) -> None:
    """A line for each map."""
    for i, one in enumerate(report.maps):
        color = BLUE if one.name == CONNECTOR else GRAY
        if one.explained_quantiles:
            least, low, middle, high, most = np.clip(one.explained_quantiles, _LOWEST, 1)
            axes.plot([least, most], [i, i], color=color, lw=1.0)
            axes.plot([low, high], [i, i], color=color, lw=4.5, alpha=0.6, solid_capstyle="butt")
            axes.plot(middle, i, "o", color=color, mfc="white", ms=4.5, zorder=3)
    axes.set_yticks(range(len(report.maps)), map(map_words, report.maps), color=INK)
    axes.set_ylim(len(report.maps) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")


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
    totals = [
        f"median {np.median(above):g}, mean {above.mean():.3g}, most {above.max():,}",
        f"{report.connector.n_above:,} of {report.n_in * report.n_out:,} weights",
    ]
    if report.layer is not None:
        totals.append(f"the MLP itself: {report.layer.n_above:,} of {report.layer.n:,}")
    for words in totals:
        axes.plot([], [], " ", label=words)
    axes.legend(loc="upper right", handlelength=0, handletextpad=0, **LEGEND)
    return figure


def _edges(most: int) -> list[int]:
    """Of bins for 0, 1, 2, 3 to 4, 5 to 8, 9 to 16, and so on; the last is an end."""
    edges = [0, 1, 2, 3]
    while edges[-1] <= most:
        edges.append(2 * edges[-1] - 1)
    return edges


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
    places = np.array([(point.linear, point.true) for point in effects.points])
    controls = np.array([point.control for point in effects.points])
    low, high = float(places.min()), float(places.max())
    room = _EDGE * max(high - low, 1e-6)
    ends = [min(low, 0.0) - room, high + room]
    axes.plot(ends, ends, color=GRAY, lw=1, ls="--", label="prediction = truth", zorder=1)
    for value in (axes.axhline, axes.axvline):
        value(0, color=GRID, lw=1.2, zorder=0)
    for control, color, name in ((True, RED, "unconnected"), (False, BLUE, "terms of equations")):
        x, y = places[controls == control].T
        if len(x):
            label = f"{name}: {len(x):,}"
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


# --- beside the runs -------------------------------------------------------------------------


def save_figures(report: ConnectorReport) -> tuple[Path, ...]:
    """Draw `explained` and `weights` of a report into its run's folder; gives the files."""
    figures = {"explained": explained_figure(report), "weights": weights_figure(report)}
    return save_all(figures, report.run)


def save_comparison(reports: Sequence[ConnectorReport], folder: Path) -> tuple[Path, ...]:
    """Draw what several connectors come to into `folder`.

    Returns:
        The files: `connectors`, and `recovered` where there is a loss to recover.
    """
    together = {"connectors": connector_frontier_figure(reports)}
    if any(report.connector.recovered_of_sae is not None for report in reports):
        together["recovered"] = connector_frontier_figure(reports, "recovered_of_sae")
    return save_all(together, folder)
