"""The experiment's figures, sums in float64."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.connect.connector import Connector
from pipeline.mnist.classifier import LAYERS, N_HIDDEN
from pipeline.mnist.network import FeatureNetwork, above
from pipeline.mnist.result import ConnectorFigures, Form, NetworkFigures, SaeFigures
from pipeline.sae.coder import SparseCoder

LARGE = 0.3
"""What S2 calls a large activation."""


def accuracy(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """Share of right answers."""
    return float((logits.argmax(-1) == labels).double().mean())


def fvu(wanted: Float[Tensor, "n d"], found: Float[Tensor, "n d"]) -> float:
    """Fraction of variance unexplained: 0 is exact, 1 as good as the mean; 0 of constants."""
    x = wanted.double()
    spread = float((x - x.mean(0)).square().sum())
    return float((x - found.double()).square().sum()) / spread if spread else 0.0


@torch.no_grad()
def sae_figures(
    kind: str,
    layer: str,
    coder: SparseCoder,
    h: Float[Tensor, "n d_in"],
    *,
    accuracy_spliced: float,
) -> SaeFigures:
    """One SAE's, on these rows of its layer."""
    z = coder.encode(h)
    h_hat = coder.decode(z)
    rms = float(h.double().square().mean()) ** 0.5
    l1 = float(z.double().abs().mean())
    mse = float((h.double() - h_hat.double()).square().mean())
    unit = rms or 1.0
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
    found = list[ConnectorFigures]()
    for i, connector in enumerate(connectors):
        z2, z2_hat = latents[i + 1], connector(latents[i])
        found.append(
            ConnectorFigures(
                source=LAYERS[i],
                target=LAYERS[i + 1],
                l1=float(connector.W.double().abs().mean()),
                mse=float((z2.double() - z2_hat.double()).square().mean()),
                fvu=fvu(z2, z2_hat),
                n_above=int(above(connector, threshold).sum()),
                n_nonzero=int(connector.W.count_nonzero()),
            )
        )
    return tuple(found)
