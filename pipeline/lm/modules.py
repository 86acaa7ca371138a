"""Modules of a model by their paths: which there are, and how wide is what goes through them.

Widths are of one pass over a few tokens, in which nothing need hold memory.
"""

import logging
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from difflib import get_close_matches
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.lm.sites import ModuleSite, Side

TOKENS = (2, 3)
"""Contexts and positions of the pass: no other sizes of a model are likely to be both."""
SIDES: tuple[Side, Side] = ("in", "out")


def module_at(body: nn.Module, site: ModuleSite, *, prefix: str, name: str) -> nn.Module:
    """The module that a site is a side of.

    Raises:
        ConfigError: there is none; which names are nearest.
    """
    there = {f"{prefix}.{path}": module for path, module in body.named_modules() if path}
    if site.path in there:
        return there[site.path]
    near = get_close_matches(site.path, there, n=3)
    told = f"the nearest are {', '.join(near)}" if near else f"all are inside {prefix}"
    raise ConfigError(
        f"{name} has no module {site.path}: {told}; saepipe sites {name} --modules lists them"
    )


def first_of(args: Sequence[Any], given: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """The first input of a module, however it was called."""
    return args[0] if args else next(iter(given.values()), None)


@torch.no_grad()
def passing(body: nn.Module, *, prefix: str) -> dict[ModuleSite, int | str]:
    """Of both sides of every module its width, or what is there that is no row a token.

    Raises:
        RuntimeError: the model cannot run as it is, as some cannot without memory.
    """
    modules = {f"{prefix}.{path}": module for path, module in body.named_modules() if path}
    calls = Counter[ModuleSite]()
    found: dict[ModuleSite, int | str] = {
        ModuleSite(path, side): "nothing, since the module does not run"
        for path in modules
        for side in SIDES
    }

    def see(site: ModuleSite, value: Any) -> None:  # noqa: ANN401
        calls[site] += 1
        found[site] = _width(value)

    def at_input(site: ModuleSite, _: object, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        see(site, first_of(args, given))

    def at_output(site: ModuleSite, _: object, __: object, out: Any) -> None:  # noqa: ANN401
        see(site, out[0] if isinstance(out, tuple) else out)

    with ExitStack() as stack:
        for path, module in modules.items():
            before, after = (ModuleSite(path, side) for side in SIDES)
            hook = module.register_forward_pre_hook(partial(at_input, before), with_kwargs=True)
            stack.callback(hook.remove)
            stack.callback(module.register_forward_hook(partial(at_output, after)).remove)
        device = next(body.parameters()).device
        if device.type == "meta":
            stack.enter_context(_without_memory())
        body(input_ids=torch.zeros(TOKENS, dtype=torch.long, device=device), use_cache=False)
    often = {site: f"its module's {n} calls in one pass" for site, n in calls.items() if n > 1}
    return found | often


@contextmanager
def _without_memory() -> Generator[None]:
    """Within the block, a model is run by the shapes of its tensors.

    Code that asks for values can tell; what torch logs where it asks all the same is not for users.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    log = logging.getLogger("torch._subclasses.fake_tensor")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    finally:
        log.setLevel(before)


def _width(value: object) -> int | str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.ndim != 3 or value.shape[:2] != TOKENS or not value.is_floating_point():
        sizes = ", ".join(
            {TOKENS[0]: "batch", TOKENS[1]: "position"}.get(n, str(n)) for n in value.shape
        )
        return f"[{sizes}]" + ("" if value.is_floating_point() else " of whole numbers")
    return value.shape[2]


def width_of(found: Mapping[ModuleSite, int | str], site: ModuleSite, *, name: str) -> int:
    """The width of a site among those that were measured.

    Raises:
        ConfigError: what is there is not one row a token.
    """
    width = found[site]
    if isinstance(width, str):
        raise ConfigError(
            f"{site} of {name} holds {width}: a site holds [batch, position, width] of floats; "
            f"saepipe sites {name} --modules lists those that do"
        )
    return width
