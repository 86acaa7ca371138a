"""What features look like: as images, and by the digits they are active on."""

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from pipeline.mnist.classifier import LAYERS, Classifier
from pipeline.mnist.figures import FeatureImages
from pipeline.mnist.images import N_CLASSES, Labelled
from pipeline.sae.sae import SAE

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
