"""What was asked for on the command line and in a file, as settings of a config."""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.config.architectures import ARCHS
from pipeline.config.grid import comma_list
from pipeline.config.recipes import recipe
from pipeline.config.serialization import load_toml, nearest, to_json
from pipeline.config.training import ConnectConfig, LoopConfig, TrainConfig
from pipeline.errors import ConfigError


def merged(
    file: Path | None,
    options: Mapping[str, object],
    *,
    given: frozenset[str],
    named: str | None = None,
) -> dict[str, Any]:
    """Flag before file before recipe before default.

    Args:
        file: TOML.
        options: What the command line has for each setting, typed or not.
        given: The settings whose options were typed.
        named: A recipe.
    """
    settings: dict[str, Any] = dict(recipe(named)) if named is not None else {}
    if file is not None:
        settings |= load_toml(file)
    for name, value in options.items():
        if name in given or name not in settings:
            settings[name] = to_json(value)
    return settings


def assigned(settings: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Settings with `--set NAME=VALUE` carried out.

    A name may be that of a setting of the architecture, `arch.k_aux`. Values are read as TOML's,
    else as text; several, with commas between them, make a list.
    """
    changed, given = dict(settings), settings.get("arch")
    arch: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    shaping = {f.name for kind in ARCHS.values() for f in fields(kind)} - {"kind"}
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set takes NAME=VALUE, got {assignment!r}")
        if arch and name.strip() == "arch":
            raise ConfigError(f"the architecture has an option of its own: type --arch {text}")
        if arch and name.strip() in shaping:
            raise ConfigError(
                f"{name.strip()} is a setting of an architecture: type --set arch.{assignment}"
            )
        listed = text.strip().startswith("[")  # as a file has it
        values = [_value(word) for word in ([text] if listed else text.split(","))]
        table, _, knob = name.strip().rpartition(".")
        target = arch if table == "arch" else changed
        target[knob if table == "arch" else name.strip()] = values if len(values) > 1 else values[0]
    return {**changed, "arch": arch} if arch else changed


def _value(word: str) -> object:
    try:
        return tomllib.loads(f"value = {word.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        return word.strip()


def values_of(
    option: str, text: str | None, kind: Callable[[str], Any], *, alone: bool = True
) -> object:
    """What an option was given: a list where there are commas, `alone` else a value; or nothing."""
    values = None if text is None else comma_list(text, kind, option=f"--{option}")
    return single(values) if alone else values


def names_of(given: list[str] | None) -> list[str]:
    """What an option was given, several times or with commas."""
    return [name.strip() for text in given or () for name in text.split(",")]


def single(values: list[Any] | None) -> object:
    """A list of one as that one."""
    return values[0] if values and len(values) == 1 else values or None


DISPLACES = {"l0": {"k", "target"}, "k": {"l0"}, "target": {"l0"}}
"""Options of one meaning: which of a file's go where this one was typed."""


def arch_table(
    arch: object, knobs: Mapping[str, object], *, given: frozenset[str]
) -> dict[str, object]:
    """The table of an architecture, or a grid of them, by its names or the table that a file has.

    Of the options that shape one, `knobs`, those in `given` were typed; others are defaults.
    """
    table = {str(k): v for k, v in arch.items()} if isinstance(arch, Mapping) else {"kind": arch}
    named = table.get("kind")
    if named is None:
        raise ConfigError(f"arch lacks its kind: add kind, one of {', '.join(ARCHS)}")
    kinds = [str(kind) for kind in named] if isinstance(named, list | tuple) else [str(named)]
    for kind in kinds:
        if kind not in ARCHS:
            raise ConfigError(f"there is no architecture {kind!r}{nearest(kind, ARCHS)}")
    known = {f.name for kind in kinds for f in fields(ARCHS[kind])} | {"l0"}
    for name in given & DISPLACES.keys():
        for other in DISPLACES[name] - given:
            table.pop(other, None)
    for name, value in knobs.items():
        if name in given and name not in known:
            able = [kind for kind, arch in ARCHS.items() if name in {f.name for f in fields(arch)}]
            raise ConfigError(
                f"--{name} means nothing to --arch {', '.join(kinds)}: it is of {', '.join(able)}"
            )
        if name in known and (name in given or (name not in table and value is not None)):
            table[name] = value
    return table


def connector_settings(
    file: Path | None,
    options: Mapping[str, object],
    connect: Sequence[str],
    *,
    given: frozenset[str],
) -> dict[str, Any]:
    """The settings of connectors: of the options of a training, those that were typed.

    Pairs `RUN_IN:RUN_OUT` to connect are swept over where there are several.
    """
    known = {f.name for f in fields(ConnectConfig)}
    for name in given & options.keys() - known:
        raise ConfigError(f"--{name} means nothing to --connect: a connector is between SAEs")
    ends = [pair.split(":") for pair in connect]
    for pair, runs in zip(connect, ends, strict=True):
        if len(runs) != 2 or not all(runs):
            raise ConfigError(
                f"--connect takes RUN_IN:RUN_OUT, got {pair!r}; paths with a colon go into a "
                "--config file, as ends = [RUN_IN, RUN_OUT]"
            )
    typed = {name: value for name, value in options.items() if name in given or name == "store"}
    return merged(
        file, typed | {"ends": ends if len(ends) > 1 else ends[0]}, given=given | {"ends"}
    )


def training_settings(
    file: Path | None,
    options: Mapping[str, object],
    knobs: Mapping[str, object],
    assignments: Sequence[str],
    *,
    connect: Sequence[str] | None,
    recipe: str | None,
    given: frozenset[str],
) -> tuple[type[LoopConfig], dict[str, Any]]:
    """What is trained, and the settings: of connectors where there are pairs to connect.

    Options that shape an architecture are `knobs`.
    """
    if connect:
        if recipe is not None:
            raise ConfigError("--recipe means nothing to --connect: recipes are of SAEs")
        kind, both = ConnectConfig, {**options, **knobs}
        settings = connector_settings(file, both, connect, given=given)
    else:
        kind, settings = TrainConfig, merged(file, options, given=given, named=recipe)
        settings["arch"] = arch_table(settings["arch"], knobs, given=given)
    return kind, assigned(settings, assignments)


MOST_LAYERS = 10_000
"""More than any model has."""


def layers_of(text: str | None) -> list[int]:
    """Read `0-5`, `1,3` or `0-2,5`: layers, each once, in this order; none of None."""
    layers = list[int]()
    for word in text.split(",") if text is not None else ():
        first, dash, last = word.strip().partition("-")
        if not (
            first.isdecimal()
            and (last.isdecimal() or not dash)
            and int(first) <= int(last or first) < MOST_LAYERS
        ):
            raise ConfigError(f"--layers takes layers as in 0-5 or 1,3, got {text!r}")
        layers += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(layers))
