"""What all figures share, names beside their points among it.

They are drawn off screen, and nothing global is touched.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Real
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter
from matplotlib.transforms import Bbox

from actstore.files import write_file

BLUE, RED, INK, GRAY, GRID = "#2b6cb0", "#d1495b", "#24292f", "#6e7781", "#e6e9ed"
GREEN, AMBER = "#2f855a", "#b7791f"
KINDS = (BLUE, RED, GREEN, AMBER, "#6b46c1", "#0987a0")
"""Of runs that differ in kind."""
_DPI = 160
_SMOOTHING = 0.03
"""Share of a curve that one point of its smoothed line is the mean of."""

LEGEND: dict[str, Any] = {
    "frameon": False, "fontsize": 8, "title_fontsize": 8, "labelcolor": INK,
}  # fmt: skip


def make_figure(*, width: float, height: float) -> Figure:
    """An empty figure, in inches."""
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def axes_in(figure: Figure, place: tuple[int, int, int], *, title: str, y: str) -> Axes:
    """Axes in this house's style: `place` is rows, columns and index, `y` what the ordinate is."""
    axes = figure.add_subplot(*place)
    axes.set_title(title, fontsize=10, color=INK, loc="left", fontweight="bold")
    axes.set_ylabel(y, fontsize=8.5, color=INK)
    axes.xaxis.label.set(fontsize=8.5, color=INK)
    axes.tick_params(labelsize=8, colors=GRAY, length=3)
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRAY)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.xaxis.set_major_formatter(short)
    return axes


def few_ticks(axis: Axis) -> None:
    """Short numbers at 1, 2 and 5 of each decade of a logarithmic axis, and no others."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(short)
    axis.set_minor_formatter(NullFormatter())


def as_log_if_wide(axes: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """An axis is logarithmic where its values, above zero, span more than a decade."""
    if 0 < 10 * min(values) < max(values):
        axes.set(**{f"{which}scale": "log"})
        few_ticks(axes.xaxis if which == "x" else axes.yaxis)


def say(axes: Axes, text: str) -> None:
    """Words where there is nothing to draw."""
    axes.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", color=GRAY, fontsize=9)
    axes.set_axis_off()


def short(value: float, _: object = None) -> str:
    """A tick in few characters: 1500000 as 1.5M, 1500 as it is."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, 1e4):
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def smoothed(
    x: Sequence[float] | Real[np.ndarray, " n"], y: Sequence[float] | Real[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Means over a sliding window: symmetric, shrunk where it starts, cut off where it ends."""
    values, at = np.asarray(y, dtype=np.float64), np.arange(len(y))
    left = np.minimum(at, round(_SMOOTHING * values.size / 2))
    right = np.minimum(left, values.size - 1 - at)
    totals = np.concatenate([[0.0], values.cumsum()])
    means = (totals[at + right + 1] - totals[at - left]) / (left + right + 1)
    return np.asarray(x, dtype=np.float64), means


def as_png(figure: Figure) -> bytes:
    """A figure as dots, the same bytes for the same figure.

    Like `as_svg` without `Figure.savefig`, which draws everything once more before it draws it; and
    laid out once, which takes as long as drawing it.
    """
    data = BytesIO()
    FigureCanvasAgg(figure).print_png(data, metadata={"Software": None})
    figure.set_layout_engine("none")
    return data.getvalue()


def as_svg(figure: Figure) -> bytes:
    """A figure as shapes; its ids are random unless `svg.hashsalt` says otherwise."""
    data, dpi = BytesIO(), figure.dpi
    FigureCanvasSVG(figure).print_svg(data, metadata={"Date": None})
    figure.set_layout_engine("none")
    figure.dpi = dpi  # a unit of SVG is a point, and the canvas leaves it at that
    return data.getvalue()


_FORMATS = {".png": as_png, ".svg": as_svg}


def save(figure: Figure, *outs: Path) -> tuple[Path, ...]:
    """Write a figure, in the format that each name ends with, under a temporary name first."""
    for out in outs:
        write_file(out, [_FORMATS[out.suffix](figure)])
    return outs


def save_all(figures: Mapping[str, Figure], folder: Path) -> tuple[Path, ...]:
    """Write figures into a folder by their names, each as a picture and as vectors."""
    files = list[Path]()
    for name, figure in figures.items():
        outs = [folder / f"{name}{ending}" for ending in _FORMATS]
        save(figure, *outs)
        files += outs
    return tuple(files)


_BESIDE = ((6, -9, "left"), (6, 4, "left"), (-6, 4, "right"), (-6, -9, "right"))
"""Where a name may start, in points from its own, and which end of it that is."""
_MARKER = 3.5
"""Half the width of a marker, in points."""


@dataclass(frozen=True, kw_only=True)
class Label:
    """A name and where it belongs, in the units of the axes."""

    at: tuple[float, float]
    text: str
    color: str


def label_points(axes: Axes, labels: Sequence[Label], *, n_shown: int) -> None:
    """Write the first `n_shown` names, where there is room, and cover none of their points.

    The axes must have the limits and scales that they will have.
    """
    reach = _MARKER * axes.figure.dpi / 72
    spots = axes.transData.transform([label.at for label in labels])
    taken = [Bbox([spot - reach, spot + reach]) for spot in spots]
    for label in labels[:n_shown]:
        for x, y, side in _BESIDE:
            text = axes.annotate(
                label.text, label.at, (x, y), textcoords="offset points", ha=side, fontsize=7,
                color=label.color, path_effects=[withStroke(linewidth=2.5, foreground="white")],
                parse_math=False,  # names of folders may hold any sign
            )  # fmt: skip
            box = text.get_window_extent()
            inside = axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
            text.remove()
