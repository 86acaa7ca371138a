"""Everything that the experiment shows: figures in its folder, and a page made of them."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from actstore.files import write_file
from pipeline.mnist.classifier import LAYERS
from pipeline.mnist.figures import (
    Figure,
    Weights,
    accuracies_figure,
    digit_shares,
    epochs_animation,
    epochs_figure,
    feature_images,
    features_figure,
    network_frontier_figure,
    reconstruction_figure,
    told,
    weights_figure,
)
from pipeline.mnist.images import Images
from pipeline.mnist.network import LARGE, FeatureNetwork
from pipeline.mnist.result import (
    FORMS,
    NEURON_WEIGHTS,
    WEIGHTS,
    Form,
    MnistResult,
    NetworkFigures,
    compared,
    fvu_words,
    network_name,
)
from pipeline.mnist.train import PAIRS, Trained, connector_folder, load_frames, steps_per_epoch
from pipeline.plots.style import as_png, save
from pipeline.report.experiment import Chapter, Picture, Table
from pipeline.report.page import write_experiment
from pipeline.report.render import Tile

PAGE = "report.html"
ALLOWED = 0.02
"""Accuracy that a simulation may lose."""
GROUPS = ("classifier", "SAE", "connector", "simulated")
_FEATURES = 8
_SHOWN = 0
"""The test image whose activations are drawn."""
_EQUATIONS = 12
_TERMS = 4

Drawings = dict[str, Figure | bytes]
"""By the names of their files, without the ending."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Exhibit:
    """All that there is to show."""

    images: Images
    trained: Trained
    networks: Mapping[tuple[str, Form], FeatureNetwork]
    result: MnistResult

    @property
    def chosen(self) -> FeatureNetwork:
        """The network that stands for the others, as it was trained."""
        return self.networks[self.result.chosen, "trained"]


def show(exhibit: Exhibit) -> None:
    """Write every figure, and the page, into the experiment's folder."""
    out, result, drawings = exhibit.result.config.out, exhibit.result, draw(exhibit)
    for name, content in drawings.items():
        if isinstance(content, Figure):
            save(content, out / f"{name}.png")
        else:
            ending = "gif" if content.startswith(b"GIF8") else "png"
            write_file(out / f"{name}.{ending}", [content])
    write_experiment(
        "A classifier, run by its features",
        out=out / PAGE,
        kind="Experiment",
        lead=(
            f"{result.images}: {result.n_train:,} images to learn from, {result.n_test:,} to "
            "measure on"
        ),
        tiles=_tiles(result),
        chapters=[
            _comparison(result),
            _simulation(result, drawings),
            _connectors(exhibit, drawings),
            _features(drawings),
        ],
    )


def draw(exhibit: Exhibit) -> Drawings:
    """Every figure; those of many dots as images."""
    threshold, net = exhibit.result.config.threshold, exhibit.trained.net
    epochs = {pair: _epochs(exhibit.result, pair) for pair in PAIRS}
    drawings: Drawings = {"epochs": epochs_animation(epochs[PAIRS[0]], threshold=threshold)}
    for i, pair in enumerate(PAIRS):
        name = "-".join(pair)
        strip = epochs_figure(epochs[pair], threshold=threshold, names=pair)
        drawings[f"epochs-{name}"] = as_png(strip)
        neurons = net.linear[i + 1].weight.T.cpu().numpy()
        W = exhibit.chosen.connectors[i].W.cpu().numpy()
        figure = weights_figure(neurons, W, threshold=threshold, names=pair)
        drawings[f"weights-{name}"] = as_png(figure)
    for layer, sae in zip(LAYERS, exhibit.chosen.saes, strict=True):
        shown = feature_images(net, sae, exhibit.images.test, layer=layer, n_features=_FEATURES)
        figure = features_figure(
            shown, direction="gradient", title=f"Features of {layer}, by frequency"
        )
        drawings[f"features-{layer}"] = as_png(figure)
    drawings["reconstruction"] = _reconstruction(exhibit)
    drawings["accuracies"] = accuracies_figure(accuracies(exhibit.result), groups=GROUPS)
    drawings["frontier"] = _frontier(exhibit.result)
    return drawings


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


