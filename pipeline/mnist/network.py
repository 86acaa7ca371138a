"""The simulated network: features in place of neurons, connectors in place of layers; its figures.

Its connectors can be cut, to the weights that are counted, and those fitted again without the
penalty that chose them. The l1 penalty does two things: it chooses which weights stay, and it makes
those smaller than they should be. With the choice made, the rest can be undone: the relaxed lasso
(Meinshausen 2007, doi:10.1016/j.csda.2006.12.019). No weight is added. In a simulated network a
connector reads what the one before it predicts, not the features themselves, so that is what each
is fitted to, first to last. Then all are fitted together, to the logits of the classifier: which of
the errors of features matter, and which undo each other, only those can tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import kl_div

from pipeline.connect.connector import Connector
from pipeline.mnist.classifier import LAYERS, N_HIDDEN, Classifier, accuracy
from pipeline.mnist.result import ConnectorFigures, Form, NetworkFigures, SaeFigures
from pipeline.sae.sae import SAE


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureNetwork:
    """The classifier, an SAE of each of its hidden layers, and connectors between those.

    S2's simulation: the first hidden layer is encoded once, `F1 = encode_1(h1)`; connectors make
    `F2 = C12(F1)` and `F3 = C23(F2)`; `decode_3(F3)` stands for the third hidden layer, and the
    last layer reads it. No neuron of layers 2 and 3 is computed.
    """

    net: Classifier
    saes: tuple[SAE, ...]
    connectors: tuple[Connector, ...]

    def latents(self, x: Float[Tensor, "n d_in"]) -> list[Float[Tensor, "n d_sae"]]:
        """Features of each hidden layer, each encoded from the neurons."""
        hidden = self.net.hidden(x)
        return [sae.encode(h) for sae, h in zip(self.saes, hidden, strict=True)]

    def simulated_latents(self, x: Float[Tensor, "n d_in"]) -> list[Float[Tensor, "n d_sae"]]:
        """Features of each hidden layer, the first encoded and the others by connectors alone."""
        z = self.saes[0].encode(self.net.hidden(x)[0])
        found = [z]
        for connector in self.connectors:
            z = connector(z)
            found.append(z)
        return found

    def simulated(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n classes"]:
        """The logits of the simulated network."""
        return self.logits(self.simulated_latents(x)[-1])

    def logits(self, z: Float[Tensor, "n d_sae"]) -> Float[Tensor, "n classes"]:
        """The logits where these are the features of the last hidden layer."""
        return self._after(z, layer=N_HIDDEN)

    def spliced(self, x: Float[Tensor, "n d_in"], *, layer: int) -> Float[Tensor, "n classes"]:
        """The logits where hidden layer 1, 2 or 3 is its own SAE's reconstruction."""
        return self._after(self.latents(x)[layer - 1], layer=layer)

    def replaced(self, x: Float[Tensor, "n d_in"], *, layer: int) -> Float[Tensor, "n classes"]:
        """The logits where hidden layer 2 or 3 alone comes from the features before, connected."""
        before = self.latents(x)[layer - 2]
        return self._after(self.connectors[layer - 2](before), layer=layer)

    def _after(self, z: Float[Tensor, "n d_sae"], *, layer: int) -> Float[Tensor, "n classes"]:
        return self.net.logits_from(self.saes[layer - 1].decode(z), layer=layer)


def above(connector: Connector, threshold: float) -> Bool[Tensor, "n_in n_out"]:
    """Which weights are larger than `threshold` in size: those that S2 counts."""
    return connector.W.abs() > threshold


def cut(connector: Connector, threshold: float) -> Connector:
    """The connector without the weights that are not counted."""
    W = connector.W.detach() * above(connector, threshold)
    b = connector.b.detach().clone()
    return Connector(W, b, activation=connector.activation).requires_grad_(False)


STEPS, _ROWS, _LR = 600, 256, 1e-2
"""Of refitting one, by Adam."""
TOGETHER_STEPS, _TOGETHER_LR = 1000, 3e-3
"""Of refitting all."""
FEATURES = 0.003
"""Nats that a squared error of 1 in an image's features counts, where all are refitted together:
without it the features of the middle are no longer those that they are named after."""


def refit_all(
    connectors: Sequence[Connector],
    latents: Sequence[Float[Tensor, "rows _"]],
    *,
    threshold: float,
    seed: int = 0,
) -> tuple[Connector, ...]:
    """The connectors of a network, cut and fitted again, each to what the one before gives.

    The latents are those of each layer, encoded from its neurons.
    """
    z, fitted = latents[0], list[Connector]()
    for connector, target in zip(connectors, latents[1:], strict=True):
        again = refit(connector, z, target, threshold=threshold, seed=seed)
        with torch.no_grad():
            z = again(z)
        fitted.append(again)
    return tuple(fitted)


