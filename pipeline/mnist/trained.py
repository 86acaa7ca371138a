"""The experiment's networks, trained or found."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from actstore.reader import ActStore
from pipeline.connect.connector import Connector
from pipeline.connect.run import ConnectorRun
from pipeline.curves import StepReport
from pipeline.errors import DataError
from pipeline.mnist.activations import store_activations
from pipeline.mnist.classifier import LAYERS, Classifier, train_classifier
from pipeline.mnist.coders import (
    CLASSIFIER,
    KINDS,
    STORE,
    TEST_STORE,
    Kind,
    Planned,
    planned_connectors,
    sae_configs,
    sae_folder,
)
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.folder import fingerprint, load_classifier, save_classifier
from pipeline.mnist.frames import keep_frames
from pipeline.mnist.images import Images
from pipeline.mnist.result import network_name
from pipeline.run import Run
from pipeline.sae.coder import SparseCoder
from pipeline.train import train_all


@dataclass(frozen=True, kw_only=True)
class MnistProgress:
    """Where the experiment stands."""

    stage: str
    """classifier, saes, connectors or figures."""
    step: int
    n_steps: int
    loss: float | None = None


OnProgress = Callable[[MnistProgress], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class Trained:
    """All of them, on one device."""

    net: Classifier
    store: ActStore
    coders: dict[tuple[Kind, str], SparseCoder]
    """By kind and layer."""
    connectors: list[tuple[Planned, Connector]]


def train_everything(
    config: MnistConfig, images: Images, *, device: torch.device, tell: OnProgress
) -> Trained:
    """Train what is not there, one stage after the other; what is there is kept.

    Raises:
        DataError: something diverged.
        CheckpointError: something that is there is damaged, or the disk fails.
        StoreError: a store that is there is damaged, or the disk fails.
    """
    net = _classifier(config, images, device=device, tell=tell)
    mark = fingerprint(net)
    stores = [
        store_activations(config.out / name, net, part, name=config.images, fingerprint=mark)
        for name, part in ((STORE, images.train), (TEST_STORE, images.test))
    ]
    _require_finite(
        train_all(sae_configs(config, stores[0]), resume=True, on_step=_teller("saes", tell))
    )
    planned = planned_connectors(config, stores[0])
    _connect(config, planned, tell=tell)
    return Trained(
        net=net,
        store=stores[0],
        coders={
            (kind, layer): _coder(sae_folder(config.out, kind=kind, layer=layer), device)
            for kind in KINDS
            for layer in LAYERS
        },
        connectors=[
            (one, ConnectorRun.open(one.config.out).load_connector(device)) for one in planned
        ],
    )


def _classifier(
    config: MnistConfig, images: Images, *, device: torch.device, tell: OnProgress
) -> Classifier:
    folder = config.out / CLASSIFIER
    net = load_classifier(folder, d_in=images.side**2, hidden=config.hidden)
    if net is not None:
        return net.to(device)

    def on_epoch(epoch: int, loss: float) -> None:
        tell(MnistProgress(stage="classifier", step=epoch, n_steps=config.epochs, loss=loss))

    net = train_classifier(images.train, config, device=device, on_epoch=on_epoch)
    save_classifier(folder, net)
    return net


def _connect(config: MnistConfig, planned: Sequence[Planned], *, tell: OnProgress) -> None:
    """Train the connectors, keeping the chosen ones' weights of each epoch."""
    chosen = {
        one.config.out.resolve() for one in planned if one.name == network_name(config.chosen_l1)
    }
    told = _teller("connectors", tell)

    def on_step(report: StepReport) -> None:
        if report.run.resolve() in chosen:
            keep_frames(report.run)
        told(report)

    outcomes = train_all([one.config for one in planned], resume=True, on_step=on_step)
    _require_finite(outcomes)
    for run in chosen:
        keep_frames(run)


def _teller(stage: str, tell: OnProgress) -> Callable[[StepReport], None]:
    def on_step(report: StepReport) -> None:
        tell(MnistProgress(stage=stage, step=report.step, n_steps=report.n_steps, loss=report.loss))

    return on_step


def _require_finite(outcomes: Sequence[StepReport | DataError]) -> None:
    for outcome in outcomes:
        if isinstance(outcome, DataError):
            raise outcome


def _coder(folder: Path, device: torch.device) -> SparseCoder:
    return Run.open(folder).load_coder(device).requires_grad_(False)
