"""What "Learning Interpretable Features with Sparse Auto-Encoders" (S2) reports of MNIST.

It says neither which layer its figures are of, nor in which unit: L1 is read as the mean of the
size over all elements, MSE as the mean squared error over all elements. Its classifier learned from
60,000 images.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.mnist.classifier import LAYERS
from pipeline.mnist.result import MnistResult

NEURON_WEIGHTS, WEIGHTS = 2205, 458


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One of its figures beside ours."""

    what: str
    s2: str
    ours: Sequence[str]
    """Of each layer, or of each pair of layers, where there are several."""


def compared(result: MnistResult) -> list[Compared]:
    """Every figure that S2 gives, beside those of the network that stands for the others."""
    trained, refitted = (result.network(result.chosen, form) for form in ("trained", "refitted"))
    pairs, again = trained.connectors, refitted.connectors
    tied, untied = ([result.sae(kind, layer) for layer in LAYERS] for kind in ("tied", "relu"))
    above = f"> {result.config.threshold:g}"
    rows: dict[str, tuple[str, list[str]]] = {
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
    return [Compared(what=what, s2=s2, ours=ours) for what, (s2, ours) in rows.items()]


def _counts(numbers: Iterable[int]) -> list[str]:
    return [f"{number:,}" for number in numbers]


def _fall(result: MnistResult, accuracy: float) -> str:
    return f"{result.accuracy:.3f} → {accuracy:.3f}"
