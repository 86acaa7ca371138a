"""Which SAEs, connectors and baselines the experiment needs: trained by the library, or found.

A connector is told to keep a checkpoint an epoch; its trainer keeps the latest ones alone, so the
weights of each are copied (`keep_frames`) from what a resumed training goes on from: no epoch is
missing after Ctrl-C.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32
from safetensors.numpy import load

from actstore.files import make_folder, write_file
from actstore.reader import ActStore
from pipeline.config.architectures import ReluConfig, TiedConfig
from pipeline.config.training import ConnectConfig, ConnectorStart, TrainConfig
from pipeline.connect.connector import Connector, SAEPair
from pipeline.connect.moments import find_moments
from pipeline.connect.run import ConnectorRun
from pipeline.connect.start import baseline_connectors, read_layer
from pipeline.errors import DataError
from pipeline.mnist.classifier import (
    LAYERS,
    Classifier,
    layer_file,
    load_classifier,
    save_classifier,
    store_activations,
    train_classifier,
)
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.images import Images
from pipeline.mnist.result import network_name
from pipeline.progress import OnProgress, Progress
from pipeline.runs.checkpoints import TRAINED, checkpoints_of
from pipeline.runs.curves import StepReport
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE
from pipeline.training.feed import mean_square
from pipeline.training.train import train_all

Kind = Literal["tied", "relu"]
KINDS: tuple[Kind, ...] = ("tied", "relu")
"""Of the SAEs: both of S2's, tied and untied."""
ARCHS: dict[Kind, type[TiedConfig] | type[ReluConfig]] = {"tied": TiedConfig, "relu": ReluConfig}
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


def sae_folder(out: Path, *, kind: Kind, layer: str) -> Path:
    """Where the SAE of a kind and layer lies."""
    return out / "saes" / f"{kind}-{layer}"


def connector_folder(out: Path, pair: tuple[str, str], name: str) -> Path:
    """Where a connector lies; `l1=0.03` or `start=random` tells it from others of its pair."""
    return out / "connectors" / f"{'-'.join(pair)},{name}"


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
            arch=ARCHS[kind](l1=config.sae_l1 * _rms(store, layer)),
            expansion=config.expansion,
            tokens=config.sae_steps * _SAE_BATCH,
            batch_size=_SAE_BATCH,
            seed=config.seed,
            lr=config.sae_lr,
            lr_warmup="0",
            lr_decay="50%",
            normalize="none",
            w_dec_start="random",
            revive=0.0,
            device=config.device,
            precision="fp32",
        )
        for kind in KINDS
        for layer in LAYERS
    ]


def _rms(store: ActStore, layer: str) -> float:
    return mean_square(store, layer) ** 0.5


def connector_configs(config: MnistConfig, store: ActStore) -> list[ConnectConfig]:
    """Each pair by every l1, and by every start at the chosen one, to be trained in one pass.

    A penalty is taken in units of both layers' root mean squares, `l1 * rms_1 * rms_2`: with
    features `a` and `c` times as large, weights are `c / a` times as large and squared errors `c^2`
    times, so that the same `l1` then makes the same choice.
    """
    batch, every = connector_batch(store.n_rows), steps_per_epoch(store.n_rows)
    rms = {layer: _rms(store, layer) for layer in LAYERS}
    return [
        ConnectConfig(
            store=config.out / STORE,
            out=connector_folder(config.out, (source, target), name),
            ends=(
                sae_folder(config.out, kind=config.sae, layer=source),
                sae_folder(config.out, kind=config.sae, layer=target),
            ),
            tokens=config.connect_epochs * every * batch,
            batch_size=batch,
            seed=config.seed,
            lr=config.connect_lr,
            lr_decay="50%",
            clip=0.0,
            l1=l1 * (rms[source] * rms[target]),
            start=start,
            layer=_layer_before(config, target) if start == "weights" else None,
            device=config.device,
            precision="fp32",
            checkpoint_every=every,
            log_every=every,
        )
        for source, target in PAIRS
        for name, l1, start in _members(config)
    ]


def _members(config: MnistConfig) -> list[tuple[str, float, ConnectorStart]]:
    """Name, penalty and start of each connector of a pair."""
    return [
        *((network_name(l1), l1, "weights") for l1 in config.connect_l1),
        *((f"start={start}", config.chosen_l1, start) for start in STARTS),
    ]


