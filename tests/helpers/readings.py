"""Connectors to read: planted latents, and a connector between SAEs of a tiny model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actstore.reader import ActStore
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
    model = make_model(folder / "model")
    out = folder / "acts.actstore"
    n_contexts = 20 if text else n_contexts
    store = make_store_of(model, out, n_contexts=n_contexts, sites=sites, text=text)
    world = World(folder=folder, model=model, store=store)
    ends = tuple(
        world.run(f"sae{i}", site=site, coder=make_sae(d_in=store.width(site), seed=i))
        for i, site in enumerate(sites)
    )
    return Connected(world=world, run=connect(store, ends, folder / "connector"))


def connect(
    store: ActStore,
    ends: tuple[Path, ...],
    out: Path,
    connector: Connector | None = None,
    *,
    seed: int = 0,
    **settings: Any,
) -> ConnectorRun:
    """A finished connector between two runs; by itself of random weights, most of them zero."""
    first, second = ends
    config = ConnectConfig(store=store.path, out=out, ends=(first, second), **settings)
    run = blank_connector_run(store, config)
    out.mkdir()
    if connector is None:
        generator = torch.Generator().manual_seed(seed)
        shape = (run.source.d_sae, run.target.d_sae)
        W = torch.randn(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.1)
        connector = Connector(W, 0.3 * torch.randn(shape[1], generator=generator))
    return run.finish(connector)


def say_of_store(run: Path, **told: object) -> None:
    """Have a connector say this of the store that it was trained from."""
    there = ConnectorRun.open(run)
    replace(there, provenance=replace(there.provenance, **told)).write()
