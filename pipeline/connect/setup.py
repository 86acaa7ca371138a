"""What connectors between the same SAEs share: these, the rows that count, and the baselines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from actstore.reader import ActStore
from pipeline.connect.connector import Connector, End, SAEPair
from pipeline.connect.run import ConnectorRun
from pipeline.connect.start import baseline_connectors, fit_layer, read_layer
from pipeline.connect.train import PairFeeder
from pipeline.evaluate.ablations import OnTokens, find_site_means
from pipeline.evaluate.setup import EvalSite, ExcludedRows, LoadedSAE
from pipeline.lm.model import LanguageModel
from pipeline.lm.sites import Site
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE


@dataclass(frozen=True, kw_only=True, eq=False)
class LoadedConnectors:
    """Two SAEs, loaded, and the connectors between them."""

    runs: tuple[ConnectorRun, ...]
    pair: SAEPair
    source: LoadedSAE
    target: LoadedSAE

    @property
    def sites(self) -> tuple[Site, Site]:
        """Of the two."""
        return self.source.site, self.target.site

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the training of either SAE left out, in words."""
        words = (*self.source.left_out.words, *self.target.left_out.words)
        return tuple(dict.fromkeys(words))


def load_connectors(runs: Sequence[ConnectorRun], *, device: torch.device) -> LoadedConnectors:
    """The SAEs that all of these connectors lie between."""
    run = runs[0]
    pair = run.load_pair(device)

    def subject(end: End, coder: SAE) -> LoadedSAE:
        config = SAERun.open(end.run).config
        site = replace(run.provenance, site=end.site, d_in=coder.d_in)
        return LoadedSAE(
            path=end.run,
            sha256=end.sha256,
            coder=coder,
            arch=config.arch.kind,
            model=site.model,
            revision=site.revision,
            site=Site.parse(end.site),
            provenance=site,
            left_out=ExcludedRows.of(config),
        )

    return LoadedConnectors(
        runs=tuple(runs),
        pair=pair,
        source=subject(run.source, pair.source),
        target=subject(run.target, pair.target),
    )


KeptRows = Callable[[Tensor, Mapping[Site, Tensor]], Tensor]
"""Which rows of a batch are edited and counted, by its tokens, and its activations at both sites.
"""


def find_rows(
    lm: LanguageModel,
    batches: Sequence[Tensor],
    loaded: LoadedConnectors,
    on_tokens: OnTokens,
    *,
    as_trained: bool,
) -> KeptRows:
    """The rows that both SAEs keep: all, or those that they were trained on."""
    places = [end.eval_site(as_trained=as_trained) for end in (loaded.source, loaded.target)]
    limits: dict[EvalSite, float | None] = dict.fromkeys(places)
    if any(place.excluded.norms is not None for place in places):
        grounds = find_site_means(lm, batches, places, on_tokens)
        limits = {place: ground.limit for place, ground in grounds.items()}

    def kept(
        tokens: Int[Tensor, "contexts ctx_len"], acts: Mapping[Site, Tensor]
    ) -> Bool[Tensor, "contexts ctx_len"]:
        masks = [place.kept(tokens, acts[place.site], limit=n) for place, n in limits.items()]
        return torch.stack(masks).all(0)

    return kept


def fit_baselines(
    loaded: LoadedConnectors, *, device: torch.device
) -> tuple[dict[str, Connector], tuple[str, ...]]:
    """Baselines by their names, from a sample of the store; where it is gone, a note.

    The layer is that of the first connector that has one.
    """
    run = loaded.runs[0]
    source = run.provenance
    path = source.find(run.path)
    store = None if path is None else ActStore.open(path)
    if store is None or store.fingerprint != source.fingerprint:
        why = f"the store {source.path.name}, on which they are fitted, has changed since"
        if store is None:
            why = f"the store {source.path.name}, on which they are fitted, is gone"
        again = f"put it, or harvest it again with the same options, beside {run.path.name}"
        return {}, (f"no baselines: {why}; {again}, and evaluate again",)
    feeder = PairFeeder(store, loaded.runs, device=device)
    moments = feeder.moments(run.ends)
    given = next((run.config.layer for run in loaded.runs if run.config.layer), None)
    d_1, d_2 = loaded.pair.source.d_in, loaded.pair.target.d_in
    layer = read_layer(given, d_1=d_1, d_2=d_2) if given else fit_layer(moments.activations)
    return baseline_connectors(loaded.pair, moments, layer), ()
