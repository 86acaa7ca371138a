"""A clean pass and any number of edited ones: replayed where layers are known, whole elsewhere."""

from collections.abc import Iterable
from typing import Protocol, cast, final, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.lm.hooks import HookedModel, capture, splice
from pipeline.lm.replay import Replay
from pipeline.lm.sites import LayerSite, Site


@runtime_checkable
class Passes(Protocol):
    """One clean pass, then any number of edited ones over the same tokens."""

    def clean(
        self, tokens: Int[Tensor, "contexts ctx_len"]
    ) -> Float[Tensor, "contexts ctx_len d_model"]:
        """Last hidden states of the untouched model; what was recorded before is given up."""
        ...

    def acts(self, site: Site) -> Float[Tensor, "contexts ctx_len width"]:
        """What the clean pass had at one of the sites; not to be written to."""
        ...

    def edited(
        self, site: Site, value: Float[Tensor, "contexts ctx_len width"]
    ) -> Float[Tensor, "contexts ctx_len d_model"]:
        """Last hidden states with `value` at the site."""
        ...


@final
class WholePasses:
    """What `Replay` does, by running all of the model each time: a site may be any module."""

    def __init__(self, lm: HookedModel, sites: Iterable[Site]) -> None:
        self._lm, self._sites = lm, tuple(sites)
        self._acts: dict[Site, Tensor] = {}
        self._tokens: Tensor | None = None

    @torch.no_grad()
    def clean(
        self, tokens: Int[Tensor, "contexts ctx_len"]
    ) -> Float[Tensor, "contexts ctx_len d_model"]:
        """Last hidden states of the untouched model; what was recorded before is given up."""
        self._acts, self._tokens = {}, tokens
        with capture(self._lm, self._sites) as acts:
            hidden = self._lm.hidden(tokens)
        self._acts = acts
        return hidden

    def acts(self, site: Site) -> Float[Tensor, "contexts ctx_len width"]:
        """What the clean pass had at one of the sites; not to be written to."""
        return self._acts[site]

    @torch.no_grad()
    def edited(
        self, site: Site, value: Float[Tensor, "contexts ctx_len width"]
    ) -> Float[Tensor, "contexts ctx_len d_model"]:
        """Last hidden states with `value` at the site."""
        assert self._tokens is not None
        with splice(self._lm, {site: lambda _: value}):
            return self._lm.hidden(self._tokens)


def passes_of(lm: HookedModel, sites: Iterable[Site]) -> Passes:
    """Passes over one batch after another, edited at these sites."""
    wanted = tuple(sites)
    known = [site for site in wanted if isinstance(site, LayerSite)]
    if len(known) < len(wanted):
        return WholePasses(lm, wanted)
    return cast("Passes", Replay(lm, known))  # it takes these sites alone