def steps_per_epoch(n_rows: int) -> int:
    """Steps of a connector that see each row about once."""
    return max(1, n_rows // connector_batch(n_rows))


def connector_batch(n_rows: int) -> int:
    """Rows a step."""
    least, most = _CONNECTOR_BATCHES
    return min(most, max(least, n_rows // _EPOCH_STEPS))


def _layer_before(config: MnistConfig, layer: str) -> Path:
    """The file of the classifier's own weights, from the hidden layer before to this one."""
    return layer_file(config.out / CLASSIFIER, LAYERS.index(layer) + 1)


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """All of them, on one device."""

    net: Classifier
    store: ActStore
    saes: dict[Kind, tuple[SAE, ...]]
    """Of each layer, by kind."""
    connectors: dict[str, tuple[Connector, ...]]
    """Of each pair, by name."""


def train_everything(
    config: MnistConfig, images: Images, *, device: torch.device, tell: OnProgress
) -> Trained:
    """Train what is not there, one stage after the other; what is there is kept."""
    net = _classifier(config, images, device=device, tell=tell)
    store, _ = (
        store_activations(config.out / name, net, part, name=config.images)
        for name, part in ((STORE, images.train), (TEST_STORE, images.test))
    )
    _train("saes", sae_configs(config, store), tell)
    framed = {connector_folder(config.out, pair, network_name(config.chosen_l1)) for pair in PAIRS}

    def on_step(report: StepReport) -> None:
        if report.run in framed:
            keep_frames(report.run)

    _train("connectors", connector_configs(config, store), tell, on_step=on_step)
    for run in framed:
        keep_frames(run)
    return Trained(
        net=net,
        store=store,
        saes={
            kind: tuple(
                SAERun.open(sae_folder(config.out, kind=kind, layer=layer))
                .load_sae(device)
                .requires_grad_(False)
                for layer in LAYERS
            )
            for kind in KINDS
        },
        connectors={
            name: tuple(
                ConnectorRun.open(connector_folder(config.out, pair, name)).load_connector(device)
                for pair in PAIRS
            )
            for name, _, _ in _members(config)
        },
    )


def _classifier(
    config: MnistConfig, images: Images, *, device: torch.device, tell: OnProgress
) -> Classifier:
    folder = config.out / CLASSIFIER
    net = load_classifier(folder, d_in=images.side**2, hidden=config.hidden)
    if net is not None:
        return net.to(device)

    def on_epoch(epoch: int, loss: float) -> None:
        words, total = f"loss {loss:.4f}", config.epochs
        tell(Progress(stage="classifier", done=epoch, total=total, unit="epochs", words=words))

    net = train_classifier(images.train, config, device=device, on_epoch=on_epoch)
    save_classifier(folder, net)
    return net


def _train(
    stage: str,
    configs: Sequence[TrainConfig] | Sequence[ConnectConfig],
    tell: OnProgress,
    *,
    on_step: Callable[[StepReport], None] = lambda _: None,
) -> None:
    def told(report: StepReport) -> None:
        on_step(report)
        done, total, words = report.step, report.n_steps, f"loss {report.loss:.4f}"
        tell(Progress(stage=stage, done=done, total=total, unit="steps", words=words))

    for outcome in train_all(configs, on_step=told):
        if isinstance(outcome, DataError):
            raise outcome


BASELINES = {
    "mean": "mean", "correlation": "correlation", "E2 W D1": "weights", "ridge": "ridge",
}  # fmt: skip
"""What they are called here, and in `pipeline.connect.start`."""


def baselines(
    config: MnistConfig, trained: Trained, *, device: torch.device
) -> dict[str, tuple[Connector, ...]]:
    """By the names here, one connector a pair of layers."""
    each = list[dict[str, Connector]]()
    for sites, (source, target) in zip(PAIRS, pairwise(trained.saes[config.sae]), strict=True):
        pair = SAEPair(source=source, target=target, sites=sites)
        layer = _layer_before(config, sites[1])
        between = read_layer(layer, d_1=config.hidden, d_2=config.hidden)
        moments = find_moments(pair, trained.store, device=device)
        each.append(baseline_connectors(pair, moments, between))
    return {
        name: tuple(maps[theirs].requires_grad_(False) for maps in each)
        for name, theirs in BASELINES.items()
    }


EPOCHS = "epochs"


def keep_frames(run: Path) -> None:
    """Copy the weights of every checkpoint of a connector that was not copied before."""
    for step, checkpoint in checkpoints_of(run).items():
        file = run / EPOCHS / f"step-{step:09d}.npz"
        if not file.exists():
            data = BytesIO()
            np.savez_compressed(data, W=load((checkpoint / TRAINED).read_bytes())["W"])
            make_folder(file.parent)
            write_file(file, [data.getbuffer()])


def load_frames(run: Path) -> dict[int, Float32[np.ndarray, "n_in n_out"]]:
    """The weights that were kept, by the steps they are of, ascending."""
    files = sorted((run / EPOCHS).glob("step-*.npz"))
    return {int(file.stem.removeprefix("step-")): np.load(file)["W"] for file in files}
