"""Small images of digits and settings, for tests of the experiment on them."""

import gzip
import struct
from pathlib import Path

import numpy as np
import torch

from pipeline.connect.connector import Connector
from pipeline.mnist.classifier import Classifier
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.images import Labelled
from pipeline.mnist.network import FeatureNetwork
from tests.helpers.tiny import make_sae

SIDE = 5


def make_labelled(n: int = 60, *, seed: int = 0) -> Labelled:
    """Ten random patterns, each under noise."""
    rng = np.random.default_rng(seed)
    patterns = np.random.default_rng(99).random((10, SIDE, SIDE))
    labels = rng.integers(0, 10, n)
    noisy = patterns[labels] + 0.1 * rng.standard_normal((n, SIDE, SIDE))
    return Labelled(pixels=noisy.clip(0, 1).astype(np.float32), labels=labels.astype(np.int64))


def write_images(folder: Path, n: int = 200) -> Path:
    """The patterns as IDX files."""
    images = make_labelled(n)
    folder.mkdir(parents=True)
    write_idx(folder, "t10k", np.rint(255 * images.pixels), images.labels)
    return folder


def write_idx(
    folder: Path, prefix: str, pixels: np.ndarray, labels: np.ndarray, *, gz: bool = False
) -> None:
    for what, values in (("images-idx3", pixels), ("labels-idx1", labels)):
        data, name = idx_bytes(values), f"{prefix}-{what}-ubyte"
        (folder / (name + ".gz" * gz)).write_bytes(gzip.compress(data) if gz else data)


def idx_bytes(values: np.ndarray) -> bytes:
    """What the format's page says, byte by byte."""
    head = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return head + values.astype(np.uint8).tobytes()


def make_config(out: Path, **changes) -> MnistConfig:
    """An experiment that takes a second or two."""
    images = changes.pop("images", None) or str(write_images(out.parent / "images"))
    small = {
        "hidden": 8, "epochs": 20, "lr": 1e-2, "dropout": 0.0, "batch_size": 16, "expansion": 2,
        "sae_steps": 40, "sae_lr": 1e-2, "connect_epochs": 3, "connect_lr": 1e-2,
        "connect_l1": (0.001, 0.01), "chosen_l1": 0.001, "device": "cpu",
    }  # fmt: skip
    return MnistConfig(out=out, images=images, **(small | changes))


def make_network(*, hidden: int = 6, seed: int = 0) -> FeatureNetwork:
    """Random weights everywhere, some of the connectors' below 0.1."""
    torch.manual_seed(seed)
    net = Classifier(SIDE**2, hidden, seed=seed).requires_grad_(False)
    saes = tuple(make_sae(d_in=hidden, expansion=2, seed=i).requires_grad_(False) for i in range(3))
    connectors = tuple(
        Connector(
            0.3 * torch.randn(2 * hidden, 2 * hidden), 0.1 * torch.randn(2 * hidden)
        ).requires_grad_(False)
        for _ in range(2)
    )
    return FeatureNetwork(net=net, saes=saes, connectors=connectors)
