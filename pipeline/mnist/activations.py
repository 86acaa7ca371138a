"""The classifier's hidden layers in a store: an image is a context of one token, its digit."""

from pathlib import Path

import torch
from torch.nn import functional as F

from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from actstore.writer import ActWriter
from pipeline.mnist.classifier import LAYERS, Classifier
from pipeline.mnist.images import Labelled

_BLOCK = 8192
"""Images that go through the classifier at a time."""


@torch.no_grad()
def store_activations(
    path: Path, net: Classifier, images: Labelled, *, name: str, fingerprint: str
) -> ActStore:
    """Write what each hidden layer gives for each image, in their order; a whole store is kept.

    Args:
        path: The store's folder.
        net: The classifier, on any device.
        images: As many rows.
        name: Of the images.
        fingerprint: Of the classifier.

    Raises:
        StoreError: another store is there, another writer is at work, the disk fails or fills, or
            an activation is not finite.
    """
    hidden = net.linear[0].out_features
    spec = StoreSpec.of(
        widths=dict.fromkeys(LAYERS, hidden),
        ctx_len=1,
        dtype="float32",
        source={"model": "classifier", "model_fingerprint": fingerprint, "text": name},
    )
    x, _ = images.tensors(net.linear[0].weight.device)
    with ActWriter.create_or_resume(path, spec, n_rows=len(images)) as writer:
        done = writer.n_rows_committed
        for start in range(done, len(images), _BLOCK):
            rows = slice(start, start + _BLOCK)
            found = net.hidden(x[rows])
            writer.append(
                {layer: h.cpu().numpy()[:, None] for layer, h in zip(LAYERS, found, strict=True)},
                tokens=images.labels[rows, None].astype("int32"),
            )
        writer.finish()
    return ActStore.open(path)


@torch.no_grad()
def quality(net: Classifier, images: Labelled) -> tuple[float, float]:
    """The classifier's mean cross-entropy, and its share of right answers."""
    x, labels = images.tensors(net.linear[0].weight.device)
    logits = net(x).double()
    right = (logits.argmax(-1) == labels).double().mean()
    return float(F.cross_entropy(logits, labels)), float(right)
