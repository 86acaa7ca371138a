"""Connectors to read: planted latents, and a connector between SAEs of a tiny model."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pipeline.config.training import ConnectConfig
from pipeline.connect.connector import Connector
from pipeline.connect.reading.observe import Active, Observed
from pipeline.connect.reading.relations import equations, relations
from pipeline.connect.reading.values import Relation
from pipeline.connect.run import ConnectorRun, blank_connector_run
from tests.helpers.featured import World, make_store_of
from tests.helpers.tiny import make_model, make_sae

SITES = ("resid_pre.1", "mlp_out.1")


def active_of(z: np.ndarray) -> Active:
    row, feature = np.nonzero(z > 0)
    return Active(
        n_rows=len(z),
        n_features=z.shape[1],
        row=row.astype(np.int32),
        feature=feature.astype(np.int32),
        value=z[row, feature].astype(np.float32),
    )


def observed_of(z1: np.ndarray, z2: np.ndarray, connector: Connector) -> Observed:
    """What a pass would have seen, all of it in float64."""
    W, b = (p.detach().numpy().astype(float) for p in (connector.W, connector.b))
    predicted = z1 @ W + b
    if connector.activation == "relu":
        predicted = np.maximum(predicted, 0)
    around = np.square(z2 - z2.mean(0)).sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        explained = np.where(around > 0, 1 - np.square(predicted - z2).sum(0) / around, np.nan)
    return Observed(source=active_of(z1), target=active_of(z2), explained=explained)


def connector_of(W, b=None, *, activation="relu") -> Connector:
    weights = torch.tensor(np.asarray(W), dtype=torch.float32)
    biases = torch.zeros(weights.shape[1]) if b is None else torch.tensor(b, dtype=torch.float32)
    return Connector(weights, biases, activation=activation).requires_grad_(False)


def related(z1: np.ndarray, z2: np.ndarray, connector: Connector) -> tuple[Relation, ...]:
    observed = observed_of(z1, z2, connector)
    return relations(observed, connector, equations(observed, connector, n_terms=6))


@dataclass(frozen=True, kw_only=True)
class Connected:
    """A model, a store of it, two SAEs, and a connector between them."""

    world: World
    run: ConnectorRun


def make_connected(
    folder: Path, *, sites: tuple[str, str] = SITES, n_contexts: int = 40, text: str = ""
) -> Connected:
    model, out = make_model(folder / "model"), folder / "acts.actstore"
    n_contexts = 20 if text else n_contexts
    store = make_store_of(model, out, n_contexts=n_contexts, sites=sites, text=text)
    world = World(folder=folder, model=model, store=store)
    ends = tuple(
        world.run(f"sae{i}", site=site, coder=make_sae(d_in=store.width(site), seed=i))
        for i, site in enumerate(sites)
    )
    return Connected(world=world, run=connect(world, ends, folder / "connector"))


def connect(world: World, ends: tuple[Path, ...], out: Path, *, seed: int = 0) -> ConnectorRun:
    """A finished connector of random weights, most of them zero, between two runs."""
    first, second = ends
    config = ConnectConfig(store=world.store.path, out=out, ends=(first, second))
    out.mkdir()
    run = blank_connector_run(world.store, config)
    generator = torch.Generator().manual_seed(seed)
    shape = (run.source.d_sae, run.target.d_sae)
    W = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.1)
    return run.finish(Connector(W, 0.3 * torch.randn(shape[1], generator=generator)))
