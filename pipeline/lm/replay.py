"""Run the part of a language model above a site again, with another value at the site.

A clean pass leaves behind the activations at its sites and, of each site's layer, what the layer
was given and what runs beside the site. An edited pass starts from those: layers below the site
do not run, and inside its layer everything that the site does not reach gives the result it
gave before. The arithmetic of what does run is the model's own, operand for operand, so that the
result equals that of a whole pass with the value spliced in.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.lm.hooks import HookedModel, capture
from pipeline.lm.sites import BRANCHES, KINDS, MLP, Branch, LayerSite, Site


class _StandIn(nn.Module):
    """Has the other attributes of what it stands for: models ask layers for their kind."""

    def __init__(self) -> None:
        super().__init__()
        self._stands_for: list[nn.Module] = []  # a list: it is no part of this module

    def instead_of(self, module: nn.Module) -> nn.Module:
        """Itself, in the place of this one."""
        self._stands_for[:] = [module]
        return self

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._stands_for[0], name)


class _Given(_StandIn):
    """Stands where a module would run whose result is known, or read by nobody."""

    def __init__(self, result: object = None) -> None:
        super().__init__()
        self._result = result

    def forward(self, *_: object, **__: object) -> object:
        return self._result


class _Fed(_StandIn):
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

    def __init__(self, lm: HookedModel, sites: Iterable[LayerSite]) -> None:
        self._lm = lm
        self._recorded: dict[LayerSite, None] = {}
        for site in sites:
            lm.shape.check(site, name=lm.name)
            self._recorded[site] = None
            if site.kind.branch is not None:
                self._recorded[_beside(site, "resid_pre")] = None
            for branch in self._unreached(site):
                self._recorded[_beside(site, branch.output)] = None
        self._acts: dict[Site, Tensor] = {}
        self._tokens: Tensor | None = None
        self._gives_more: dict[str, bool] = {}
        """Whether a module gives a tuple, whose first is its result; by its path."""

    @torch.no_grad()
    def clean(
        self, tokens: Int[Tensor, "contexts ctx_len"]
    ) -> Float[Tensor, "contexts ctx_len d_model"]:
        """Last hidden states of the untouched model; what was recorded before is given up."""
        self._acts, self._tokens = {}, tokens
        with capture(self._lm, tuple(self._recorded)) as acts, ExitStack() as stack:
            for path in self._stood_for():
                module = self._lm.body.get_submodule(path)
                stack.callback(module.register_forward_hook(self._note(path)).remove)
            hidden = self._lm.hidden(tokens)
        self._acts = acts
        return hidden

    def acts(self, site: LayerSite) -> Float[Tensor, "contexts ctx_len width"]:
        """What the clean pass had at one of the sites; not to be written to."""
        return self._acts[site]

    @torch.no_grad()
    def edited(
        self, site: LayerSite, value: Float[Tensor, "contexts ctx_len width"]
    ) -> Float[Tensor, "contexts ctx_len d_model"]:
        """Last hidden states with `value` at the site; only what it reaches is computed."""
        assert self._tokens is not None
        lm, family = self._lm, self._lm.shape.family
        layers = lm.body.get_submodule(family.layers)
        assert isinstance(layers, nn.ModuleList)
        ends_layer = site.kind.added == BRANCHES
        start = value if site.kind.branch is None else self._acts[_beside(site, "resid_pre")]
        first = site.layer + ends_layer
        above = [*layers[first:]]
        if above:
            above[0] = _Fed(above[0], start).instead_of(above[0])
        passed = self._whole(family.path(0, ""), start)
        below = [_Given(passed).instead_of(layer) for layer in layers[:first]]
        with ExitStack() as stack:
            if not ends_layer:
                for path, stand_in in self._known(site, value).items():
                    _replace(lm.body, path, stand_in, stack)
            for path in family.embeddings:
                _replace(lm.body, path, _Given(start), stack)
            _replace(lm.body, family.layers, nn.ModuleList([*below, *above]), stack)
            return lm.hidden(self._tokens)

    def _stood_for(self) -> Iterator[str]:
        """Paths of modules whose result may be given, and be more than a tensor."""
        family = self._lm.shape.family
        yield family.path(0, "")
        for site in self._recorded:
            for part in ("attention", "mlp"):
                if part in family.parts:
                    yield family.path(site.layer, part)

    def _note(self, path: str) -> Callable[[nn.Module, object, object], None]:
        def note(_: nn.Module, __: object, out: object) -> None:
            self._gives_more[path] = isinstance(out, tuple)

        return note

    def _whole(self, path: str, result: Tensor | None) -> object:
        """All that the module at a path gives, with this as its result."""
        return (result, None) if self._gives_more.get(path, False) else result

    def _unreached(self, site: LayerSite) -> tuple[Branch, ...]:
        """The other branches of a branch's layer, as far as they do not read what it adds."""
        own = site.kind.branch
        if own is None:
            return ()
        reached = () if self._lm.shape.parallel else (MLP,)  # reads what the attention adds
        return tuple(branch for branch in BRANCHES if branch is not own and branch not in reached)

    def _known(self, site: LayerSite, value: Tensor) -> dict[str, nn.Module]:
        """Stand-ins for modules of the site's layer, by their paths."""
        kind, family = site.kind, self._lm.shape.family
        known: dict[str, nn.Module] = {}
        done: list[Branch] = []

        def at(part: str) -> str:
            return family.path(site.layer, part)

        def gives(branch: Branch, result: Tensor, *, added: bool = True) -> None:
            """What a branch adds is known, or only what its module gives, before a last norm."""
            done.append(branch)
            flat = branch is MLP and family.flat_mlp and result.ndim > 2
            result = result.flatten(0, 1) if flat else result
            if branch is MLP and family.adds_into_mlp:
                result = result.clone()
            if added and branch.post_norm in family.parts:
                known[at(branch.post_norm)] = _Given(result)
            if branch.module in family.parts:
                path = at(branch.module)
                known[path] = _Given(self._whole(path, result))
            else:  # its matrices are the layer's own
                known[at("mlp_in")] = _Given(result.new_zeros(()))
                known[at("mlp_out")] = _Given(result)

        for branch in kind.added:  # the value holds what they add
            gives(branch, value.new_zeros(()))
        for branch in self._unreached(site):
            gives(branch, self._acts[_beside(site, branch.output)])
        if kind.branch is not None:
            path, through = at(family.part(kind)), kind.through
            value = value.flatten(0, 1) if kind.branch is MLP and family.flat_mlp else value
            if not kind.nonlinear and through is None:
                gives(kind.branch, value)
            elif not kind.nonlinear and through is not None:
                gives(kind.branch, self._lm.body.get_submodule(at(through))(value), added=False)
            elif kind.side == "in":
                known[path] = _Fed(self._lm.body.get_submodule(path), value)
            else:
                known[path] = _Given(value)
                if not any(part in family.parts for part in kind.beside):  # else they read the norm
                    done.append(kind.branch)
        if not family.norms_stream:
            for branch in BRANCHES:
                if branch.norm in family.parts and {*family.reads_norm(branch)} <= {*done}:
                    known.setdefault(at(branch.norm), _Given())
        return known


def _beside(site: LayerSite, kind: str) -> LayerSite:
    return LayerSite(site.layer, KINDS[kind])


def _replace(root: nn.Module, path: str, stand_in: nn.Module, stack: ExitStack) -> None:
    """Put a module in another's place until the stack is closed."""
    parent, _, name = path.rpartition(".")
    owner = root.get_submodule(parent)
    module = getattr(owner, name)
    stack.callback(setattr, owner, name, module)
    setattr(
        owner, name, stand_in.instead_of(module) if isinstance(stand_in, _StandIn) else stand_in
    )
