"""What connectors have in common: the two SAEs they lie between, and the rows that count."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from pipeline.connect.pair import End, Pair
from pipeline.connect.run import ConnectorRun
from pipeline.evaluate.grounds import OnTokens, find_grounds
from pipeline.evaluate.place import Exclusion, Place
from pipeline.evaluate.subject import Subject
from pipeline.families import Site
from pipeline.model import LanguageModel
from pipeline.run import Run
from pipeline.sae.coder import SparseCoder


@dataclass(frozen=True, kw_only=True, eq=False)
class Ends:
    """Two SAEs, loaded, and the connectors between them."""

    runs: tuple[ConnectorRun, ...]
    pair: Pair
    source: Subject
    target: Subject

    @property
    def sites(self) -> tuple[Site, Site]:
        """Of the two."""
        return self.source.site, self.target.site

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the training of either SAE left out, in words."""
        words = (*self.source.left_out.words, *self.target.left_out.words)
        return tuple(dict.fromkeys(words))


def load_ends(runs: Sequence[ConnectorRun], *, device: torch.device) -> Ends:
    """The SAEs that all of these connectors lie between.

    Raises:
        CheckpointError: one is gone, damaged, or was trained anew since.
    """
    run = runs[0]
    pair = run.load_pair(device)

    def subject(end: End, coder: SparseCoder) -> Subject:
        config = Run.open(end.run).config
        site = replace(run.provenance, site=end.site, d_in=coder.d_in)
        return Subject(
            path=end.run,
            coder=coder,
            arch=config.arch.kind,
            model=site.model,
            revision=site.revision,
            site=Site.parse(end.site),
            provenance=site,
            left_out=Exclusion.of(config),
        )

    return Ends(
        runs=tuple(runs),
        pair=pair,
        source=subject(run.source, pair.source),
        target=subject(run.target, pair.target),
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Which rows of a batch are edited and counted: those that both ends keep."""

    limits: Mapping[Place, float | None]
    """By the places of both ends, the largest norm that is kept."""

    def kept(
        self, tokens: Int[Tensor, "contexts ctx_len"], acts: Mapping[Site, Tensor]
    ) -> Bool[Tensor, "contexts ctx_len"]:
        """At these tokens, with these activations at the sites of both."""
        masks = [
            place.kept(tokens, acts[place.site], limit=limit)
            for place, limit in self.limits.items()
        ]
        return torch.stack(masks).all(0)


def find_rows(
    lm: LanguageModel,
    batches: Sequence[Tensor],
    ends: Ends,
    on_tokens: OnTokens,
    *,
    as_trained: bool,
) -> Rows:
    """The rows that count: all, or those that the SAEs were trained on."""
    places = [end.place(as_trained=as_trained) for end in (ends.source, ends.target)]
    if all(place.excluded.norms is None for place in places):
        return Rows(limits=dict.fromkeys(places))
    grounds = find_grounds(lm, batches, places, on_tokens)
    return Rows(limits={place: ground.limit for place, ground in grounds.items()})
