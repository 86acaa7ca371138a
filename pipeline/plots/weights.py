"""Figures of the weights of connectors: as they form, and beside those of the neurons."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from jaxtyping import Float, Float32
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from pipeline.plots.style import GRAY, INK, make_figure

_STRIP = 8
"""Epochs that a strip shows."""
_POOL = 160
"""Cells of a side that a picture of weights has at most: each shows the largest of its weights."""
_LAST = 1500  # milliseconds that an animation rests at its end
_FRAME = 160
_COLORS = "RdBu_r"

Weights = Float[np.ndarray, "n_in n_out"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Epoch:
    """The weights of a connector after so many epochs."""

    epoch: int
    W: Float32[np.ndarray, "n_in n_out"]


def arranged(W: Weights, by: Weights) -> Float[np.ndarray, "inputs outputs"]:
    """Its alive outputs, each as near as can be to the inputs that it is made of.

    Inputs without a weight in `by`, and outputs, are left out; outputs stand in the order of their
    largest weight's input.
    """
    size = np.abs(by)
    inputs, outputs = np.flatnonzero(size.any(1)), np.flatnonzero(size.any(0))
    if not len(inputs):
        return W
    order = np.argsort(size[:, outputs].argmax(0), kind="stable")
    return W[np.ix_(inputs, outputs[order])]


def epochs_figure(epochs: Sequence[Epoch], *, threshold: float, names: tuple[str, str]) -> Figure:
    """The weights after a few of the epochs, early ones closer together."""
    shown = [epochs[i] for i in _spread(len(epochs), _STRIP)]
    n_rows = -(-len(shown) // 4)
    figure = make_figure(width=9.0, height=2.65 * n_rows)
    for place, one in enumerate(shown, start=1):
        axes = figure.add_subplot(n_rows, min(4, len(shown)), place)
        words = f"epoch {one.epoch}: {_count(one.W, threshold):,}"
        draw_weights(axes, arranged(one.W, epochs[-1].W), title=words, size=9.0)
    figure.supxlabel(f"features of {names[1]}", fontsize=8.5, color=INK)
    figure.supylabel(f"features of {names[0]}", fontsize=8.5, color=INK)
    return figure


def epochs_animation(epochs: Sequence[Epoch], *, threshold: float) -> bytes:
    """The weights after every epoch, one after the other, as a GIF."""
    pictures = list[Image.Image]()
    for one in epochs:
        figure = make_figure(width=3.4, height=3.7)
        figure.set_dpi(110)
        axes = figure.add_subplot()
        words = f"after epoch {one.epoch}: {_count(one.W, threshold):,} above {threshold:g}"
        draw_weights(axes, arranged(one.W, epochs[-1].W), title=words, size=9.0)
        canvas = figure.canvas
        assert isinstance(canvas, FigureCanvasAgg)
        canvas.draw()
        whole = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        pictures.append(whole.quantize(64, dither=Image.Dither.NONE))
    data = BytesIO()
    times = [_FRAME] * (len(pictures) - 1) + [_LAST]
    pictures[0].save(data, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0)
    return data.getvalue()


def weights_figure(
    neurons: Float[np.ndarray, "neurons_in neurons_out"],
    features: Weights,
    *,
    threshold: float,
    names: tuple[str, str],
) -> Figure:
    """The weights between two layers of neurons beside those between their features."""
    figure = make_figure(width=8.4, height=4.3)
    source, target = names
    for place, W, what in ((1, neurons, "neurons"), (2, features, "features")):
        axes = figure.add_subplot(1, 2, place)
        title = f"{what}: {_count(W, threshold):,} of {W.size:,} above {threshold:g}"
        draw_weights(axes, W if what == "neurons" else arranged(W, W), title=title, size=10.0)
        axes.set_xlabel(f"{what} of {target}", fontsize=8.5, color=INK)
        axes.set_ylabel(f"{what} of {source}", fontsize=8.5, color=INK)
    return figure


def draw_weights(axes: Axes, W: Weights, *, title: str, size: float) -> None:
    """Weights as colours: red above zero, blue below."""
    axes.imshow(pooled(W), cmap=_COLORS, vmin=-0.6, vmax=0.6, aspect="auto", interpolation="none")
    axes.set_title(title, fontsize=size, color=INK, loc="left", fontweight="bold")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color(GRAY)


def pooled(W: Weights) -> Float[np.ndarray, "height width"]:
    """At most `_POOL` cells a side, each the weight of largest size among those it stands for."""
    cells = W
    for axis in (0, 1):
        n = cells.shape[axis]
        starts = np.unique(np.linspace(0, n, min(n, _POOL), endpoint=False).astype(int))
        high = np.maximum.reduceat(cells, starts, axis)
        low = np.minimum.reduceat(cells, starts, axis)
        cells = np.where(high >= -low, high, low)
    return cells


def _spread(n: int, most: int) -> list[int]:
    """At most so many of `n` places, the first and last among them, the gaps growing."""
    if n <= most:
        return list(range(n))
    places = np.round(np.geomspace(1, n, most)).astype(int) - 1
    for i in range(1, most):  # early ones would coincide
        places[i] = max(places[i], places[i - 1] + 1)
    return [int(place) for place in places]


def _count(W: Weights, threshold: float) -> int:
    return int((np.abs(W) > threshold).sum())
