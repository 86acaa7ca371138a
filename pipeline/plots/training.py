"""The figures of training: a run's curves, and where the members of a sweep came to lie."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from pipeline.errors import CheckpointError
from pipeline.plots.style import (
    BLUE,
    GRAY,
    INK,
    KINDS,
    LEGEND,
    as_log_if_wide,
    axes_in,
    make_figure,
    save,
    short,
    smoothed,
)
from pipeline.runs.curves import METRICS, read_curves
from pipeline.runs.folder import DRAWN
from pipeline.runs.names import words_of

CURVES = (
    ("l0", "L0", "features active per token"),
    ("recon", "Reconstruction loss", "squared error per token"),
    ("l1", "L1 norm", r"$\|z\|_1$ per token"),
    ("explained_variance", "Explained variance", "share of the batch's variance"),
    ("n_dead", "Dead features", "features silent for the dead window"),
    ("fvu", "Unexplained variance", "share of the predicted latents' variance"),
    ("weights", "Weights above 0.1", "per output feature"),
    ("nonzero", "Weights that are not zero", "per output feature"),
    ("loss", "Training loss", "reconstruction, sparsity, AuxK"),
)
"""Key in metrics.jsonl, title, label of the axis."""

CHANGING = (
    ("sparsity", "Sparsity loss", "penalty with its coefficient"),
    ("beta", r"Sparsity coefficient $\beta$", "weight of the penalty"),
    ("n_resampled", "Resampled features", "features, so far"),
    ("lr", "Learning rate", "of Adam"),
    ("rows_per_s", "Speed", "tokens per second"),
)
"""As CURVES, but drawn only where there is a change to see."""

_LOG_KEYS = frozenset({"recon", "loss", "sparsity", "beta", "weights", "nonzero"})
"""Curves drawn on a logarithmic axis once they span more than a decade."""

_COUNTS = frozenset({"l0", "n_dead", "n_resampled", "lr", "rows_per_s"})
"""Curves whose axis starts at zero."""

_NOISE = {"rows_per_s": 1.5}
"""Factor between the 10th and the 90th percentile of the smoothed line that is no change yet."""

_END = 0.03
"""Share of a run's lines that the end of its curves is the mean of: one batch is noisy."""

_LABELS = 16  # of members; with more, those on a frontier alone are labelled


