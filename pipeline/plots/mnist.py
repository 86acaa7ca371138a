"""The figures of the experiment on images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.plots.style import (
    AMBER,
    BLUE,
    GRAY,
    GREEN,
    INK,
    LEGEND,
    RED,
    axes_in,
    few_ticks,
    make_figure,
)

_COLORS = "RdBu_r"
_GAP = 2
"""Pixels between images."""


def reconstruction_figure(
    image: Float[np.ndarray, "side side"],
    h: Float[np.ndarray, " d_in"],
    h_hat: Float[np.ndarray, " d_in"],
    z: Float[np.ndarray, " d_sae"],
    *,
    large: float,
    title: str,
) -> Figure:
    """One image's neurons beside their reconstruction, and below the features it is made of."""
    figure = make_figure(width=8.6, height=4.4)
    grid = figure.add_gridspec(2, 2, width_ratios=(1, 4.2))
    picture = figure.add_subplot(grid[0, 0])
    draw_image(picture, image)
    picture.set_title(title, fontsize=9, color=INK)
    neurons = axes_in(figure, (2, 1, 1), title=_large("neurons", h, large), y="activation")
    neurons.set_subplotspec(grid[0, 1])
    at = np.arange(len(h))
    neurons.bar(at - 0.2, h, 0.4, color=BLUE, label="activation")
    neurons.bar(at + 0.2, h_hat, 0.4, color=AMBER, label="reconstruction")
    neurons.set_ylim(top=1.22 * max(float(h.max()), float(h_hat.max()), 1e-9))
    neurons.legend(loc="upper right", ncols=2, **LEGEND)
    features = axes_in(figure, (2, 1, 2), title=_large("features", z, large), y="activation")
    features.set_subplotspec(grid[1, :])
    features.bar(np.arange(len(z)), z, 1.0, color=RED)
    for axes in (neurons, features):
        axes.grid(visible=False, axis="x")
        axes.margins(x=0.01)
    return figure


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureImages:
    """What a feature looks like."""

    name: str
    words: str
    direction: Float[np.ndarray, "side side"]
    mean: Float[np.ndarray, "side side"]
    top: Sequence[Float[np.ndarray, "side side"]]


def features_figure(shown: Sequence[FeatureImages], *, direction: str, title: str) -> Figure:
    """A line a feature: a direction in pixels, the mean image, and images it fires on most."""
    n_top = max(len(one.top) for one in shown)
    figure = make_figure(width=1.8 + 0.72 * (n_top + 2), height=0.5 + 0.72 * len(shown))
    figure.suptitle(title, fontsize=10, color=INK, fontweight="bold", x=0.02, ha="left")
    left, right = figure.subplots(1, 2, width_ratios=(1, n_top + 1))
    slopes = [one.direction / (float(np.abs(one.direction).max()) or 1.0) for one in shown]
    left.imshow(mosaic([[slope] for slope in slopes]), cmap=_COLORS, vmin=-1, vmax=1)
    right.imshow(mosaic([[one.mean, *one.top] for one in shown]), cmap="gray_r", vmin=0, vmax=1)
    _bare(left)
    _bare(right)
    cell = shown[0].mean.shape[0] + _GAP
    names = [f"{one.name}\n{one.words}" for one in shown]
    left.set_yticks([cell * (line + 0.5) for line in range(len(shown))], names)
    left.tick_params(length=0, labelsize=7, labelcolor=INK)
    left.set_title(direction, fontsize=7.5, color=GRAY)
    right.set_title("mean, then the most active", fontsize=7.5, color=GRAY, loc="left")
    return figure


def mosaic(
    lines: Sequence[Sequence[Float[np.ndarray, "side side"]]],
) -> Float[np.ndarray, "height width"]:
    """Images side by side, line below line; short lines end in blanks."""
    side = lines[0][0].shape[0]
    cell, most = side + _GAP, max(len(line) for line in lines)
    whole = np.zeros((cell * len(lines), cell * most))
    for row, line in enumerate(lines):
        for column, image in enumerate(line):
            top, left = row * cell + _GAP // 2, column * cell + _GAP // 2
            whole[top : top + side, left : left + side] = image
    return whole


