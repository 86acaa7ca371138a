"""What the experiment found, as `result.json` says it, beside what S2 reports; the folder of both.

    experiment.json                config and images that everything in the folder is made from
    classifier/layer-1.safetensors `weight` [out, in] and `bias`, and so on to 4
    train.actstore  test.actstore  hidden layers h1, h2, h3
    saes/  connectors/             runs, as saepipe train makes them
    result.json                    written last: the experiment is complete
    *.png  epochs.gif  report.html

Everything is measured on images never learned from. S2, "Learning Interpretable Features with
Sparse Auto-Encoders", says neither which layer its figures are of, nor in which unit: L1 is read as
the mean of the size over all elements, MSE as the mean squared error over all elements. Its
classifier learned from 60,000 images.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from actstore.files import make_folder, write_json
from pipeline.config.serialization import from_json, located, portable, to_json
from pipeline.errors import CheckpointError, ConfigError
from pipeline.mnist.classifier import LAYERS
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.images import Images
from pipeline.runs.folder import differences, is_free

Form = Literal["trained", "cut", "refitted"]
"""A connector as it was trained, without its weights up to the threshold, and with those that are
left fitted again."""
FORMS: tuple[Form, ...] = ("trained", "cut", "refitted")


@dataclass(frozen=True, kw_only=True)
class SaeFigures:
    """One SAE. Means are over images and neurons, or images and features."""

    kind: str
    """tied, or relu for one that is not."""
    layer: str
    rms: float
    """Root mean square of the layer's neurons: the unit of what is called scaled."""
    l1: float
    """Mean of `|z|`."""
    mse: float
    """Mean of `(h - h_hat)^2`."""
    l1_scaled: float
    """`l1 / rms`."""
    mse_scaled: float
    """`mse / rms^2`."""
    fvu: float | None
    """Sum of squared errors over that around the mean; None of a layer that never changes."""
    l0: float
    """Features above zero, of an image."""
    n_alive: int
    """Features above zero on any image."""
    neurons_large: float
    """Neurons above 0.3, of an image, as S2 counts them."""
    features_large: float
    """Features above 0.3, of an image."""
    accuracy: float
    """Of the classifier with the layer's reconstruction in its place."""


@dataclass(frozen=True, kw_only=True)
class ConnectorFigures:
    """One connector, reading the features that the neurons of its first layer give."""

    source: str
    target: str
    l1: float
    """Mean of `|W|` over all weights."""
    mse: float
    """Mean of `(z2 - z2_hat)^2` over images and features."""
    fvu: float | None
    """Sum of squared errors over that around each feature's mean; None where none varies."""
    n_above: int
    """Weights whose size is above the threshold."""
    n_nonzero: int


@dataclass(frozen=True, kw_only=True)
class NetworkFigures:
    """A network simulated by connectors, encoded once."""

    name: str
    """Which connectors: `l1=0.04`, `start=random`, or a baseline."""
    form: Form
    accuracy: float
    """Of the whole simulation."""
    accuracy_replaced: tuple[float, ...]
    """With hidden layer 2 alone from connected features, and with 3 alone."""
    connectors: tuple[ConnectorFigures, ...]

    @property
    def n_above(self) -> int:
        """Of all connectors."""
        return sum(one.n_above for one in self.connectors)


@dataclass(frozen=True, kw_only=True)
class MnistResult:
    """The whole experiment."""

    config: MnistConfig
    images: str
    images_fingerprint: str
    n_train: int
    n_test: int
    loss: float
    """Of the classifier, cross-entropy in nats."""
    accuracy: float
    train_accuracy: float
    neuron_weights: tuple[int, ...]
    """Of the layers between hidden layers, those above the threshold in size."""
    n_neuron_weights: int
    """Weights of one of them."""
    saes: tuple[SaeFigures, ...]
    networks: tuple[NetworkFigures, ...]
    seconds: float
    """Of the run that made this."""
    reused: bool = False
    """It was there already."""

    def network(self, name: str, form: Form) -> NetworkFigures:
        """The one of this name and form."""
        return next(one for one in self.networks if (one.name, one.form) == (name, form))

    def sae(self, kind: str, layer: str) -> SaeFigures:
        """The SAE of this kind and layer."""
        return next(one for one in self.saes if (one.kind, one.layer) == (kind, layer))

    @property
    def chosen(self) -> str:
        """Name of the network that stands for the others."""
        return network_name(self.config.chosen_l1)


def network_name(l1: float) -> str:
    """Of the connectors trained with this penalty from random weights."""
    return f"l1={l1:g}"


EXPERIMENT, RESULT = "experiment.json", "result.json"
_FREE = {"out", "device"}