def training_curves(metrics: Path, out: Path) -> tuple[Path, ...]:
    """Every curve of a run over the rows it has seen, as a PNG and an SVG beside it: the files."""
    lines = _read_lines(metrics)
    curves = _curves_of(lines)
    n_columns = min(len(curves), 4 if len(curves) in (7, 8, 10) else 3)
    n_lines = -(-len(curves) // n_columns)
    figure = make_figure(width=3.6 * n_columns, height=2.7 * n_lines)
    for i, curve in enumerate(curves):
        _draw(figure, (n_lines, n_columns, i + 1), lines, curve)
    return save(figure, out, out.with_suffix(".svg"))


def save_curves(run: Path) -> tuple[Path, ...]:
    """Draw the curves of a run into its folder; gives the files."""
    return training_curves(run / METRICS, run / DRAWN)


def save_sweep_figure(members: Mapping[str, Path], folder: Path) -> tuple[Path, ...]:
    """Draw where the members of a sweep came to lie into its folder; gives the files."""
    curves = {name: run / METRICS for name, run in members.items()}
    return sweep_figure(curves, folder / "sweep.png")


def curve_figures(metrics: Path) -> dict[str, Figure]:
    """The same, each curve a figure of its own, by its key, for a page that arranges them."""
    lines = _read_lines(metrics)
    figures: dict[str, Figure] = {}
    for curve in _curves_of(lines):
        figure = figures[curve[0]] = make_figure(width=3.6, height=2.7)
        _draw(figure, (1, 1, 1), lines, curve)
    return figures


def sweep_figure(members: Mapping[str, Path], out: Path) -> tuple[Path, ...]:
    """Where each member ended, L0 against explained variance, and the frontier of each kind.

    Members have names as `mlp_out.1+topk+k=32`: words without `=`, site and architecture, tell
    kinds apart by colour. Those that have no curves yet are left out.
    """
    ends = [_end_of(name, path) for name, path in members.items() if path.exists()]
    placed = [end for end in ends if end is not None]
    if not placed:
        raise CheckpointError(f"cannot draw {out}: no member of the sweep has curves yet")
    figure = make_figure(width=6.4, height=4.4)
    title = "Sweep: filled members are on the frontier"
    cost, gain = _AXES[placed[0].of]
    axes = axes_in(figure, (1, 1, 1), title=title, y=f"{gain}, end of training")
    axes.set_xlabel(f"{cost}, end of training")
    for i, kind in enumerate(dict.fromkeys(end.kind for end in placed)):
        color = KINDS[i % len(KINDS)]
        _draw_kind(axes, [e for e in placed if e.kind == kind], color=color, n=len(placed))
    if placed[0].kind or len({end.kind for end in placed}) > 1:
        axes.legend(loc="lower right", **LEGEND)
    as_log_if_wide(axes, "x", [end.cost for end in placed])
    axes.margins(x=0.18, y=0.12)
    return save(figure, out, out.with_suffix(".svg"))


_GAINS = {"weights": "fvu", "l0": "explained_variance"}
_AXES = {
    "weights": ("weights above 0.1 per output feature", "explained variance of the latents"),
    "l0": ("L0: features active per token", "explained variance"),
}
"""What connectors and SAEs of a sweep are compared by: what they cost, and what that gives."""


@dataclass(frozen=True, kw_only=True)
class _End:
    """Where a member came to lie."""

    of: str
    """A key of `_AXES`."""
    kind: str
    label: str
    cost: float
    explained: float


def frontier(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other one beats: none has as low an x and as high a y, ascending in x."""
    best, kept = -np.inf, list[int]()
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            kept.append(i)
    return kept


def _draw_kind(axes: Axes, ends: Sequence[_End], *, color: str, n: int) -> None:
    """The members of one kind, and the line through those on its frontier."""
    points = [(end.cost, end.explained) for end in ends]
    best = frontier(points)
    axes.plot(*zip(*(points[i] for i in best), strict=True), color=color, lw=1.3, alpha=0.6)
    axes.scatter(*zip(*points, strict=True), s=30, facecolor="white", edgecolor=color, zorder=3)
    axes.scatter(
        *zip(*(points[i] for i in best), strict=True), s=30, color=color, zorder=3,
        label=ends[0].kind or None,
    )  # fmt: skip
    for i, end in enumerate(ends):
        if end.label and (i in best or n <= _LABELS):
            axes.annotate(
                end.label, points[i], (5, -9), textcoords="offset points", fontsize=7,
                color=INK if i in best else GRAY,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],
            )  # fmt: skip


def _end_of(name: str, metrics: Path) -> _End | None:
    """The mean of a member's last lines; None before there is one."""
    every = list(read_curves(metrics))
    of = next((key for key in _AXES if any(key in line for line in every)), None)
    if of is None:
        return None
    lines = [line for line in every if of in line and _GAINS[of] in line]
    if not lines:
        return None
    last = lines[-max(1, round(_END * len(lines))) :]
    words = words_of(name)
    explained = [line["explained_variance"] if of == "l0" else 1 - line["fvu"] for line in last]
    return _End(
        of=of,
        kind=", ".join(word for word in words if "=" not in word),
        label=", ".join(word for word in words if "=" in word),
        cost=float(np.mean([line[of] for line in last])),
        explained=float(np.mean(explained)),
    )


def _curves_of(lines: Sequence[Mapping[str, float]]) -> list[tuple[str, str, str]]:
    """Key, title and label of each curve that there is something to see of."""
    there = [curve for curve in CURVES if any(curve[0] in line for line in lines)]
    return there + [curve for curve in CHANGING if _changes(lines, curve[0])]


def _draw(
    figure: Figure,
    place: tuple[int, int, int],
    lines: Sequence[Mapping[str, float]],
    curve: tuple[str, str, str],
) -> None:
    """One curve: each line of the file in pale, a smoothed line over it."""
    key, title, label = curve
    axes = axes_in(figure, place, title=title, y=label)
    rows, values = ([line[name] for line in lines if key in line] for name in ("rows", key))
    axes.plot(rows, values, color=BLUE, alpha=0.3, lw=0.8)
    axes.plot(*smoothed(rows, values), color=BLUE, lw=1.6)
    axes.set_xlabel("tokens seen")
    axes.margins(x=0)
    if key in _COUNTS:
        axes.set_ylim(bottom=0, top=1.1 * max(values) or 1.0)
    if key == "explained_variance" and min(values) < 0 < max(values):
        axes.set_ylim(bottom=0)  # the first steps are far below, and tell nothing
    if key in _LOG_KEYS:
        as_log_if_wide(axes, "y", values)
    axes.yaxis.set_major_formatter(short)


def _changes(lines: Sequence[Mapping[str, float]], key: str) -> bool:
    values = [line[key] for line in lines if key in line]
    if key in _NOISE and len(values) > 1:
        _, means = smoothed(values[1:], values[1:])  # the first steps are slow everywhere
        low, high = np.percentile(means, (10, 90))
        return bool(high > _NOISE[key] * low)
    return len(set(values)) > 1


def _read_lines(metrics: Path) -> list[dict[str, float]]:
    try:
        lines = [{key: float(x) for key, x in line.items()} for line in read_curves(metrics)]
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{metrics} is damaged: {error}") from error
    if not any(line.keys() & {key for key, *_ in CURVES} for line in lines):
        raise CheckpointError(f"{metrics} holds no line of a training run's metrics")
    return lines
