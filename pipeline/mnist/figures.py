"""Figures of the experiment; features as images.

What features look like, as images.

Everything that the experiment shows: files in its folder, and what its page is made of.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from matplotlib.figure import Figure
from torch import Tensor

from actstore.files import write_file
from pipeline.mnist.classifier import LAYERS, Classifier
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.images import N_CLASSES, Images, Labelled
from pipeline.mnist.network import LARGE, FeatureNetwork
from pipeline.mnist.result import FORMS, NEURON_WEIGHTS, WEIGHTS, Form, MnistResult, network_name
from pipeline.mnist.train import PAIRS, Trained, load_frames, planned_connectors, steps_per_epoch
from pipeline.plots.mnist import (
    FeatureImages,
    FrontierLine,
    accuracies_figure,
    features_figure,
    network_frontier_figure,
    reconstruction_figure,
)
from pipeline.plots.style import save
from pipeline.plots.weights import Epoch, epochs_animation, epochs_figure, weights_figure
from pipeline.sae.sae import SAE

N_TOP = 8
"""Images that a feature is shown with."""


def feature_images(
    net: Classifier, coder: SAE, images: Labelled, *, layer: str, n_features: int
) -> list[FeatureImages]:
    """The features of a layer that are active most often, each with the images it fires on most."""
    x, _ = images.tensors(coder.W_enc.device)
    index = LAYERS.index(layer)
    with torch.no_grad():
        z = coder.encode(net.hidden(x)[index])
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
        slope = pixel_slope(net, coder, x[torch.from_numpy(top)], feature, layer=index)
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
    coder: SAE,
    x: Float[Tensor, "n d_in"],
    feature: int,
    *,
    layer: int,
) -> Float[np.ndarray, " d_in"]:
    """What a little more of each pixel adds to a feature: the mean gradient over these images.

    Args:
        net: The classifier.
        coder: The SAE of one of its hidden layers.
        x: Images.
        feature: Which.
        layer: Of the hidden layer, from 0.
    """
    pixels = x.clone().requires_grad_()
    with torch.enable_grad():
        pre = coder.pre(net.hidden(pixels)[layer])[:, feature]
        (slope,) = torch.autograd.grad(pre.sum(), pixels)
    return slope.mean(0).cpu().numpy()


ALLOWED = 0.02
"""Accuracy that a simulation may lose."""
_FEATURES = 8
_SHOWN = 0
"""The test image whose activations are drawn."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """All that there is to draw."""

    config: MnistConfig
    images: Images
    trained: Trained
    networks: Mapping[tuple[str, Form], FeatureNetwork]
    result: MnistResult

    @property
    def chosen(self) -> FeatureNetwork:
        """The network that stands for the others, as it was trained."""
        return self.networks[self.result.chosen, "trained"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawings:
    """The figures, by the names of their files without the ending; those of dots as PNG."""

    epochs: dict[str, bytes]
    animation: bytes
    weights: dict[str, bytes]
    reconstruction: Figure
    features: dict[str, bytes]
    accuracies: Figure
    frontier: Figure


def draw(scene: Scene) -> Drawings:
    """Draw every figure, and write it into the experiment's folder.

    Raises:
        OSError: the disk is full or fails.
    """
    out = scene.config.out
    epochs = {f"{a}-{b}": _epochs(scene, (a, b)) for a, b in PAIRS}
    threshold = scene.config.threshold
    strips = {
        f"epochs-{name}": _dots(
            epochs_figure(found, threshold=threshold, names=(name[:2], name[3:]))
        )
        for name, found in epochs.items()
    }
    drawings = Drawings(
        epochs=strips,
        animation=epochs_animation(next(iter(epochs.values())), threshold=threshold),
        weights={f"weights-{a}-{b}": _dots(_weights(scene, (a, b))) for a, b in PAIRS},
        reconstruction=_reconstruction(scene),
        features={f"features-{layer}": _dots(_features(scene, layer)) for layer in LAYERS},
        accuracies=accuracies_figure(accuracies(scene.result), groups=GROUPS),
        frontier=_frontier(scene.result),
    )
    for name, data in (strips | drawings.weights | drawings.features).items():
        write_file(out / f"{name}.png", [data])
    write_file(out / "epochs.gif", [drawings.animation])
    save(drawings.reconstruction, out / "reconstruction.png")
    save(drawings.accuracies, out / "accuracies.png")
    save(drawings.frontier, out / "frontier.png")
    return drawings


GROUPS = ("classifier", "SAE", "connector", "simulated")


def accuracies(result: MnistResult) -> dict[str, float]:
    """Of every way to run the classifier, by what it is made of."""
    kind, chosen = result.config.sae, result.chosen
    found = {"classifier: as it is": result.accuracy}
    for layer in LAYERS:
        found[f"SAE: {layer} reconstructed"] = result.sae(kind, layer).accuracy
    trained = result.network(chosen, "trained")
    for (_, target), value in zip(PAIRS, trained.accuracy_replaced, strict=True):
        found[f"connector: {target} alone from features before"] = value
    for form in FORMS:
        found[f"simulated: h2 and h3, {form}"] = result.network(chosen, form).accuracy
    return found


def _epochs(scene: Scene, pair: tuple[str, str]) -> list[Epoch]:
    """The weights of the chosen connector of a pair, after each epoch that was kept."""
    store = scene.trained.store
    every = steps_per_epoch(store.n_rows)
    (run,) = (
        one.config.out
        for one in planned_connectors(scene.config, store)
        if (one.pair, one.name) == (pair, network_name(scene.config.chosen_l1))
    )
    return [Epoch(epoch=step // every, W=W) for step, W in load_frames(run)]


def _weights(scene: Scene, pair: tuple[str, str]) -> Figure:
    i = PAIRS.index(pair)
    return weights_figure(
        scene.trained.net.linear[i + 1].weight.T.cpu().numpy(),
        scene.chosen.connectors[i].W.cpu().numpy(),
        threshold=scene.config.threshold,
        names=pair,
    )


@torch.no_grad()
def _reconstruction(scene: Scene) -> Figure:
    """Of one test image at the first hidden layer."""
    x, _ = scene.images.test.tensors(scene.trained.net.linear[0].weight.device)
    h = scene.trained.net.hidden(x[_SHOWN : _SHOWN + 1])[0]
    coder = scene.chosen.coders[0]
    z = coder.encode(h)
    return reconstruction_figure(
        scene.images.test.pixels[_SHOWN],
        *(t[0].cpu().numpy() for t in (h, coder.decode(z), z)),
        large=LARGE,
        title=f"a test image: {scene.images.test.labels[_SHOWN]}",
    )


def _features(scene: Scene, layer: str) -> Figure:
    coder = scene.chosen.coders[LAYERS.index(layer)]
    shown = feature_images(
        scene.trained.net, coder, scene.images.test, layer=layer, n_features=_FEATURES
    )
    return features_figure(shown, direction="gradient", title=f"Features of {layer}, by frequency")


def _frontier(result: MnistResult) -> Figure:
    lines = list[FrontierLine]()
    for form in FORMS:
        found = [(result.network(network_name(l1), form), l1) for l1 in result.config.connect_l1]
        lines.append(
            FrontierLine(
                label=form,
                points=[(one.n_above, one.accuracy) for one, _ in found],
                names=[f"{l1:g}" for _, l1 in found],
            )
        )
    return network_frontier_figure(
        lines,
        original=result.accuracy,
        allowed=ALLOWED,
        marks={"S2, one connector": WEIGHTS, "S2, one layer of neurons": NEURON_WEIGHTS},
    )


def _dots(figure: Figure) -> bytes:
    """A figure as PNG: the same in its file and on the page."""
    data = BytesIO()
    figure.savefig(data, format="png", metadata={"Software": None})
    return data.getvalue()
