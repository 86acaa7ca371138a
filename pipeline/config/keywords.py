"""Settings as keywords of a function: made into a config, and told where Python looks for them.

    @takes(HarvestConfig)
    def harvest(config: HarvestConfig | None = None, **settings: object) -> HarvestSummary:
        config = config_of(HarvestConfig, config or {}, settings, verb="harvest")

`help(harvest)` then lists the settings with their defaults, and so does its signature.
"""

import ast
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import wraps
from inspect import Parameter, cleandoc, get_annotations, getsource, signature
from itertools import pairwise
from os import PathLike, fspath
from textwrap import dedent
from typing import Any, Final, TypeVar, cast, get_origin

import numpy as np

from actstore.errors import StoreError
from pipeline.config.serialization import from_json, nearest, to_json
from pipeline.config.settings import hints_of
from pipeline.errors import ConfigError, PipelineError, in_settings

Config = TypeVar("Config")
Verb = TypeVar("Verb", bound=Callable[..., Any])

REQUIRED: Final = Parameter.empty


def config_of(
    kind: type[Config],
    given: Config | Mapping[str, object],
    settings: Mapping[str, object],
    *,
    verb: str,
) -> Config:
    """The config that a verb was called with; `settings` go before what is `given`."""
    return from_json(kind, settings_of(kind, given, settings, verb=verb), where=verb)


def settings_of(
    kind: type[Config],
    given: Config | Mapping[str, object],
    settings: Mapping[str, object],
    *,
    verb: str,
    also: frozenset[str] = frozenset(),
) -> dict[str, object]:
    """As `config_of`, but as what `from_json` reads; `also` names what the config does not know."""
    hints = hints_of(kind)
    known = {**hints, **dict.fromkeys(also)}
    for name in settings:
        if name not in known:
            raise ConfigError(f"{verb} has no setting {name!r}{nearest(name, known)}")
    base: Any = given if isinstance(given, Mapping) else to_json(given)
    told = {name: _plain(value) for name, value in {**base, **settings}.items()}
    for name, value in told.items():
        if get_origin(hints.get(name)) is tuple and isinstance(value, str):
            told[name] = [value]
    return told


def _plain(value: object) -> object:
    """A value of Python, numpy or torch as JSON has it."""
    if isinstance(value, PathLike):
        return fspath(value)
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, list | tuple | range):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    is_device = type(value).__module__ == "torch"
    return str(value) if is_device else to_json(value)


def takes(kind: type, *, others: str = "") -> Callable[[Verb], Verb]:
    """Say in a verb's signature, docstring and errors which settings its `**settings` are.

    Args:
        kind: The config whose they are; those that the verb has as arguments stay where they are.
        others: Name of what else is taken as keywords, if anything.
    """

    def described(verb: Verb) -> Verb:
        own = [p for p in signature(verb).parameters.values() if p.name != "settings"]
        taken = [f for f in fields(kind) if f.name not in {p.name for p in own}]  # pyright: ignore[reportArgumentType]
        # What must be given comes first, and what a config has for itself before what it inherits.
        first = [*get_annotations(kind)]
        places = {name: place for place, name in enumerate(first)}
        taken.sort(key=lambda f: (_default(f) is not REQUIRED, places.get(f.name, len(first))))
        defaults = {f.name: _default(f) for f in taken}
        keywords = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=default)
            for name, default in defaults.items()
        ]
        rest = [Parameter(others, Parameter.VAR_KEYWORD)] if others else []
        parameters = sorted([*keywords, *own, *rest], key=lambda p: p.kind)
        made = told_in_settings(verb)
        made.__signature__ = signature(verb).replace(parameters=parameters)  # pyright: ignore[reportFunctionMemberAccess]
        words = _words_of(kind)
        lines = [f"    {_shown(name, defaults[name])}{words.get(name, '')}" for name in defaults]
        heading = f"Settings, as keywords; those of `{kind.__name__}`:"
        made.__doc__ = "\n".join([cleandoc(verb.__doc__ or ""), "", heading, *lines, ""])
        return made

    return described


def told_in_settings(verb: Verb) -> Verb:
    """The verb; what goes wrong in it is told in its own words, not in the command line's."""

    @wraps(verb)
    def told(*args: Any, **settings: Any) -> Any:  # noqa: ANN401
        try:
            return verb(*args, **settings)
        except (PipelineError, StoreError) as error:
            error.args = (in_settings(str(error)),)
            raise

    return cast("Verb", told)


def _default(setting: Field[Any]) -> object:
    """What a setting is where it is not given."""
    if setting.default_factory is not MISSING:
        return setting.default_factory()
    return REQUIRED if setting.default is MISSING else setting.default


def _shown(name: str, default: object) -> str:
    return name if default is REQUIRED else f"{name} = {default!r}"


def _words_of(kind: type) -> dict[str, str]:
    """What stands below each setting in the source of a config."""
    found: dict[str, str] = {}
    for part in reversed(kind.__mro__):
        if not is_dataclass(part):
            continue
        try:
            source = dedent(getsource(part))
        except OSError:  # an installation without sources
            continue
        for line, below in pairwise(cast("ast.ClassDef", ast.parse(source).body[0]).body):
            match line, below:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)),
                    ast.Expr(value=ast.Constant(value=str(words))),
                ):
                    found[name] = ": " + " ".join(words.partition("\n\n")[0].split())
                case _:
                    pass
    return found
