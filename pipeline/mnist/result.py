"""What the experiment found, as `result.json` says it. All of it on images never learned from."""

from dataclasses import dataclass
from typing import Literal

from pipeline.mnist.config import MnistConfig

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
    fvu: float
    """Sum of squared errors over that around the mean."""
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
    fvu: float
    """Sum of squared errors over that around each feature's mean."""
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
