"""The sites that a model has, by layer: `mlp_out.{0..5}`. No weights are read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.lm.asked import Modules, shape_of
from pipeline.lm.families import Shape
from pipeline.lm.hub import ModelFiles
from pipeline.lm.names import hook_of
from pipeline.lm.paths import canonical
from pipeline.lm.sites import LayerSite, ModuleSite

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


@dataclass(frozen=True, kw_only=True)
class ListedSite:
    """One kind of site, or one module, in all layers that have it."""

    site: str
    """As `--site` takes it, with the layers in braces."""
    layers: tuple[int, ...]
    """Of a module that is in no layer none."""
    width: int
    module: str
    """The path in the whole model; its input has `.input` behind it."""
    hook: str = ""
    """What TransformerLens calls it; empty for a module by its path."""


def sites(
    model: str = "builtin",
    *,
    revision: str = "main",
    modules: bool = False,
    trust_remote_code: bool = False,
) -> list[ListedSite]:
    """The sites of a model, from its config.json alone.

        [(one.site, one.width) for one in sp.sites("builtin")]

    Args:
        model: Hub id, local folder, or `builtin` for the embedded model.
        revision: Of a model of the hub.
        modules: Of a model whose layers saepipe knows, also modules by their paths.
        trust_remote_code: Run the code that a model brings, if it brings any.

    Returns:
        Kinds of site in the order in which a layer computes them, then modules as the model has
        them. Of a module the output is listed; its input where that alone is a site, or of another
        width.

    Raises:
        ModelError: the model cannot be found or reached, or is no causal language model.
    """
    files = ModelFiles(model, revision)
    shape = shape_of(files)
    known = [] if shape is None else [_kind(shape, kind.name) for kind in shape.kinds()]
    if known and not modules:
        return known
    asked = Modules(files, trust_remote_code=trust_remote_code)
    widths = {site: width for site, width in asked.passing.items() if isinstance(width, int)}
    others = {
        site: width
        for site, width in widths.items()
        if isinstance(canonical(site, shape=shape, prefix=asked.prefix), ModuleSite)
        and (site.side == "out" or widths.get(ModuleSite(site.path)) != width)
    }
    return [*known, *_by_layer(others)]


def _kind(shape: Shape, name: str) -> ListedSite:
    first = next(LayerSite(0, kind) for kind in shape.kinds() if kind.name == name)
    layers, family = tuple(range(shape.n_layers)), shape.family
    braces = _braces(layers)
    module = f"{family.prefix}.{family.module_path(first)}{'.input' * (first.side == 'in')}"
    return ListedSite(
        site=f"{name}.{braces}",
        layers=layers,
        width=shape.width(first),
        module=module.replace(f".{family.layers}.0", f".{family.layers}.{braces}", 1),
        hook=hook_of(f"{name}.{braces}"),
    )


def _by_layer(widths: Mapping[ModuleSite, int]) -> list[ListedSite]:
    """Sites whose names differ in their first number alone are one, if they are equally wide."""
    found: dict[tuple[str, int], list[str]] = {}
    for site, width in widths.items():
        pattern = _NUMBER.sub("{}", str(site), count=1)
        found.setdefault((pattern, width), []).extend(_NUMBER.findall(str(site))[:1])
    listed: list[ListedSite] = []
    for (pattern, width), numbers in found.items():
        layers = tuple(sorted(map(int, numbers)))
        name = pattern.replace("{}", _braces(layers))
        listed.append(ListedSite(site=name, layers=layers, width=width, module=name))
    return listed


def _braces(layers: Iterable[int]) -> str:
    """`{0..5}`, `{1,3}`, or a single number as it is."""
    told = [*layers]
    if len(told) < 2:
        return "".join(map(str, told))
    runs = told == [*range(told[0], told[-1] + 1)]
    return f"{{{told[0]}..{told[-1]}}}" if runs else f"{{{','.join(map(str, told))}}}"