def refit(
    connector: Connector,
    z1: Float[Tensor, "rows n_in"],
    z2: Float[Tensor, "rows n_out"],
    *,
    threshold: float,
    seed: int = 0,
) -> Connector:
    """The least squared error that the weights above `threshold` reach from where they are."""
    kept = above(connector, threshold)
    fitted = cut(connector, threshold).requires_grad_()
    adam = torch.optim.Adam(fitted.parameters(), _LR)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = _LR * (1 - step / STEPS)
        rows = torch.randint(len(z1), (_ROWS,), generator=generator)
        loss = (fitted(z1[rows]) - z2[rows]).square().sum(-1).mean()
        adam.zero_grad()
        loss.backward()
        assert fitted.W.grad is not None
        fitted.W.grad.mul_(kept)  # what was cut gathers no momentum either, and stays zero
        adam.step()
    return fitted.requires_grad_(False)


def refit_together(
    network: FeatureNetwork, x: Float[Tensor, "n d_in"], *, seed: int = 0
) -> FeatureNetwork:
    """The connectors that give the logits of the classifier; a weight that is zero stays zero.

    Minimised is the mean over images of `KL(p || p_simulated) + FEATURES sum ||z_hat - z||^2`, over
    the features of every layer that connectors predict.
    """
    fitted = tuple(cut(connector, 0.0).requires_grad_() for connector in network.connectors)
    kept = [above(connector, 0.0) for connector in fitted]
    simulated = replace(network, connectors=fitted)
    wanted, latents = network.net(x).log_softmax(-1), network.latents(x)
    adam = torch.optim.Adam([p for one in fitted for p in one.parameters()], _TOGETHER_LR)
    generator = torch.Generator().manual_seed(seed)
    for step in range(TOGETHER_STEPS):
        adam.param_groups[0]["lr"] = _TOGETHER_LR * (1 - step / TOGETHER_STEPS)
        rows = torch.randint(len(x), (_ROWS,), generator=generator)
        z, loss = latents[0][rows], torch.zeros(())
        for connector, target in zip(fitted, latents[1:], strict=True):
            z = connector(z)
            loss = loss + FEATURES * (z - target[rows]).square().sum(-1).mean()
        found = simulated.logits(z).log_softmax(-1)
        loss = loss + kl_div(found, wanted[rows], log_target=True, reduction="batchmean")
        adam.zero_grad()
        loss.backward()
        for connector, mask in zip(fitted, kept, strict=True):
            assert connector.W.grad is not None
            connector.W.grad.mul_(mask)
        adam.step()
    return replace(
        network, connectors=tuple(connector.requires_grad_(False) for connector in fitted)
    )


LARGE = 0.3
"""What S2 calls a large activation."""


def fvu(wanted: Float[Tensor, "n d"], found: Float[Tensor, "n d"]) -> float | None:
    """Fraction of variance unexplained: 0 is exact, 1 as good as the mean; None of constants."""
    x = wanted.double()
    spread = float((x - x.mean(0)).square().sum())
    return float((x - found.double()).square().sum()) / spread if spread else None


@torch.no_grad()
def sae_figures(
    kind: str, layer: str, sae: SAE, h: Float[Tensor, "n d_in"], *, accuracy_spliced: float
) -> SaeFigures:
    """One SAE's, on these rows of its layer."""
    z = sae.encode(h)
    h_hat = sae.decode(z)
    rms = float(h.double().square().mean()) ** 0.5
    unit = rms or 1.0
    l1 = float(z.double().abs().mean())
    mse = float((h.double() - h_hat.double()).square().mean())
    return SaeFigures(
        kind=kind,
        layer=layer,
        rms=rms,
        l1=l1,
        mse=mse,
        l1_scaled=l1 / unit,
        mse_scaled=mse / unit**2,
        fvu=fvu(h, h_hat),
        l0=float((z > 0).double().sum(-1).mean()),
        n_alive=int((z > 0).any(0).sum()),
        neurons_large=float((h > LARGE).double().sum(-1).mean()),
        features_large=float((z > LARGE).double().sum(-1).mean()),
        accuracy=accuracy_spliced,
    )


@torch.no_grad()
def network_figures(
    name: str,
    form: Form,
    network: FeatureNetwork,
    x: Float[Tensor, "n d_in"],
    labels: Int[Tensor, " n"],
    *,
    threshold: float,
) -> NetworkFigures:
    """One simulated network's, on these images."""
    latents = network.latents(x)
    return NetworkFigures(
        name=name,
        form=form,
        accuracy=accuracy(network.simulated(x), labels),
        accuracy_replaced=tuple(
            accuracy(network.replaced(x, layer=layer), labels) for layer in range(2, N_HIDDEN + 1)
        ),
        connectors=connector_figures(network.connectors, latents, threshold=threshold),
    )


def connector_figures(
    connectors: Sequence[Connector],
    latents: Sequence[Float[Tensor, "n _"]],
    *,
    threshold: float,
) -> tuple[ConnectorFigures, ...]:
    """Each connector's, from the latents of its first layer to those of its second."""
    predicted = [connector(z1) for connector, z1 in zip(connectors, latents, strict=False)]
    return tuple(
        ConnectorFigures(
            source=LAYERS[i],
            target=LAYERS[i + 1],
            l1=float(connector.W.double().abs().mean()),
            mse=float((latents[i + 1].double() - z2_hat.double()).square().mean()),
            fvu=fvu(latents[i + 1], z2_hat),
            n_above=int(above(connector, threshold).sum()),
            n_nonzero=int(connector.W.count_nonzero()),
        )
        for i, (connector, z2_hat) in enumerate(zip(connectors, predicted, strict=True))
    )
