"""The figures. Drawn off screen through matplotlib's objects, so nothing global is touched."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Real
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from actstore.files import write_file
from pipeline.curves import read_curves
from pipeline.errors import CheckpointError

BLUE, RED, INK, GRAY, GRID = "#2b6cb0", "#d1495b", "#24292f", "#6e7781", "#e6e9ed"
_DPI = 160
_SMOOTHING = 0.03
"""Share of a curve that one point of its smoothed line is the mean of."""

CURVES = (
    ("l0", "L0", "features active per token"),
    ("recon", "Reconstruction loss", r"$\|x - \hat{x}\|^2$ per token"),
    ("l1", "L1 norm", r"$\|z\|_1$ per token"),
    ("explained_variance", "Explained variance", "share of the batch's variance"),
    ("n_dead", "Dead features", "features silent for the dead window"),
    ("loss", "Training loss", "reconstruction + sparsity"),
)
"""Key in metrics.jsonl, title, label of the axis."""

_LOG_KEYS, _LOG_FROM = frozenset({"recon", "loss"}), 10.0
"""Curves drawn on a logarithmic axis once they span more than this factor."""

_COUNTS = frozenset({"l0", "n_dead"})
"""Curves whose axis starts at zero."""


def training_curves(metrics: Path, out: Path) -> None:
    """L0, losses, explained variance and dead latents of a run over the rows it has seen.

    Raises:
        CheckpointError: `metrics` is missing, empty or damaged.
    """
    lines = _read_lines(metrics)
    curves = [curve for curve in CURVES if any(curve[0] in line for line in lines)]
    n_columns = min(3, len(curves))
    n_lines = -(-len(curves) // n_columns)
    figure = _figure(width=3.6 * n_columns, height=2.7 * n_lines)
    for i, (key, title, label) in enumerate(curves):
        axes = _axes(figure, (n_lines, n_columns, i + 1), title=title, y=label)
        rows = _column(lines, "rows", where=key)
        values = _column(lines, key, where=key)
        axes.plot(rows, values, color=BLUE, alpha=0.3, lw=0.8)
        axes.plot(*_smoothed(rows, values), color=BLUE, lw=1.6)
        axes.set_xlabel("tokens seen")
        axes.margins(x=0)
        if key in _COUNTS:
            axes.set_ylim(bottom=0, top=max(1.0, 1.1 * max(values)))
        if key in _LOG_KEYS and 0 < _LOG_FROM * min(values) < max(values):
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(_short)
    _save(figure, out)


def dead_cosine(
    cosine: Float[np.ndarray, " d_sae"] | None,
    dead: Bool[np.ndarray, " d_sae"],
    out: Path,
    *,
    n_tokens: int,
) -> None:
    """Histograms of each latent's cosine with the mean dead row: the dead against the living.

    Without dead latents there is no such direction; the figure then says so.
    """
    figure = _figure(width=6.0, height=3.4)
    axes = _axes(
        figure, (1, 1, 1), title="Do dead features point the same way?", y="% of each group"
    )
    axes.set_xlabel("cosine of a feature's decoder row with the mean dead row")
    if cosine is None:
        _say(
            axes, f"none is dead: each of {dead.size:,} features fired on these {n_tokens:,} tokens"
        )
        _save(figure, out)
        return
    low = min(-0.25, float(cosine.min()))
    bins = np.linspace(low, 1, 81).tolist()
    for chosen, color, name in ((~dead, BLUE, "alive"), (dead, RED, "dead")):
        if not chosen.any():
            continue
        mean = float(cosine[chosen].mean())
        label = f"{name}: {int(chosen.sum()):,} features, mean {mean:.2f}"
        share = np.full(int(chosen.sum()), 100 / chosen.sum())
        axes.hist(cosine[chosen], bins, weights=share, color=color, alpha=0.55, label=label)
        axes.axvline(mean, color=color, lw=1.2, ls="--")
    axes.set_xlim(low, 1)
    axes.legend(title=f"dead: never active on {n_tokens:,} tokens", **_LEGEND)
    _save(figure, out)


def finetune_loss(
    losses: Sequence[float], out: Path, *, ce_base: float, ce_spliced: float, ce_finetuned: float
) -> None:
    """The training loss of a fine-tuning, with the held-out losses it started from and reached."""
    figure = _figure(width=6.4, height=3.4)
    axes = _axes(figure, (1, 1, 1), title="Fine-tuning only c and d", y="cross-entropy (nats)")
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=BLUE, alpha=0.25, lw=0.7)
    axes.plot(*_smoothed(steps, losses), color=BLUE, lw=1.8, label="training batches")
    for loss, name, color, style in (
        (ce_base, "model without the coder", GRAY, ":"),
        (ce_spliced, "coder spliced in, c = 1, d = 0", RED, "--"),
        (ce_finetuned, "after fine-tuning", INK, "-"),
    ):
        axes.axhline(loss, color=color, ls=style, lw=1.3, label=f"held out, {name}: {loss:.3f}")
    axes.set_xlabel("step")
    axes.margins(x=0)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.94), **_LEGEND)
    _save(figure, out)


def scales_and_biases(
    c: Float[np.ndarray, " d_sae"], d: Float[np.ndarray, " d_sae"], out: Path
) -> None:
    """Learned scales and learned biases, each sorted in ascending order."""
    figure = _figure(width=8.0, height=3.2)
    _sorted(figure, 1, c, start=1, title="Learned scales", y="scale c")
    _sorted(figure, 2, d, start=0, title="Learned biases", y="bias d")
    _save(figure, out)


_LEGEND: dict[str, Any] = {
    "frameon": False, "fontsize": 8, "title_fontsize": 8, "labelcolor": INK,
}  # fmt: skip


def _sorted(
    figure: Figure,
    place: int,
    values: Float[np.ndarray, " d_sae"],
    *,
    start: int,
    title: str,
    y: str,
) -> None:
    """One vector in ascending order: what fell below its start in red, what rose in blue."""
    axes = _axes(figure, (1, 2, place), title=title, y=y)
    ordered, index = np.sort(values), np.arange(values.size)
    axes.fill_between(index, start, ordered, where=ordered < start, color=RED, alpha=0.35, lw=0)
    axes.fill_between(index, start, ordered, where=ordered > start, color=BLUE, alpha=0.35, lw=0)
    axes.plot(index, ordered, color=INK, lw=1.3)
    axes.axhline(start, color=GRAY, lw=0.9, ls="--")
    for share, side, height, color in (
        (float((values > start).mean()), "above", 0.93, BLUE),
        (float((values < start).mean()), "below", 0.86, RED),
    ):
        style: dict[str, Any] = {"xycoords": "axes fraction", "fontsize": 8, "color": color}
        axes.annotate(f"{share:.0%} {side} {start}", (0.06, height), **style)
    axes.set_xlabel(f"features, sorted by {y}")
    axes.margins(x=0.02)


def _figure(*, width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _axes(figure: Figure, place: tuple[int, int, int], *, title: str, y: str) -> Axes:
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
    axes.xaxis.set_major_formatter(_short)
    return axes


def _say(axes: Axes, text: str) -> None:
    axes.annotate(text, (0.5, 0.5), xycoords="axes fraction", ha="center", color=GRAY, fontsize=9)
    axes.set_axis_off()


def _short(value: float, _: object = None) -> str:
    """A tick in few characters: 1500000 as 1.5M, 1500 as it is."""
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(unit, 1e4):
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _smoothed(
    x: Sequence[float] | Real[np.ndarray, " n"], y: Sequence[float] | Real[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Means over a sliding window: symmetric, shrunk where it starts, cut off where it ends."""
    values, at = np.asarray(y, dtype=np.float64), np.arange(len(y))
    left = np.minimum(at, round(_SMOOTHING * values.size / 2))
    right = np.minimum(left, values.size - 1 - at)
    totals = np.concatenate([[0.0], values.cumsum()])
    means = (totals[at + right + 1] - totals[at - left]) / (left + right + 1)
    return np.asarray(x, dtype=np.float64), means


def _read_lines(metrics: Path) -> list[dict[str, float]]:
    lines = [{key: float(v) for key, v in line.items()} for line in read_curves(metrics)]
    if not any(line.keys() & {key for key, *_ in CURVES} for line in lines):
        raise CheckpointError(f"{metrics} holds no line of a training run's metrics")
    return lines


def _column(lines: list[dict[str, float]], key: str, *, where: str) -> list[float]:
    """Values of one key in the lines that have the key `where`."""
    return [line[key] for line in lines if where in line]


def _save(figure: Figure, out: Path) -> None:
    """Write a PNG under a temporary name, then rename it."""
    png = BytesIO()
    figure.savefig(png, format="png")
    write_file(out, [png.getbuffer()])
