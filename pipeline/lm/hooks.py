"""Read, replace and stop at the sites of a running model, by hooks that cannot leak."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.lm.families import Family, Shape
from pipeline.lm.modules import first_of, module_at, passing, width_of
from pipeline.lm.paths import canonical
from pipeline.lm.sites import LayerSite, ModuleSite, Site

Edit = Callable[[Tensor], Tensor]
"""From the activations `[batch, position, width]` at a site to what takes their place."""
Seen = Callable[[Tensor], Tensor | None]


class HookedModel:
    """What hooks need of a language model: its modules, and at which of them its sites are.

    Args:
        body: The base model, without the head.
        shape: Of a family that saepipe knows; None in another model, whose sites are modules.
        name: What errors call it.
        prefix: The path of the body in the whole model.
    """

    def __init__(self, body: nn.Module, *, shape: Shape | None, name: str, prefix: str) -> None:
        self.body = body
        self.name = name
        self.prefix = prefix
        self._shape = shape
        self._widths: dict[Site, int] = {}

    @property
    def shape(self) -> Shape:
        """What is known of a model of a family that saepipe knows.

        Raises:
            ConfigError: it is of another.
        """
        if self._shape is None:
            raise ConfigError(
                f"this needs the layers of {self.name}, which is of no family that saepipe knows: "
                "sites are the paths of its modules, as saepipe sites lists them"
            )
        return self._shape

    @property
    def family(self) -> Family | None:
        """The family it is of, if saepipe knows that."""
        return None if self._shape is None else self._shape.family

    def site(self, name: str | Site) -> Site:
        """The site of this name; a module that is one of our kinds is that kind.

        Raises:
            ConfigError: the model has no such site.
        """
        return self.site_and_width(name)[0]

    def width(self, site: Site) -> int:
        """Width of the activations at this site.

        Raises:
            ConfigError: the model has no such site.
        """
        return self.site_and_width(site)[1]

    def site_and_width(self, name: str | Site) -> tuple[Site, int]:
        """Both, of a model that may hold no memory; a module is run once, on a few tokens."""
        site = canonical(Site.parse(str(name)), shape=self._shape, prefix=self.prefix)
        if isinstance(site, LayerSite):
            self.shape.check(site, name=self.name)
            return site, self.shape.width(site)
        assert isinstance(site, ModuleSite)
        if site not in self._widths:
            module_at(self.body, site, prefix=self.prefix, name=self.name)
            measured = passing(self.body, prefix=self.prefix)
            self._widths[site] = width_of(measured, site, name=self.name)
        return site, self._widths[site]

    def module_of(self, site: Site) -> nn.Module:
        """The module that has the site at its input or output.

        Raises:
            ConfigError: the model has no such site.
        """
        if isinstance(site, LayerSite):
            self.shape.check(site, name=self.name)
            return self.body.get_submodule(self.shape.family.module_path(site))
        module = canonical(site, shape=None, prefix=self.prefix)
        assert isinstance(module, ModuleSite)
        return module_at(self.body, module, prefix=self.prefix, name=self.name)

    def hidden(
        self, tokens: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch position d_model"]:
        """Hidden states after the final norm."""
        return self.body(input_ids=tokens, use_cache=False).last_hidden_state


class _Stopped(Exception):  # noqa: N818 - a signal, not an error
    """Leaves a forward pass once nothing after it is wanted."""


def _hook(model: HookedModel, site: Site, seen: Seen) -> Callable[[], None]:
    """Call `seen` with the tensor at this site; what it returns, if anything, replaces it.

    Returns:
        What undoes it.
    """
    module, family = model.module_of(site), model.family
    written_to = family is not None and family.adds_into_mlp and str(site).startswith("mlp_out.")
    lead: list[torch.Size] = []  # batch and position, for where tokens come in one row

    def at_layer(_: object, args: tuple[Any, ...]) -> None:
        lead[:] = [args[0].shape[:2]]

    def shown(x: Tensor) -> Tensor | None:
        if x.ndim == 2:
            new = seen(x.unflatten(0, lead[0]))
            return None if new is None else new.flatten(0, 1)
        new = seen(x.clone() if written_to else x)
        return new.clone() if written_to and new is not None else new

    def at_input(_: object, args: tuple[Any, ...], given: dict[str, Any]) -> Any:  # noqa: ANN401
        x = first_of(args, given)
        new = shown(x)
        if new is None:
            return None
        new = x.copy_(new) if site.shared else new
        return ((new, *args[1:]), given) if args else ((), given | {next(iter(given)): new})

    def at_output(_: object, __: object, out: Tensor | tuple[Any, ...]) -> object:
        if isinstance(out, tuple):
            new = shown(out[0])
            return None if new is None else (new, *out[1:])
        return shown(out)

    if site.side == "in":
        handles = [module.register_forward_pre_hook(at_input, with_kwargs=True)]
    else:
        handles = [module.register_forward_hook(at_output)]
    if family is not None and family.flat_mlp and isinstance(site, LayerSite):
        layer = model.body.get_submodule(family.path(site.layer, ""))
        handles.append(layer.register_forward_pre_hook(at_layer))

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


@contextmanager
def capture(model: HookedModel, sites: Sequence[Site]) -> Generator[dict[Site, Tensor], None, None]:
    """Within the block, each forward pass leaves its activations in the yielded dict.

    Yields:
        For each site a `[batch, position, width]` tensor of the latest forward pass, detached.
    """
    acts: dict[Site, Tensor] = {}

    def keeper(site: Site) -> Seen:
        def keep(x: Tensor) -> None:
            acts[site] = x.detach()

        return keep

    with ExitStack() as stack:  # a failure half way through still removes what was added
        for site in sites:
            stack.callback(_hook(model, site, keeper(site)))
        yield acts


@contextmanager
def splice(model: HookedModel, edits: Mapping[Site, Edit]) -> Generator[None, None, None]:
    """Within the block, the activations at each site are replaced by `edits[site](them)`."""
    with ExitStack() as stack:
        for site, edit in edits.items():
            stack.callback(_hook(model, site, edit))
        yield


def in_float(reconstruct: Edit) -> Edit:
    """The edit that puts in place what an SAE, say, makes of float32 activations."""

    def edit(x: Tensor) -> Tensor:
        return reconstruct(x.float()).to(x.dtype)

    return edit


@contextmanager
def reading(
    model: HookedModel, sites: Sequence[Site]
) -> Generator[Callable[[Tensor], dict[Site, Tensor]], None, None]:
    """Within the block, a function from tokens to activations that stops once it has all of them.

    Yields:
        A function from `[batch, position]` tokens to `[batch, position, width]` per site.
    """
    acts: dict[Site, Tensor] = {}

    def keeper(site: Site) -> Seen:
        def keep(x: Tensor) -> None:
            acts[site] = x.detach()
            if len(acts) == len(sites):  # the order of modules is nobody's but the model's
                raise _Stopped

        return keep

    def read(tokens: Tensor) -> dict[Site, Tensor]:
        acts.clear()
        with suppress(_Stopped):
            model.hidden(tokens)
        return {site: acts[site] for site in sites}

    with ExitStack() as stack:
        for site in sites:
            stack.callback(_hook(model, site, keeper(site)))
        yield read
