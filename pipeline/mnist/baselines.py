"""Networks of connectors that nobody trained: what the trained ones have to beat."""

from collections.abc import Mapping

import torch

from actstore.reader import ActStore
from pipeline.connect.baselines import (
    correlation_connector,
    mean_connector,
    ridge_connector,
    weights_connector,
)
from pipeline.connect.connector import Connector
from pipeline.connect.layer_between import read_layer
from pipeline.connect.moments import find_moments
from pipeline.connect.run import load_pair
from pipeline.mnist.classifier import LAYERS, layer_file
from pipeline.mnist.coders import CLASSIFIER, PAIRS, sae_folder
from pipeline.mnist.config import MnistConfig
from pipeline.run import Run

BASELINES = ("mean", "correlation", "E2 W D1", "ridge")


def baseline_connectors(
    config: MnistConfig, store: ActStore, *, device: torch.device
) -> Mapping[str, tuple[Connector, ...]]:
    """By the names above, one connector a pair of layers; `pipeline.connect.baselines` says which.

    Raises:
        CheckpointError: an SAE is gone or damaged.
        StoreError: bytes of the store were altered.
    """
    each = [_of_pair(config, store, pair, device=device) for pair in PAIRS]
    return {name: tuple(found[name] for found in each) for name in BASELINES}


def _of_pair(
    config: MnistConfig, store: ActStore, layers: tuple[str, str], *, device: torch.device
) -> dict[str, Connector]:
    folders = [sae_folder(config.out, kind=config.sae, layer=layer) for layer in layers]
    pair = load_pair(Run.open(folders[0]), Run.open(folders[1]), device=device)
    moments = find_moments(pair, store, device=device)
    file = layer_file(config.out / CLASSIFIER, LAYERS.index(layers[1]) + 1)
    between = read_layer(file, d_1=config.hidden, d_2=config.hidden)
    found = (
        mean_connector(moments),
        correlation_connector(moments),
        weights_connector(pair, between),
        ridge_connector(moments),
    )
    return {
        name: connector.to(device).requires_grad_(False)
        for name, connector in zip(BASELINES, found, strict=True)
    }
