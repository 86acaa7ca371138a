"""Read, replace and stop at the sites of a running model, by hooks that cannot leak."""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

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


def _hook(model: HookedModel, site: Site, seen: Seen) -> RemovableHandle:
    """Call `seen` with the tensor at this site; what it returns, if anything, replaces it."""
    model.shape.check(site, name=model.name)
    module = model.body.get_submodule(model.shape.family.module_path(site))

    def at_input(_: object, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        new = seen(args[0])
        if new is None:
            return None
        return (args[0].copy_(new) if site.kind.shared else new, *args[1:])

    def at_output(_: object, __: object, out: Tensor | tuple[Any, ...]) -> object:
        if isinstance(out, tuple):
            new = seen(out[0])
            return None if new is None else (new, *out[1:])
        return seen(out)

    if site.kind.side == "in":
        return module.register_forward_pre_hook(at_input)
    return module.register_forward_hook(at_output)


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
            stack.callback(_hook(model, site, keeper(site)).remove)
        yield acts


@contextmanager
def splice(model: HookedModel, edits: Mapping[Site, Edit]) -> Generator[None, None, None]:
    """Within the block, the activations at each site are replaced by `edits[site](them)`."""
    with ExitStack() as stack:
        for site, edit in edits.items():
            stack.callback(_hook(model, site, edit).remove)
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
        stack.callback(_hook(model, max(sites), stop).remove)

        def read(tokens: Tensor) -> dict[Site, Tensor]:
            with suppress(_Stopped):
                model.hidden(tokens)
            return {site: acts[site] for site in sites}

        yield read
