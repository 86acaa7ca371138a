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

from pipeline.lm.hooks import HookedModel, capture
from pipeline.lm.sites import BRANCHES, MLP, Branch, Site


class _Given(nn.Module):
    """Stands where a module would run whose result is known, or read by nobody."""

    def __init__(self, result: object = None) -> None:
        super().__init__()
        self._result = result

    def forward(self, *_: object, **__: object) -> object:
        return self._result


class _Fed(nn.Module):
    """A module that is given a value whatever it is called with."""

    def __init__(self, module: nn.Module, value: Tensor) -> None:
        super().__init__()
        self._module, self._value = module, value

    def forward(self, _: object, *rest: object, **options: object) -> object:
        return self._module(self._value, *rest, **options)


@final
class Replay:
    """One clean pass, then any number of edited ones over the same tokens.

    It holds the latest batch: of each site its activations, and at most two states of the residual
    stream's width.

    Args:
        lm: the language model, as it was while no call is under way.
        sites: where edits may be made.
    """

    def __init__(self, lm: HookedModel, sites: Iterable[Site]) -> None:
        self._lm = lm
        self._recorded: dict[Site, None] = {}
        for site in sites:
            lm.shape.check(site, name=lm.name)
            self._recorded[site] = None
            if site.kind.branch is not None:
                self._recorded[_beside(site, "resid_pre")] = None
            for branch in self._unreached(site):
                self._recorded[_beside(site, branch.output)] = None
        self._acts: dict[Site, Tensor] = {}
        self._tokens: Tensor | None = None

    @torch.no_grad()
    def clean(
        self, tokens: Int[Tensor, "contexts ctx_len"]
    ) -> Float[Tensor, "contexts ctx_len d_model"]:
        """Last hidden states of the untouched model; what was recorded before is given up."""
        self._acts, self._tokens = {}, tokens
        with capture(self._lm, tuple(self._recorded)) as acts:
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
        ends_layer = site.kind.added == BRANCHES
        above = nn.ModuleList(layers[site.layer + ends_layer :])
        start = value if site.kind.branch is None else self._acts[_beside(site, "resid_pre")]
        tokens, *positions = family.embeddings
        with ExitStack() as stack:
            if not ends_layer:
                for path, stand_in in self._known(site, value).items():
                    _replace(lm.body, path, stand_in, stack)
            _replace(lm.body, tokens, _Given(start), stack)
            for path in positions:
                _replace(lm.body, path, _Given(start.new_zeros(())), stack)  # it is added
            _replace(lm.body, family.layers, above, stack)
            return lm.hidden(self._tokens)

    def _unreached(self, site: Site) -> tuple[Branch, ...]:
        """The other branches of a branch's layer, as far as they do not read what it adds."""
        own = site.kind.branch
        if own is None:
            return ()
        reached = () if self._lm.shape.parallel else (MLP,)  # reads what the attention adds
        return tuple(branch for branch in BRANCHES if branch is not own and branch not in reached)

    def _known(self, site: Site, value: Tensor) -> dict[str, nn.Module]:
        """Stand-ins for modules of the site's layer, by their paths."""
        kind, parts = site.kind, self._lm.shape.family.parts

        def at(part: str) -> str:
            return self._lm.shape.family.path(site.layer, part)

        def gives(branch: Branch, result: Tensor) -> dict[str, nn.Module]:
            whole = (result, None) if branch.gives_pair else result
            return {at(branch.norm): _Given(), at(branch.module): _Given(whole)}

        known: dict[str, nn.Module] = {}
        for branch in kind.added:  # the value holds what they add
            known |= gives(branch, value.new_zeros(()))
        for branch in self._unreached(site):
            known |= gives(branch, self._acts[_beside(site, branch.output)])
        if kind.branch is None:
            return known
        module = self._lm.body.get_submodule(at(kind.part))
        if not kind.nonlinear:
            if kind.through is not None:
                value = self._lm.body.get_submodule(at(kind.through))(value)
            return known | gives(kind.branch, value)
        if kind.side == "in":
            return known | {at(kind.part): _Fed(module, value)}
        if not any(part in parts for part in kind.beside):  # else they read the norm
            known[at(kind.branch.norm)] = _Given()
        return known | {at(kind.part): _Given(value)}


def _beside(site: Site, kind: str) -> Site:
    return Site.parse(f"{kind}.{site.layer}")


def _replace(root: nn.Module, path: str, stand_in: nn.Module, stack: ExitStack) -> None:
    """Put a module in another's place until the stack is closed."""
    parent, _, name = path.rpartition(".")
    owner = root.get_submodule(parent)
    stack.callback(setattr, owner, name, getattr(owner, name))
    setattr(owner, name, stand_in)
