"""The classifier: four linear layers, rectified between, as in S2; on disk; its layers in a store.

In the store an image is a context of one token, its digit.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn
from torch.nn import functional as F

from actstore.files import make_folder, write_json
from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from actstore.writer import ActWriter
from pipeline.config.serialization import from_json, to_json
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.images import N_CLASSES, Labelled
from pipeline.runs.folder import save_tensors

N_HIDDEN = 3
LAYERS = tuple(f"h{i}" for i in range(1, N_HIDDEN + 1))
"""The hidden layers, after the ReLU: what a store calls its sites."""

OnEpoch = Callable[[int, float], None]


class Classifier(nn.Module):
    """`h_i = relu(W_i h_{i-1} + b_i)` for i of 1, 2, 3, `h_0` the pixels; `logits = W_4 h_3 + b_4`.

    Weights start as nn.Linear's do, from a seed of their own.
    """

    def __init__(self, d_in: int, hidden: int, *, seed: int = 0) -> None:
        super().__init__()
        widths = (d_in, *(hidden,) * N_HIDDEN, N_CLASSES)
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths))
        with torch.no_grad():
            for layer in self.linear:
                bound = layer.in_features**-0.5
                layer.weight.uniform_(-bound, bound, generator=generator)
                layer.bias.uniform_(-bound, bound, generator=generator)

    @property
    def linear(self) -> list[nn.Linear]:
        """The layers, first to last."""
        return [layer for layer in self.layers if isinstance(layer, nn.Linear)]

    def hidden(self, x: Float[Tensor, "n d_in"]) -> list[Float[Tensor, "n hidden"]]:
        """All hidden layers of each image."""
        found = list[Tensor]()
        for layer in self.linear[:-1]:
            x = layer(x).relu()
            found.append(x)
        return found

    def logits_from(self, h: Float[Tensor, "n width"], *, layer: int) -> Float[Tensor, "n classes"]:
        """The logits where hidden layer number `layer`, from 1 to 3, is `h`."""
        for linear in self.linear[layer:-1]:
            h = linear(h).relu()
        return self.linear[-1](h)

    def forward(self, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n classes"]:
        """The logits of each image."""
        return self.logits_from(x, layer=0)


class Dropout:
    """Leaves out neurons by a seed of its own; nothing else is drawn from it."""

    def __init__(self, share: float, *, seed: int, device: torch.device) -> None:
        self._kept = 1 - share
        self._generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, h: Float[Tensor, "n width"]) -> Float[Tensor, "n width"]:
        """The neurons that stay, scaled up by what is missing."""
        kept = torch.empty_like(h).bernoulli_(self._kept, generator=self._generator)
        return h * kept / self._kept


def train_classifier(
    images: Labelled, config: MnistConfig, *, device: torch.device, on_epoch: OnEpoch | None = None
) -> Classifier:
    """Learn to tell the digits apart, by cross-entropy and Adam with decoupled weight decay.

    Hidden neurons are left out at random meanwhile (dropout), those that stay are scaled up. After
    each epoch `on_epoch` is told its number and its mean loss.
    """
    x, labels = images.tensors(device)
    net = Classifier(x.shape[1], config.hidden, seed=config.seed).to(device)
    adam = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
    order = torch.Generator().manual_seed(config.seed)
    dropout = Dropout(config.dropout, seed=config.seed, device=device)
    for epoch in range(config.epochs):
        for group in adam.param_groups:
            group["lr"] = config.lr * (1 - epoch / config.epochs)
        total = 0.0
        for rows in torch.randperm(len(x), generator=order).split(config.batch_size):
            h = x[rows]
            for layer in net.linear[:-1]:
                h = dropout(layer(h).relu())
            loss = F.cross_entropy(net.linear[-1](h), labels[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += float(loss.detach()) * len(rows)
        if not total < float("inf"):
            raise DataError(
                "the classifier's loss is no longer finite: lower lr in the --config file"
            )
        if on_epoch is not None:
            on_epoch(epoch + 1, total / len(x))
    return net.requires_grad_(False)


def layer_file(folder: Path, index: int) -> Path:
    """Where the `weight` and `bias` of a layer lie, from 1: a connector may start from them."""
    return folder / f"layer-{index}.safetensors"


_WHOLE = "classifier.json"


@dataclass(frozen=True, kw_only=True)
class _Checksums:
    """What `_WHOLE` holds; it is written after the layers."""

    sha256: tuple[str, ...]


def save_classifier(folder: Path, net: Classifier) -> None:
    """Write each layer, and then that they are whole."""
    make_folder(folder)
    sums = tuple(
        save_tensors(layer_file(folder, index), layer.state_dict())
        for index, layer in enumerate(net.linear, start=1)
    )
    write_json(folder / _WHOLE, to_json(_Checksums(sha256=sums)))


def load_classifier(folder: Path, *, d_in: int, hidden: int) -> Classifier | None:
    """The classifier that is there; None where none was finished."""
    if not (folder / _WHOLE).exists():
        return None
    net = Classifier(d_in, hidden)
    try:
        sums = from_json(_Checksums, json.loads((folder / _WHOLE).read_bytes()), where=_WHOLE)
        for index, (layer, sha256) in enumerate(zip(net.linear, sums.sha256, strict=True), start=1):
            data = layer_file(folder, index).read_bytes()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError("a checksum does not match")  # noqa: TRY301
            layer.load_state_dict(load(data))
    except (OSError, ValueError, SafetensorError, ConfigError) as error:
        raise CheckpointError(
            f"the classifier in {folder} is damaged ({error}): choose another --out"
        ) from error
    return net.requires_grad_(False)


def fingerprint(net: Classifier) -> str:
    """SHA-256 of its weights and biases, first layer to last."""
    digest = hashlib.sha256()
    for layer in net.linear:
        for value in (layer.weight, layer.bias):
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


_BLOCK = 8192
"""Images that go through the classifier at a time."""


@torch.no_grad()
def store_activations(path: Path, net: Classifier, images: Labelled, *, name: str) -> ActStore:
    """Write what each hidden layer gives for each of these images; a whole store is kept."""
    spec = StoreSpec.of(
        widths=dict.fromkeys(LAYERS, net.linear[0].out_features),
        ctx_len=1,
        dtype="float32",
        source={"model": "classifier", "model_fingerprint": fingerprint(net), "text": name},
    )
    x, _ = images.tensors(net.linear[0].weight.device)
    with ActWriter.create_or_resume(path, spec, n_rows=len(images)) as writer:
        for start in range(writer.n_rows_committed, len(images), _BLOCK):
            rows = slice(start, start + _BLOCK)
            found = net.hidden(x[rows])
            writer.append(
                {layer: h.cpu().numpy()[:, None] for layer, h in zip(LAYERS, found, strict=True)},
                tokens=images.labels[rows, None].astype("int32"),
            )
        writer.finish()
    return ActStore.open(path)


def accuracy(logits: Float[Tensor, "n classes"], labels: Int[Tensor, " n"]) -> float:
    """Share of right answers."""
    return float((logits.argmax(-1) == labels).double().mean())


@torch.no_grad()
def quality(net: Classifier, images: Labelled) -> tuple[float, float]:
    """The classifier's mean cross-entropy, and its share of right answers."""
    x, labels = images.tensors(net.linear[0].weight.device)
    logits = net(x).double()
    return float(F.cross_entropy(logits, labels)), accuracy(logits, labels)