@dataclass(frozen=True, kw_only=True)
class _Document:
    """experiment.json."""

    config: MnistConfig
    images_fingerprint: str


def enter_experiment(config: MnistConfig, images: Images) -> None:
    """Make the folder, or find that it is this experiment's."""
    file = config.out / EXPERIMENT
    now = _Document(config=config, images_fingerprint=images.fingerprint)
    if not file.exists():
        if not is_free(config.out, but=EXPERIMENT):
            raise ConfigError(
                f"{config.out} exists and is no experiment of saepipe mnist: choose another --out"
            )
        make_folder(config.out)
        write_json(file, to_json(portable(now, config.out)))
        return
    there = _read(file)
    if changed := differences(there.config, config, free=_FREE):
        raise ConfigError(
            f"{config.out} holds an experiment of another configuration ({changed}): "
            "choose another --out"
        )
    if there.images_fingerprint != now.images_fingerprint:
        raise ConfigError(
            f"{config.out} holds an experiment on other images than {config.images} has now: "
            "choose another --out"
        )


def finished_result(out: Path) -> MnistResult | None:
    """The result that is there already."""
    file = out / RESULT
    if not file.exists():
        return None
    try:
        return located(from_json(MnistResult, json.loads(file.read_bytes()), where=RESULT), out)
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}): delete it, and the same command makes it again"
        ) from error


def save_result(out: Path, result: MnistResult) -> None:
    """Write it: from here on the experiment is complete."""
    write_json(out / RESULT, to_json(portable(result, out)))


def _read(file: Path) -> _Document:
    try:
        read = from_json(_Document, json.loads(file.read_bytes()), where=EXPERIMENT)
        return located(read, file.parent)
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error


NEURON_WEIGHTS, WEIGHTS = 2205, 458


def compared(result: MnistResult) -> dict[str, tuple[str, list[str]]]:
    """Every figure that S2 gives, beside those of the network that stands for the others.

    Ours are of each layer, or of each pair of layers, where there are several.
    """
    trained, refitted = (result.network(result.chosen, form) for form in ("trained", "refitted"))
    pairs, again = trained.connectors, refitted.connectors
    tied, untied = ([result.sae(kind, layer) for layer in LAYERS] for kind in ("tied", "relu"))
    above = f"> {result.config.threshold:g}"
    return {
        "classifier: loss on test images": ("0.09", [f"{result.loss:.3f}"]),
        "classifier: accuracy on test images": ("0.98", [f"{result.accuracy:.3f}"]),
        "tied SAE: L1": ("0.0493", [f"{sae.l1:.4f}" for sae in tied]),
        "tied SAE: MSE": ("0.0397", [f"{sae.mse:.4f}" for sae in tied]),
        "tied SAE: L1 / rms": ("", [f"{sae.l1_scaled:.4f}" for sae in tied]),
        "tied SAE: MSE / rms²": ("", [f"{sae.mse_scaled:.4f}" for sae in tied]),
        "untied SAE: L1 / rms": ("", [f"{sae.l1_scaled:.4f}" for sae in untied]),
        "untied SAE: MSE / rms²": ("", [f"{sae.mse_scaled:.4f}" for sae in untied]),
        "neurons > 0.3, of an image": ("38 of 64", [f"{sae.neurons_large:.1f}" for sae in tied]),
        "features > 0.3, tied": ("7 of 256", [f"{sae.features_large:.1f}" for sae in tied]),
        "features > 0.3, untied": ("", [f"{sae.features_large:.1f}" for sae in untied]),
        "connector: L1": ("0.0211", [f"{one.l1:.4f}" for one in pairs]),
        "connector: MSE": ("0.0321", [f"{one.mse:.4f}" for one in pairs]),
        f"weights of neurons {above}": (f"{NEURON_WEIGHTS:,}", _counts(result.neuron_weights)),
        f"weights of features {above}": (f"{WEIGHTS}", _counts([c.n_above for c in pairs])),
        "weights, cut and refitted": ("", _counts([c.n_above for c in again])),
        "accuracy, simulated": ("0.978 → 0.94", [_fall(result, trained.accuracy)]),
        "accuracy, cut and refitted": ("", [_fall(result, refitted.accuracy)]),
    }


def fvu_words(connectors: Iterable[ConnectorFigures], *, between: str, digits: int) -> str:
    """What each leaves unexplained; a dash where nothing varies."""
    return between.join("-" if c.fvu is None else f"{c.fvu:.{digits}f}" for c in connectors)


def _counts(numbers: Iterable[int]) -> list[str]:
    return [f"{number:,}" for number in numbers]


def _fall(result: MnistResult, accuracy: float) -> str:
    return f"{result.accuracy:.3f} → {accuracy:.3f}"
