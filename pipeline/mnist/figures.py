"""The figures of the experiment: weights as they form, features as images, networks compared."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from pipeline.mnist.classifier import LAYERS, Classifier
from pipeline.mnist.images import N_CLASSES, Labelled
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
from pipeline.sae.sae import SAE

_COLORS = "RdBu_r"
_STRIP = 8
"""Epochs that a strip shows."""
_POOL = 160
"""Cells of a side that a picture of weights has at most: each shows the largest of its weights."""
_LAST = 1500  # milliseconds that an animation rests at its end
_FRAME = 160

Weights = Float[np.ndarray, "n_in n_out"]


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


def epochs_figure(
    epochs: Mapping[int, Weights], *, threshold: float, names: tuple[str, str]
) -> Figure:
    """The weights after a few of the epochs, early ones closer together."""
    numbers = [*epochs]
    shown = [numbers[i] for i in _spread(len(numbers), _STRIP)]
    n_rows = -(-len(shown) // 4)
    figure = make_figure(width=9.0, height=2.65 * n_rows)
    for place, epoch in enumerate(shown, start=1):
        axes = figure.add_subplot(n_rows, min(4, len(shown)), place)
        words = f"epoch {epoch}: {_count(epochs[epoch], threshold):,}"
        draw_weights(axes, arranged(epochs[epoch], epochs[numbers[-1]]), title=words, size=9.0)
    figure.supxlabel(f"features of {names[1]}", fontsize=8.5, color=INK)
    figure.supylabel(f"features of {names[0]}", fontsize=8.5, color=INK)
    return figure


def epochs_animation(epochs: Mapping[int, Weights], *, threshold: float) -> bytes:
    """The weights after every epoch, one after the other, as a GIF."""
    pictures, last = list[Image.Image](), [*epochs.values()][-1]
    for epoch, W in epochs.items():
        figure = make_figure(width=3.4, height=3.7)
        figure.set_dpi(110)
        axes = figure.add_subplot()
        words = f"after epoch {epoch}: {_count(W, threshold):,} above {threshold:g}"
        draw_weights(axes, arranged(W, last), title=words, size=9.0)
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
    _bare(axes)
    axes.spines[:].set_visible(True)
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
    picture.imshow(image, cmap="gray_r", vmin=0)
    _bare(picture)
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
    """What a feature looks like, and the digits it is active on."""

    name: str
    words: str
    direction: Float[np.ndarray, "side side"]
    mean: Float[np.ndarray, "side side"]
    top: Sequence[Float[np.ndarray, "side side"]]


N_TOP = 8
"""Images that a feature is shown with."""


def feature_images(
    net: Classifier, sae: SAE, images: Labelled, *, layer: str, n_features: int
) -> list[FeatureImages]:
    """The features of a layer that are active most often, each with the images it fires on most."""
    x, _ = images.tensors(sae.W_enc.device)
    index = LAYERS.index(layer)
    with torch.no_grad():
        z = sae.encode(net.hidden(x)[index])
    often = (z > 0).sum(0).sort(descending=True, stable=True)
    chosen = [int(i) for i, n in zip(often.indices, often.values, strict=True) if n][:n_features]
    shares = digit_shares(z, images.labels)
    side = images.pixels.shape[1:]
    shown = list[FeatureImages]()
    for feature in chosen:
        values = z[:, feature].cpu().numpy()
        top = np.argsort(-values, kind="stable")[:N_TOP]
        top = top[values[top] > 0]
        mean = np.average(images.pixels, axis=0, weights=values)
        slope = pixel_slope(net, sae, x[torch.from_numpy(top)], feature, layer=index)
        shown.append(
            FeatureImages(
                name=f"{layer}.{feature}",
                words=told(shares[feature]),
                direction=slope.reshape(side),
                mean=mean,
                top=[images.pixels[i] for i in top],
            )
        )
    return shown


def digit_shares(
    z: Float[Tensor, "n d_sae"], labels: Int64[np.ndarray, " n"]
) -> Float32[np.ndarray, "d_sae classes"]:
    """How each feature's activation is divided among the digits; zeros of one never active."""
    one_hot = torch.eye(N_CLASSES, device=z.device)[torch.from_numpy(labels).to(z.device)]
    sums = (z.T @ one_hot).cpu().numpy()
    total = sums.sum(1, keepdims=True)
    return np.divide(sums, total, out=np.zeros_like(sums), where=total > 0)


def told(share: Float[np.ndarray, " classes"]) -> str:
    """The one or two digits that a feature is mostly active on: `7 (81 %)`."""
    first, second = np.argsort(-share, kind="stable")[:2]
    if not share[first]:
        return "never active"
    if share[first] >= 0.5:
        return f"{first} ({share[first]:.0%})"
    return f"{first}, {second} ({share[first] + share[second]:.0%})"


def pixel_slope(
    net: Classifier,
    sae: SAE,
    x: Float[Tensor, "n d_in"],
    feature: int,
    *,
    layer: int,
) -> Float[np.ndarray, " d_in"]:
    """What a little more of each pixel adds to a feature: the mean gradient over these images.

    Layers count from 0, the first hidden one.
    """
    pixels = x.clone().requires_grad_()
    with torch.enable_grad():
        pre = sae.pre(net.hidden(pixels)[layer])[:, feature]
        (slope,) = torch.autograd.grad(pre.sum(), pixels)
    return slope.mean(0).cpu().numpy()


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


def network_frontier_figure(
    lines: Mapping[str, Sequence[tuple[int, float, str]]],
    *,
    original: float,
    allowed: float,
    marks: Mapping[str, int],
) -> Figure:
    """Weights against accuracy, of which `allowed` may be lost; `marks` are numbers of weights.

    A line, by its label, goes through weights, accuracy and name of networks of one form; those of
    the last are named.
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
    last = [*lines][-1]
    for (label, networks), color in zip(lines.items(), (BLUE, AMBER, GREEN), strict=False):
        found = sorted(networks)
        at = [(n, y) for n, y, _ in found]
        axes.plot(*zip(*at, strict=True), "o-", ms=4.5, lw=1.4, color=color, label=label)
        for n, y, name in found if label == last else ():
            axes.annotate(
                name, (n, y), (0, 6), textcoords="offset points", fontsize=6.5, color=color,
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
