"""Which SAEs and connectors the experiment trains, by the library's own trainers."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from actstore.reader import ActStore
from pipeline.archs import ArchConfig, ReluConfig, TiedConfig
from pipeline.mnist.classifier import LAYERS, layer_file
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.result import network_name
from pipeline.train_config import ConnectConfig, ConnectorStart, TrainConfig
from pipeline.training.feed import mean_square

Kind = Literal["tied", "relu"]
KINDS: tuple[Kind, ...] = ("tied", "relu")
"""Of the SAEs: both of S2's, tied and untied."""
PAIRS = tuple(pairwise(LAYERS))
"""Hidden layers that a connector lies between."""
STARTS: tuple[ConnectorStart, ...] = ("random", "regression")
"""Of connectors beside those that start from the layer, at the chosen penalty."""
STORE, TEST_STORE = "train.actstore", "test.actstore"
CLASSIFIER = "classifier"
_SAE_BATCH = 256
_EPOCH_STEPS = 32
_CONNECTOR_BATCHES = 16, 1024
"""Rows a step of a connector, at least and at most: between them an epoch has as many steps."""


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A connector to train."""

    pair: tuple[str, str]
    name: str
    """What sets it apart from others of its pair: `l1=0.03` or `start=random`."""
    config: ConnectConfig


def sae_folder(out: Path, *, kind: Kind, layer: str) -> Path:
    """Where the SAE of a kind and layer lies."""
    return out / "saes" / f"{kind}-{layer}"


def sae_configs(config: MnistConfig, store: ActStore) -> list[TrainConfig]:
    """Tied and untied SAEs of every hidden layer, to be trained in one pass.

    A penalty is taken in units of the layer's root mean square: squared errors grow with the square
    of a layer's scale and features with the scale itself, so that one `l1` then suits every layer.
    """
    return [
        TrainConfig(
            store=config.out / STORE,
            out=sae_folder(config.out, kind=kind, layer=layer),
            site=layer,
            arch=_arch(kind, l1=config.sae_l1 * _rms(store, layer)),
            expansion=config.expansion,
            tokens=config.sae_steps * _SAE_BATCH,
            batch_size=_SAE_BATCH,
            seed=config.seed,
            lr=config.sae_lr,
            lr_decay="50%",
            device=config.device,
            precision="fp32",
        )
        for kind in KINDS
        for layer in LAYERS
    ]


def _arch(kind: Kind, *, l1: float) -> ArchConfig:
    return TiedConfig(l1=l1) if kind == "tied" else ReluConfig(l1=l1)


def _rms(store: ActStore, layer: str) -> float:
    return mean_square(store, layer) ** 0.5


def planned_connectors(config: MnistConfig, store: ActStore) -> list[Planned]:
    """Each pair by every l1, and by every start at the chosen one, to be trained in one pass.

    A penalty is taken in units of both layers' root mean squares, `l1 * rms_1 * rms_2`: with
    features `a` and `c` times as large, weights are `c / a` times as large and squared errors `c^2`
    times, so that the same `l1` then makes the same choice.
    """
    return [
        Planned(pair=pair, name=name, config=_connector(config, store, pair, name, l1, start))
        for pair in PAIRS
        for name, l1, start in _members(config)
    ]


def steps_per_epoch(n_rows: int) -> int:
    """Steps of a connector that see each row about once."""
    return max(1, n_rows // connector_batch(n_rows))


def connector_batch(n_rows: int) -> int:
    """Rows a step."""
    least, most = _CONNECTOR_BATCHES
    return min(most, max(least, n_rows // _EPOCH_STEPS))


def _members(config: MnistConfig) -> Iterator[tuple[str, float, ConnectorStart]]:
    """Name, penalty and start of each connector of a pair."""
    for l1 in config.connect_l1:
        yield network_name(l1), l1, "weights"
    for start in STARTS:
        yield f"start={start}", config.chosen_l1, start


def _connector(
    config: MnistConfig,
    store: ActStore,
    pair: tuple[str, str],
    name: str,
    l1: float,
    start: ConnectorStart,
) -> ConnectConfig:
    batch, every = connector_batch(store.n_rows), steps_per_epoch(store.n_rows)
    unit = _rms(store, pair[0]) * _rms(store, pair[1])
    source, target = (sae_folder(config.out, kind=config.sae, layer=layer) for layer in pair)
    between = layer_file(config.out / CLASSIFIER, LAYERS.index(pair[1]) + 1)
    return ConnectConfig(
        store=config.out / STORE,
        out=config.out / "connectors" / f"{pair[0]}-{pair[1]},{name}",
        ends=(source, target),
        tokens=config.connect_epochs * every * batch,
        batch_size=batch,
        seed=config.seed,
        lr=config.connect_lr,
        lr_decay="50%",
        clip=0.0,
        l1=l1 * unit,
        start=start,
        layer=between if start == "weights" else None,
        device=config.device,
        precision="fp32",
        checkpoint_every=every,
        log_every=every,
    )
