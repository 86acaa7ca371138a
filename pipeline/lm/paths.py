"""Which kind of site the side of a module is, by the model's own names; and back."""

import re
from collections.abc import Iterable

from pipeline.lm.families import FAMILIES, Family, Shape
from pipeline.lm.names import kind_and_layer, path_and_side
from pipeline.lm.sites import BRANCHES, KINDS, LayerSite, ModuleSite, Site, SiteKind

_LAYER_OF_ANY = re.compile(r"(?:[a-z_]+\.)*(?:layers|h)\.(\d+)(?:\.([a-z_0-9.]+))?")


def canonical(site: Site, *, shape: Shape | None, prefix: str) -> Site:
    """A module's site with its path in the whole model; or the kind of site that it is.

    Args:
        site: Paths may be inside the base model.
        shape: Of a family that we know, or None.
        prefix: Of the base model.
    """
    if not isinstance(site, ModuleSite):
        return site
    if shape is not None and (kind := meant(site, shape.family, shape.kinds())):
        return kind
    inside = site.path if site.path.startswith(f"{prefix}.") else f"{prefix}.{site.path}"
    return ModuleSite(inside, site.side)


def meant(site: ModuleSite, family: Family, kinds: Iterable[SiteKind]) -> LayerSite | None:
    """The site of one of these kinds that the side of a module is, in a model of this family.

    Beside the modules that kinds lie at, the module of a branch, and the last one in it, give what
    the branch adds.
    """
    inside = site.path.removeprefix(f"{family.prefix}.")
    found = re.fullmatch(rf"{family.layers}\.(\d+)(?:\..+)?", inside)
    if found is None:
        return None
    layer, own = int(found[1]), inside
    its = [LayerSite(layer, kind) for kind in kinds]
    for one in its:
        if (family.module_path(one), one.side) == (own, site.side):
            return one
    for branch in BRANCHES if site.side == "out" else ():
        same = [part for part in (branch.module, f"{branch.module}_out") if part in family.parts]
        paths = [family.path(layer, part) for part in same]
        for one in its:
            if one.kind.name == branch.output and {own, family.module_path(one)} <= {*paths}:
                return one
    return None


def site_of(name: str) -> str:
    """Our name of a site that others call `name`, whatever their model; empty where we have none.

    Known are our own names, those of `pipeline.lm.names`, and paths of the families that we know.
    """
    kind, _, layer = name.partition(".")
    if kind in KINDS and layer.isdecimal():
        return f"{kind}.{int(layer)}"
    if (told := kind_and_layer(name)) is not None:
        return f"{told[0]}.{told[1]}"
    path, side = path_and_side(name) or ("", "out")
    if not (found := _LAYER_OF_ANY.fullmatch(path)):
        return ""
    layer, inside = found[1], found[2] or ""
    if side == "out" and inside in ("mlp.act", "mlp.act_fn"):
        return f"mlp_act.{layer}" if inside == "mlp.act" else ""
    for family in FAMILIES.values():
        kinds = [kind for kind in KINDS.values() if family.part(kind) in ("", *family.parts)]
        own = family.path(int(layer), "") + (f".{inside}" if inside else "")
        if site := meant(ModuleSite(own, "in" if side == "in" else "out"), family, kinds):
            return str(site)
    return ""


def site_in(names: Iterable[str]) -> str:
    """The site that the last of these names of folders is about which is about one."""
    return next((site for name in reversed([*names]) if (site := site_of(name))), "")
