"""Where a connector is read: its store, what its features fire on, and its language model."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int

from actstore.reader import ActStore
from pipeline.config import Device, FeaturesConfig
from pipeline.connect.connector import Connector
from pipeline.connect.pair import End, Pair
from pipeline.connect.reading.effects import Scene
from pipeline.connect.run import ConnectorRun
from pipeline.device import pick_dtype
from pipeline.errors import CheckpointError, ConfigError, ModelError
from pipeline.families import Site
from pipeline.features.collect import FeaturesProgress, collect
from pipeline.features.files import FeatureSet
from pipeline.model import load_for_sites
from pipeline.splicing import check_fits


def open_store(run: ConnectorRun, path: Path | None) -> ActStore:
    """The store to read, sure to have activations for both SAEs.

    Args:
        run: A connector.
        path: None means the store it was trained from.

    Raises:
        ConfigError: it is gone, or lacks one of the sites.
        StoreError: it is unfinished or damaged.
    """
    where = run.provenance.path if path is None else path
    wanted = " and ".join((run.source.site, run.target.site))
    if path is None and not where.exists():
        raise ConfigError(
            f"the store that {run.path} was trained from, {where}, is gone: name another that "
            f"holds {wanted}, with --store"
        )
    store = ActStore.open(where)
    for end in (run.source, run.target):
        if end.site not in store.sites:
            raise ConfigError(
                f"{run.path} connects {wanted}, and {where} holds {', '.join(store.sites)}: name a "
                f"store that holds both, with --store"
            )
    return store


def check_widths(run: ConnectorRun, pair: Pair, store: ActStore) -> None:
    """Refuse a store whose activations the SAEs cannot take.

    Raises:
        ConfigError: a site has another width.
    """
    for site, coder in zip(pair.sites, (pair.source, pair.target), strict=True):
        if store.width(site) != coder.d_in:
            raise ConfigError(
                f"{run.path} reads {coder.d_in} dimensions at {site}, and {store.path} has "
                f"{store.width(site)}: name a store of the model it was trained on, with --store"
            )


def features_of(
    end: End,
    *,
    store: Path | None,
    device: Device,
    on_tokens: Callable[[int, int], None] | None = None,
) -> FeatureSet:
    """What the features of an SAE fire on: as found before, or found now.

    Args:
        end: The SAE.
        store: Where they are found; None means the store that it was trained from.
        device: To find them on.
        on_tokens: Told how many tokens were read, of how many.

    Raises:
        ConfigError: the store does not fit, or is gone.
        CheckpointError: the SAE cannot be used.
        StoreError: the store cannot be read.
    """
    try:
        there = FeatureSet.open(end.run)
        there.check()
        if there.facts.coder == end.sha256:
            return there
    except CheckpointError:
        pass

    def tell(progress: FeaturesProgress) -> None:
        if on_tokens is not None:
            on_tokens(progress.n_done, progress.n_tokens)

    config = FeaturesConfig(run=end.run, store=store, device=device)
    return collect(config, on_progress=tell)


@dataclass(frozen=True, kw_only=True, eq=False)
class _TopContexts:
    """Tokens of the contexts in which features of the source are largest."""

    features: FeatureSet
    store: ActStore

    def __call__(self, feature: int) -> Int[np.ndarray, "contexts ctx_len"]:
        context = self.features.feature(feature).top.context
        if not len(context):
            return np.empty((0, self.store.spec.ctx_len), np.int32)
        return self.store.tokens(context)


def open_scene(run: ConnectorRun, pair: Pair, connector: Connector, features: FeatureSet) -> Scene:
    """The model with everything in its place.

    Args:
        run: The connector's.
        pair: Its SAEs, on the device to run on.
        connector: Itself.
        features: Of the SAE it reads from.

    Raises:
        ModelError: the model cannot be used.
        ConfigError: it does not fit the SAEs, or does not compute one site from the other.
        StoreError: the store of the features cannot be read.
    """
    first, second = map(Site.parse, pair.sites)
    if not first < second:
        raise ConfigError(f"{second} does not depend on {first}, which comes after it")
    source = run.provenance
    if not source.model:
        raise ModelError("the store does not say which model its activations are from")
    store = ActStore.open(features.facts.store)
    device = connector.W.device
    lm = load_for_sites(
        source.model,
        (first, second),
        revision=source.revision or "main",
        device=device,
        dtype=pick_dtype("auto", torch.device(device)),
    )
    for site, coder, end in (
        (first, pair.source, run.source), (second, pair.target, run.target),
    ):  # fmt: skip
        check_fits(lm, site, d_in=coder.d_in, ctx_len=store.spec.ctx_len, run=end.run)
    contexts = _TopContexts(features=features, store=store)
    return Scene(lm=lm, pair=pair, connector=connector, contexts=contexts)
