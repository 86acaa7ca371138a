"""The sites that somebody names, as a model has them: before its weights are read.

Of a family that we know config.json says all; modules by their paths are looked up in the model as
transformers builds it, without memory for its tensors. Torch-free but for these.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.families import FAMILIES, Shape
from pipeline.lm.hub import ModelFiles
from pipeline.lm.paths import canonical
from pipeline.lm.sites import LayerSite, ModuleSite, Site

UNBOUND = 2**31 - 1
"""Positions of a model that counts none."""
_POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "n_ctx", "seq_length")


@dataclass(frozen=True, kw_only=True)
class AskedSites:
    """Sites that a model has."""

    widths: Mapping[Site, int]
    n_positions: int
    notes: tuple[str, ...]
    """What was named in other words than ours."""


def shape_of(files: ModelFiles) -> Shape | None:
    """What config.json says of a model of a family that we know; None of any other."""
    if files.config.get("model_type") not in FAMILIES:
        return None
    return Shape.of(files.config, name=files.name)


def by_transformers(files: ModelFiles) -> bool:
    """Whether a model is loaded whole: one of no family of ours, or of quantised weights."""
    return shape_of(files) is None or bool(files.config.get("quantization_config"))


def positions_in(config: Mapping[str, Any]) -> int:
    """How many positions a model of no family of ours takes, by the usual words for it."""
    told = (config.get(key) for key in _POSITIONS)
    return next((n for n in told if isinstance(n, int)), UNBOUND)


class Modules:
    """The modules of a model by their paths, from its config.json alone wherever that will do."""

    def __init__(self, files: ModelFiles, *, trust_remote_code: bool) -> None:
        self._files, self._trusts = files, trust_remote_code

    @cached_property
    def _outline(self) -> Any:  # noqa: ANN401
        from pipeline.lm.other import outline_of

        return outline_of(self._files, trust_remote_code=self._trusts)

    @property
    def prefix(self) -> str:
        """The path of the base model in the whole one."""
        return self._outline.base_model_prefix

    @cached_property
    def passing(self) -> Mapping[ModuleSite, int | str]:
        """Of both sides of every module its width, or what is there that is no row a token.

        A model that cannot run without memory is loaded for it.
        """
        import torch

        from pipeline.lm.modules import passing
        from pipeline.lm.other import load_whole

        try:
            return passing(self._outline.base_model, prefix=self.prefix)
        except RuntimeError:
            whole = load_whole(
                self._files, device=torch.device("cpu"), dtype=torch.float32,
                trust_remote_code=self._trusts,
            )  # fmt: skip
            return passing(whole.base_model, prefix=self.prefix)

    def width(self, site: ModuleSite) -> int:
        """Of the activations there.

        Raises:
            ConfigError: there is no such module, or what goes through it is not one row a token.
        """
        from pipeline.lm.modules import module_at, width_of

        name = self._files.name
        module_at(self._outline.base_model, site, prefix=self.prefix, name=name)
        return width_of(self.passing, site, name=name)


def sites_asked(
    names: Sequence[str], files: ModelFiles, *, trust_remote_code: bool = False
) -> AskedSites:
    """The sites of these names, and their widths.

    Raises:
        ConfigError: the model has no such site, or one is named twice.
        ModelError: it cannot be found, is no causal language model, or its layers are not known.
    """
    shape, parsed = shape_of(files), [Site.parse(name) for name in names]
    prefix = "" if shape is None else shape.family.prefix
    modules = Modules(files, trust_remote_code=trust_remote_code)
    if shape is None:
        prefix = modules.prefix
    found: dict[Site, int] = {}
    notes: list[str] = []
    for name, one in zip(names, parsed, strict=True):
        site = canonical(one, shape=shape, prefix=prefix)
        if site in found:
            raise ConfigError(f"{name} is {site} of {files.name}, which is named twice")
        if isinstance(site, ModuleSite):
            found[site] = modules.width(site)
        elif isinstance(site, LayerSite) and shape is not None:
            shape.check(site, name=files.name)
            found[site] = shape.width(site)
        else:
            raise _no_kinds(site, files, trust_remote_code=trust_remote_code)
        if str(site) != name:
            notes.append(f"{name} is {site} of {files.name}")
    n_positions = positions_in(files.config) if shape is None else shape.n_positions
    return AskedSites(widths=found, n_positions=n_positions, notes=tuple(notes))


def _no_kinds(site: Site, files: ModelFiles, *, trust_remote_code: bool) -> ModelError:
    """Why a model of no family of ours has no site of a layer; raised if it is none at all."""
    from pipeline.lm.other import require_causal

    require_causal(files, trust_remote_code=trust_remote_code)
    return ModelError(
        f"{files.name} is a {files.config.get('model_type')!r} model, whose layers saepipe does "
        f"not know, so that {site} says nothing: name a module, one of saepipe sites {files.name}"
    )
