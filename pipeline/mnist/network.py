"""The simulated network: features in place of neurons, connectors in place of layers."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.connect.connector import Connector
from pipeline.mnist.classifier import N_HIDDEN, Classifier
from pipeline.sae.coder import SparseCoder


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
    """The classifier, an SAE of each of its hidden layers, and connectors between those.

    S2's simulation: the first hidden layer is encoded once, `F1 = encode_1(h1)`; connectors make
    `F2 = C12(F1)` and `F3 = C23(F2)`; `decode_3(F3)` stands for the third hidden layer, and the
    last layer reads it. No neuron of layers 2 and 3 is computed.
    """

    net: Classifier
    coders: tuple[SparseCoder, ...]
    connectors: tuple[Connector, ...]

    def latents(self, x: Float[Tensor, "n d_in"]) -> list[Float[Tensor, "n d_sae"]]:
        """Features of each hidden layer, each encoded from the neurons."""
        hidden = self.net.hidden(x)
        return [coder.encode(h) for coder, h in zip(self.coders, hidden, strict=True)]

    def simulated_latents(self, x: Float[Tensor, "n d_in"]) -> list[Float[Tensor, "n d_sae"]]:
        """Features of each hidden layer, the first encoded and the others by connectors alone."""
        z = self.coders[0].encode(self.net.hidden(x)[0])
        found = [z]
        for connector in self.connectors:
            z = connector(z)
            found.append(z)
        return found

    def simulated(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n classes"]:
        """The logits of the simulated network."""
        return self._after(self.simulated_latents(x)[-1], layer=N_HIDDEN)

    def spliced(self, x: Float[Tensor, "n d_in"], *, layer: int) -> Float[Tensor, "n classes"]:
        """The logits where hidden layer 1, 2 or 3 is its own SAE's reconstruction."""
        return self._after(self.latents(x)[layer - 1], layer=layer)

    def replaced(self, x: Float[Tensor, "n d_in"], *, layer: int) -> Float[Tensor, "n classes"]:
        """The logits where hidden layer 2 or 3 alone comes from the features before, connected."""
        before = self.latents(x)[layer - 2]
        return self._after(self.connectors[layer - 2](before), layer=layer)

    def _after(self, z: Float[Tensor, "n d_sae"], *, layer: int) -> Float[Tensor, "n classes"]:
        return self.net.logits_from(self.coders[layer - 1].decode(z), layer=layer)


def above(connector: Connector, threshold: float) -> Bool[Tensor, "n_in n_out"]:
    """Which weights are larger than `threshold` in size: those that S2 counts."""
    return connector.W.abs() > threshold


def cut(connector: Connector, threshold: float) -> Connector:
    """The connector without the weights that are not counted."""
    W = connector.W.detach() * above(connector, threshold)
    b = connector.b.detach().clone()
    return Connector(W, b, activation=connector.activation).requires_grad_(False)
