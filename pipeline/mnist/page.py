"""The experiment's page."""

import numpy as np

from pipeline.mnist.classifier import LAYERS
from pipeline.mnist.figures import Drawings, Scene, digit_shares, told
from pipeline.mnist.result import NetworkFigures, compared
from pipeline.mnist.train import PAIRS
from pipeline.report.experiment import Chapter, Picture, Table
from pipeline.report.page import write_experiment
from pipeline.report.render import Tile

PAGE = "report.html"
_EQUATIONS = 12
_TERMS = 4


def write_mnist_page(scene: Scene, drawings: Drawings) -> None:
    """Write `report.html`.

    Raises:
        OSError: the disk is full or fails.
    """
    result = scene.result
    write_experiment(
        "A classifier, run by its features",
        out=scene.config.out / PAGE,
        kind="Experiment",
        lead=(
            f"{result.images}: {result.n_train:,} images to learn from, {result.n_test:,} to "
            "measure on"
        ),
        tiles=_tiles(scene),
        chapters=[
            _comparison(scene),
            _simulation(scene, drawings),
            _connectors(scene, drawings),
            _features(drawings),
        ],
    )


def _tiles(scene: Scene) -> list[Tile]:
    result = scene.result
    chosen, refitted = (result.network(result.chosen, form) for form in ("trained", "refitted"))
    return [
        Tile(name="classifier", value=f"{result.accuracy:.1%}", note="accuracy on test images"),
        Tile(
            name="simulated",
            value=f"{chosen.accuracy:.1%}",
            note=f"{chosen.n_above:,} weights above {scene.config.threshold:g}",
        ),
        Tile(
            name="cut and refitted",
            value=f"{refitted.accuracy:.1%}",
            note=f"{refitted.n_above:,} weights, no others",
        ),
        Tile(
            name="neurons",
            value=f"{sum(result.neuron_weights):,}",
            note=f"weights above {scene.config.threshold:g} between the same layers",
        ),
    ]


def _comparison(scene: Scene) -> Chapter:
    rows = {row.what: (row.s2, " · ".join(row.ours)) for row in compared(scene.result)}
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


def _simulation(scene: Scene, drawings: Drawings) -> Chapter:
    result = scene.result
    threshold = scene.config.threshold
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
            Picture(content=drawings.frontier, title="Accuracy for how many weights", wide=True),
            Picture(content=drawings.accuracies, title="Accuracy with layers replaced", wide=True),
        ],
    )  # fmt: skip


def _connectors(scene: Scene, drawings: Drawings) -> Chapter:
    pictures = [
        Picture(
            content=drawings.animation,
            title="The first connector, epoch by epoch",
            caption="Outputs stand in the order of the input with their largest final weight.",
        )
    ]
    for (a, b), weights, epochs in zip(
        PAIRS, drawings.weights.values(), drawings.epochs.values(), strict=True
    ):
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
        formulas=equations(scene),
    )


def _features(drawings: Drawings) -> Chapter:
    shown = [
        Picture(content=drawings.reconstruction, title="Neurons, reconstructed", wide=True),
        *(
            Picture(
                content=data,
                title=f"Features of {name.removeprefix('features-')}",
                caption="Left: what a little more of each pixel adds (red) or takes (blue), mean "
                "gradient over the images beside it. Then the mean image, weighted by activation.",
                wide=True,
            )
            for name, data in drawings.features.items()
        ),
    ]
    return Chapter(title="Features", pictures=shown)


def equations(scene: Scene) -> list[str]:
    """The outputs that are active most often, as sums of the inputs that are left after cutting."""
    network = scene.networks[scene.result.chosen, "refitted"]
    x, _ = scene.images.test.tensors(scene.trained.net.linear[0].weight.device)
    latents = network.latents(x)
    words = [[told(share) for share in digit_shares(z, scene.images.test.labels)] for z in latents]
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
        " · ".join(f"{c.fvu:.3f}" for c in one.connectors),
    )
