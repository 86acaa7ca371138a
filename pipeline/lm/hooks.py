"""Read, replace and stop at the sites of a running model, by hooks that cannot leak."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.lm.families import Shape
from pipeline.lm.sites import Site

Edit = Callable[[Tensor], Tensor]
"""From the activations `[batch, position, width]` at a site to what takes their place."""
Seen = Callable[[Tensor], Tensor | None]


class HookedModel:
    """What hooks need of a language model: its layers, and where in them its sites are."""

    def __init__(self, body: nn.Module, *, shape: Shape, name: str) -> None:
        self.body = body
        self.shape = shape
        self.name = name

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
    model.shape.check(site, name=model.name)
    family = model.shape.family
    module = model.body.get_submodule(family.module_path(site))
    written_to = family.adds_into_mlp and site.kind.name == "mlp_out"
    lead: list[torch.Size] = []  # batch and position, for where tokens come in one row

    def at_layer(_: object, args: tuple[Any, ...]) -> None:
        lead[:] = [args[0].shape[:2]]

    def shown(x: Tensor) -> Tensor | None:
        if x.ndim == 2:
            new = seen(x.unflatten(0, lead[0]))
            return None if new is None else new.flatten(0, 1)
        new = seen(x.clone() if written_to else x)
        return new.clone() if written_to and new is not None else new

    def at_input(_: object, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = shown(args[0])
        if new is None:
            return None
        return (args[0].copy_(new) if site.kind.shared else new, *args[1:])

    def at_output(_: object, __: object, out: Tensor | tuple[Any, ...]) -> object:
        if isinstance(out, tuple):
            new = shown(out[0])
            return None if new is None else (new, *out[1:])
        return shown(out)

    if site.kind.side == "in":
        handles = [module.register_forward_pre_hook(at_input)]
    else:
        handles = [module.register_forward_hook(at_output)]
    if family.flat_mlp:
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
    """Within the block, a function from tokens to activations that stops at the last site.

    Yields:
        A function from `[batch, position]` tokens to `[batch, position, width]` per site.
    """

    def stop(_: Tensor) -> None:
        raise _Stopped

    with capture(model, sites) as acts, ExitStack() as stack:
        stack.callback(_hook(model, max(sites), stop))

        def read(tokens: Tensor) -> dict[Site, Tensor]:
            with suppress(_Stopped):
                model.hidden(tokens)
            return {site: acts[site] for site in sites}

        yield read