def _epochs(result: MnistResult, pair: tuple[str, str]) -> dict[int, Weights]:
    """The weights of the chosen connector of a pair, by the epoch they are the end of."""
    every = steps_per_epoch(result.n_train)
    frames = load_frames(connector_folder(result.config.out, pair, result.chosen))
    return {step // every: W for step, W in frames.items() if step % every == 0}  # not of Ctrl-C


@torch.no_grad()
def _reconstruction(exhibit: Exhibit) -> Figure:
    """Of one test image at the first hidden layer."""
    x, _ = exhibit.images.test.tensors(exhibit.trained.net.linear[0].weight.device)
    h = exhibit.trained.net.hidden(x[_SHOWN : _SHOWN + 1])[0]
    sae = exhibit.chosen.saes[0]
    z = sae.encode(h)
    return reconstruction_figure(
        exhibit.images.test.pixels[_SHOWN],
        *(t[0].cpu().numpy() for t in (h, sae.decode(z), z)),
        large=LARGE,
        title=f"a test image: {exhibit.images.test.labels[_SHOWN]}",
    )


def _frontier(result: MnistResult) -> Figure:
    lines = dict[str, list[tuple[int, float, str]]]()
    for form in FORMS:
        found = [(l1, result.network(network_name(l1), form)) for l1 in result.config.connect_l1]
        lines[form] = [(one.n_above, one.accuracy, f"{l1:g}") for l1, one in found]
    return network_frontier_figure(
        lines,
        original=result.accuracy,
        allowed=ALLOWED,
        marks={"S2, one connector": WEIGHTS, "S2, one layer of neurons": NEURON_WEIGHTS},
    )


def _tiles(result: MnistResult) -> list[Tile]:
    chosen, refitted = (result.network(result.chosen, form) for form in ("trained", "refitted"))
    threshold, n_neurons = f"{result.config.threshold:g}", sum(result.neuron_weights)
    told = {
        "classifier": (f"{result.accuracy:.1%}", "accuracy on test images"),
        "simulated": (f"{chosen.accuracy:.1%}", f"{chosen.n_above:,} weights above {threshold}"),
        "cut and refitted": (
            f"{refitted.accuracy:.1%}",
            f"{refitted.n_above:,} weights, no others",
        ),
        "neurons": (f"{n_neurons:,}", f"weights above {threshold} between the same layers"),
    }
    return [Tile(name=name, value=value, note=note) for name, (value, note) in told.items()]


def _comparison(result: MnistResult) -> Chapter:
    rows = {what: (s2, " · ".join(ours)) for what, (s2, ours) in compared(result).items()}
    return Chapter(
        title="Beside the figures of S2",
        words=(
            "S2 is “Learning Interpretable Features with Sparse Auto-Encoders”, whose classifier "
            "learned from 60,000 images. It does not say of which layer its figures are, nor in "
            "which unit. Ours are means over images and neurons, or images and features; several "
            f"in a line are those of {', '.join(LAYERS)}, or of "
            f"{' and '.join(f'{a} → {b}' for a, b in PAIRS)}. Rms is the layer's root mean square.",
            "Dictionaries have rows of length 1, so that a feature's scale is that of its layer, "
            "and weights cannot be made small by making features large.",
        ),
        tables=[Table(columns=("S2", "ours"), rows=rows)],
    )


def _simulation(result: MnistResult, drawings: Drawings) -> Chapter:
    threshold = result.config.threshold
    return Chapter(
        title="The simulated network",
        words=(
            "The first hidden layer is encoded once; connectors alone make the features of the "
            "second and third; the third's are decoded for the last layer. Trained: as the "
            f"penalty left it. Cut: without the weights up to {threshold:g}. Refitted: those that "
            "are left, fitted again without the penalty.",
        ),
        tables=[
            Table(
                columns=("accuracy", *(f"{layer} alone" for layer in LAYERS[1:]),
                         f"weights > {threshold:g}", "not zero", "FVU"),
                rows={_name(one): _cells(one) for one in result.networks},
                note="FVU: squared error of the predicted features over that around their means, "
                "each connector reading true features.",
            )
        ],
        pictures=[
            Picture(content=drawings["frontier"], title="Accuracy for how many weights", wide=True),
            Picture(
                content=drawings["accuracies"], title="Accuracy with layers replaced", wide=True
            ),
        ],
    )  # fmt: skip


def _connectors(exhibit: Exhibit, drawings: Drawings) -> Chapter:
    pictures = [
        Picture(
            content=drawings["epochs"],
            title="The first connector, epoch by epoch",
            caption="Outputs stand in the order of the input with their largest final weight.",
        )
    ]
    for a, b in PAIRS:
        weights, epochs = (drawings[f"{what}-{a}-{b}"] for what in ("weights", "epochs"))
        pictures += [
            Picture(content=weights, title=f"Weights of {a} → {b}", wide=True),
            Picture(content=epochs, title=f"{a} → {b} after some of the epochs", wide=True),
        ]
    return Chapter(
        title="Connectors",
        words=(
            "In brackets, the digits on which a feature is active, by share of its activation; "
            "the outputs are those active most often.",
        ),
        pictures=pictures,
        formulas=equations(exhibit),
    )


def _features(drawings: Drawings) -> Chapter:
    shown = [
        Picture(content=drawings["reconstruction"], title="Neurons, reconstructed", wide=True),
        *(
            Picture(
                content=drawings[f"features-{layer}"],
                title=f"Features of {layer}",
                caption="Left: what a little more of each pixel adds (red) or takes (blue), mean "
                "gradient over the images beside it. Then the mean image, weighted by activation.",
                wide=True,
            )
            for layer in LAYERS
        ),
    ]
    return Chapter(title="Features", pictures=shown)


def equations(exhibit: Exhibit) -> list[str]:
    """The outputs that are active most often, as sums of the inputs that are left after cutting."""
    network = exhibit.networks[exhibit.result.chosen, "refitted"]
    x, _ = exhibit.images.test.tensors(exhibit.trained.net.linear[0].weight.device)
    latents = network.latents(x)
    words = [
        [told(share) for share in digit_shares(z, exhibit.images.test.labels)] for z in latents
    ]
    lines = list[str]()
    for i, (source, target) in enumerate(PAIRS):
        W = network.connectors[i].W.cpu().numpy()
        often = np.argsort(-(latents[i + 1] > 0).sum(0).cpu().numpy(), kind="stable")
        for output in often[:_EQUATIONS]:
            column = W[:, output]
            inputs = [j for j in np.argsort(-np.abs(column), kind="stable")[:_TERMS] if column[j]]
            terms = "".join(
                f" {'-' if column[j] < 0 else '+'} {abs(column[j]):.2f} {source}.{j} "
                f"[{words[i][j]}]"
                for j in inputs
            )
            more = int((column != 0).sum()) - len(inputs)
            rest = f" ... and {more} more" if more else ""
            sum_ = terms.removeprefix(" +").strip() or "0"
            lines.append(f"{target}.{output} [{words[i + 1][output]}] = {sum_}{rest}")
    return lines


def _name(one: NetworkFigures) -> str:
    return one.name if one.form == "trained" else f"{one.name}, {one.form}"


def _cells(one: NetworkFigures) -> tuple[str, ...]:
    return (
        f"{one.accuracy:.3f}",
        *(f"{value:.3f}" for value in one.accuracy_replaced),
        " + ".join(f"{c.n_above:,}" for c in one.connectors),
        " + ".join(f"{c.n_nonzero:,}" for c in one.connectors),
        fvu_words(one.connectors, between=" · ", digits=3),
    )
