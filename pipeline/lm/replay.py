"""Run the part of a language model above a site again, with another value at the site.

A clean pass leaves behind the activations at its sites and, of each site's layer, what the layer
was given and what runs beside the site. An edited pass starts from those: layers below the site
are not there, and inside its layer everything that the site does not reach gives the result it
gave before. The arithmetic of what does run is the model's own, operand for operand, so that the
result equals that of a whole pass with the value spliced in.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from typing import final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.lm.families import Site
from pipeline.lm.hooks import capture
from pipeline.lm.model import LanguageModel


class _Given(nn.Module):
    """Stands where a module would run whose result is known, or read by nobody."""

    def __init__(self, result: object) -> None:
        super().__init__()
        self._result = result

    def forward(self, *_: object, **__: object) -> object:
        return self._result


@final
class Replay:
    """One clean pass, then any number of edited ones over the same tokens.

    It holds the latest batch: of each site its activations, and at most two states of the residual
    stream's width.

    Args:
        lm: the language model, as it was while no call is under way.
        sites: where edits may be made.

    Raises:
        ConfigError: the model has no such site.
    """

    def __init__(self, lm: LanguageModel, sites: Iterable[Site]) -> None:
        self._lm = lm
        self._sites = tuple(sites)
        for site in self._sites:
            lm.shape.check(site, name=lm.name)
        self._recorded = tuple(
            dict.fromkeys(s for site in self._sites for s in (site, *self._beside(site)))
        )
        self._acts: dict[Site, Tensor] = {}
        self._tokens: Tensor | None = None

    @torch.no_grad()
    def clean(
        self, tokens: Int[Tensor, "contexts ctx_len"]
    ) -> Float[Tensor, "contexts ctx_len d_model"]:
        """Last hidden states of the untouched model; what was recorded before is given up."""
        self._acts, self._tokens = {}, tokens
        with capture(self._lm, self._recorded) as acts:
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
        """Last hidden states with `value` at the site; only what it reaches is computed."""
        assert self._tokens is not None
        lm, family = self._lm, self._lm.shape.family
        layers = lm.body.get_submodule(family.layers)
        assert isinstance(layers, nn.ModuleList)
        start = self._start(site, value)
        above = layers[site.layer + (site.kind == "resid_post") :]
        tokens, *positions = family.embeddings
        with ExitStack() as stack:
            for path, result in self._known(site, value).items():
                _replace(layers[site.layer], path, _Given(result), stack)
            _replace(lm.body, tokens, _Given(start), stack)
            for path in positions:
                _replace(lm.body, path, _Given(start.new_zeros(())), stack)  # it is added
            _replace(lm.body, family.layers, nn.ModuleList(above), stack)
            return lm.hidden(self._tokens)

    def _beside(self, site: Site) -> tuple[Site, ...]:
        """What else of the site's layer an edited pass needs to know."""
        match site.kind:
            case "attn_out":
                kinds = ("resid_pre", "mlp_out") if self._lm.shape.parallel else ("resid_pre",)
            case "mlp_pre" | "mlp_act" | "mlp_out":
                kinds = ("resid_pre", "attn_out")
            case _:
                kinds = ()
        return tuple(Site.parse(f"{kind}.{site.layer}") for kind in kinds)

    def _start(self, site: Site, value: Tensor) -> Tensor:
        """The residual stream that the first layer to run is given."""
        if site.kind.startswith("resid"):
            return value
        return self._acts[Site.parse(f"resid_pre.{site.layer}")]

    def _known(self, site: Site, value: Tensor) -> dict[str, object]:
        """What modules of the site's layer give, by their paths; None where nobody reads it."""
        shape = self._lm.shape
        if site.kind in ("resid_pre", "resid_post"):
            return {}
        stages = shape.family.stages
        norm, attention = shape.family.attention
        mlp_norm, first = stages["mlp_pre"].needs
        mlp = stages["mlp_out"].module

        def before(kind: str) -> Tensor:
            return self._acts[Site.parse(f"{kind}.{site.layer}")]

        if site.kind == "resid_mid":  # nothing is added to the value the layer starts with
            return {norm: None, attention: (value.new_zeros(()), None)}
        if site.kind == "attn_out":
            beside = {mlp_norm: None, mlp: before("mlp_out")} if shape.parallel else {}
            return {norm: None, attention: (value, None), **beside}
        attended = {norm: None, attention: (before("attn_out"), None)}
        if site.kind == "mlp_pre":
            alone = not stages["mlp_act"].needs  # else the norm is read beside the site, too
            return {**attended, first: value, **({mlp_norm: None} if alone else {})}
        if site.kind == "mlp_act":
            layer = self._lm.body.get_submodule(f"{shape.family.layers}.{site.layer}")
            value = layer.get_submodule(stages["mlp_act"].module)(value)
        return {**attended, mlp_norm: None, mlp: value}


def _replace(root: nn.Module, path: str, stand_in: nn.Module, stack: ExitStack) -> None:
    """Put a module in another's place until the stack is closed."""
    parent, _, name = path.rpartition(".")
    owner = root.get_submodule(parent)
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, stand_in)
