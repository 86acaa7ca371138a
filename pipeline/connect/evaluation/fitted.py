"""The baselines of two SAEs, fitted on a sample of the store that connectors were trained from."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from actstore.reader import ActStore
from pipeline.connect.baselines import (
    correlation_connector,
    mean_connector,
    ridge_connector,
    weights_connector,
)
from pipeline.connect.connector import Connector
from pipeline.connect.evaluation.ends import Ends
from pipeline.connect.feed import PairFeeder
from pipeline.connect.layer_between import fit_layer, read_layer
from pipeline.connect.moments import find_moments
from pipeline.connect.run import ConnectorRun


@dataclass(frozen=True, kw_only=True, eq=False)
class Baselines:
    """By their names, on the device of the SAEs; none where the store is gone."""

    maps: Mapping[str, Connector]
    notes: tuple[str, ...]


def fit_baselines(ends: Ends, *, device: torch.device) -> Baselines:
    """The mean, `E2 W D1`, the most correlated input, and ridge regression.

    Raises:
        ConfigError: the file of a connector's layer is no layer between the sites.
        StoreError: the store is unfinished or damaged.
    """
    run = ends.runs[0]
    store, why = _store_of(run)
    if store is None:
        return Baselines(
            maps={},
            notes=(
                f"no baselines: {why}; harvest it again, with the same options, to "
                f"{run.provenance.path}, and evaluate again",
            ),
        )
    feeder = PairFeeder(store, ends.runs, device=device)
    moments = find_moments(
        ends.pair,
        store,
        device=device,
        kept=lambda batch: feeder.mask((run.source, run.target), batch),
        metadata=feeder.metadata,
    )
    path = next((run.config.layer for run in ends.runs if run.config.layer), None)
    d_1, d_2 = ends.pair.source.d_in, ends.pair.target.d_in
    layer = read_layer(path, d_1=d_1, d_2=d_2) if path else fit_layer(moments.activations)
    maps = {
        "mean": mean_connector(moments),
        "weights": weights_connector(ends.pair, layer),
        "correlation": correlation_connector(moments),
        "ridge": ridge_connector(moments),
    }
    return Baselines(maps={name: fitted.to(device) for name, fitted in maps.items()}, notes=())


def _store_of(run: ConnectorRun) -> tuple[ActStore | None, str]:
    """The store that a connector was trained from, or None and the reason."""
    path = run.provenance.path
    if not path.exists():
        return None, f"the store {path}, on which they are fitted, is gone"
    store = ActStore.open(path)
    if store.fingerprint != run.provenance.fingerprint:
        return None, f"{path} is not the store that {run.path} was trained from"
    return store, ""