def draw_image(axes: Axes, image: Float[np.ndarray, "side side"]) -> None:
    """Ink on paper."""
    axes.imshow(image, cmap="gray_r", vmin=0)
    _bare(axes)


def accuracies_figure(accuracies: Mapping[str, float], *, groups: Sequence[str]) -> Figure:
    """A point for each way to run the classifier; names of a group begin with it and a colon."""
    figure = make_figure(width=7.4, height=0.9 + 0.3 * len(accuracies))
    axes = axes_in(figure, (1, 1, 1), title="Accuracy, with layers replaced", y="")
    colors = dict(zip(groups, (GRAY, AMBER, BLUE, GREEN), strict=False))
    names, values = [*accuracies], np.array([*accuracies.values()])
    at = np.arange(len(names))[::-1]
    of_groups = [colors[name.partition(":")[0]] for name in names]
    axes.hlines(at, values, float(values.max()), color=of_groups, lw=1.2, alpha=0.5)
    axes.scatter(values, at, s=42, color=of_groups, zorder=3)
    for y, value in zip(at, values, strict=True):
        axes.annotate(
            f"{value:.1%}", (value, y), (-8, 0), textcoords="offset points", va="center",
            ha="right", fontsize=8, color=INK,
        )  # fmt: skip
    axes.set_yticks(at, names)
    axes.grid(visible=False, axis="y")
    low = max(0.0, float(values.min()) - 0.05)
    axes.set_xlim(low, min(1.0, float(values.max())) + 0.02)
    axes.set_xlabel("share of test images")
    return figure


@dataclass(frozen=True, kw_only=True)
class FrontierLine:
    """Networks of one form: weights of each against its accuracy."""

    label: str
    points: Sequence[tuple[int, float]]
    names: Sequence[str]


def network_frontier_figure(
    lines: Sequence[FrontierLine], *, original: float, allowed: float, marks: Mapping[str, int]
) -> Figure:
    """Weights against accuracy, of which `allowed` may be lost; `marks` are numbers of weights.

    Points of the last line are named.
    """
    figure = make_figure(width=7.0, height=4.4)
    axes = axes_in(
        figure, (1, 1, 1), title="Accuracy of the simulated network, for how many weights",
        y="accuracy",
    )  # fmt: skip
    axes.axhline(original, color=GRAY, ls="--", lw=1.1, label=f"the classifier: {original:.1%}")
    axes.axhspan(original - allowed, original, color=GREEN, alpha=0.08, lw=0)
    for (label, number), style in zip(marks.items(), (":", "-."), strict=False):
        axes.axvline(number, color=GRAY, ls=style, lw=1.1, label=f"{label}: {number:,}")
    for line, color in zip(lines, (BLUE, AMBER, GREEN), strict=False):
        found = sorted(zip(line.points, line.names, strict=True))
        axes.plot(
            [n for (n, _), _ in found], [y for (_, y), _ in found], "o-", ms=4.5, lw=1.4,
            color=color, label=line.label,
        )  # fmt: skip
        for at, name in found if line is lines[-1] else ():
            axes.annotate(
                name, at, (0, 6), textcoords="offset points", fontsize=6.5, color=color,
                ha="center",
            )  # fmt: skip
    axes.set_xscale("log")
    few_ticks(axes.xaxis)
    axes.set_xlabel("weights above the threshold, both connectors")
    axes.legend(loc="lower right", **LEGEND)
    return figure


def _large(what: str, values: Float[np.ndarray, " n"], large: float) -> str:
    n = int((values > large).sum())
    return f"{n} of {len(values)} {what} above {large:g}"


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
