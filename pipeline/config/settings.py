"""Settings as people write them: counts and paths as text, lists and single values for tuples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from inspect import signature
from pathlib import Path
from typing import (
    Annotated,
    Any,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from pipeline.errors import ConfigError

T = TypeVar("T")
NUMBERS = (int, float)
"""Types of what may stand alone for a list of one; a truth value may not."""


def parse_count(text: str) -> int:
    """Read `500k`, `20M`, `1.5B` or a plain number."""
    factor = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        return round(float(digits.replace("_", "")) * factor)
    except (ValueError, OverflowError):
        raise ConfigError(f"expected a number like 500k, 20M or 1B, got {text!r}") from None


def plain_number(text: str) -> int | float:
    """A number as it is written: `16` is whole, `1.5` is not."""
    number = float(text)
    return int(number) if number.is_integer() else number


Count = Annotated[int, parse_count]
"""A whole number that may be given as text, too: `500k`."""


Length = Annotated[str, "a length of training"]
"""`10k steps`, `5M` rows or `20%` of a run; a plain number, too, is rows."""


Strengths = Annotated[str, "strengths"]
"""How far a feature is steered: `8`, `5x`, `2max`; several with commas. A plain number is text."""


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(field,))
def settings(cls: type[T]) -> type[T]:
    """A frozen, keyword-only dataclass that makes of what it is given what it holds.

    Text becomes a path where one is meant, and a number where a `Count` is; a path becomes text, as
    a number does where a `Length` or `Strengths` are; a list, or a single text, path or number, a
    tuple.
    """
    made = dataclass(frozen=True, kw_only=True)(cls)
    init: Callable[..., None] = made.__init__

    def settle_and_init(self: object, **given: Any) -> None:  # noqa: ANN401
        hints = hints_of(made)
        init(self, **{name: _settled(value, hints.get(name)) for name, value in given.items()})

    parameters = list(signature(init).parameters.values())[1:]
    made.__init__ = settle_and_init
    made.__signature__ = signature(init).replace(parameters=parameters)  # pyright: ignore[reportAttributeAccessIssue]
    return made


@cache
def hints_of(config: type) -> Mapping[str, object]:
    """Of each setting its type, as far as it is not None."""
    hints = get_type_hints(config, include_extras=True)
    return {f.name: _but_none(hints[f.name]) for f in fields(config)}  # pyright: ignore[reportArgumentType]


def _but_none(hint: object) -> object:
    options = [option for option in get_args(hint) if option is not type(None)]
    return options[0] if type(None) in get_args(hint) and len(options) == 1 else hint


def _settled(value: Any, hint: object) -> Any:  # noqa: ANN401
    """A value as its type asks for it; what cannot be is left for the config to refuse."""
    if get_origin(hint) is tuple:
        several = (value,) if isinstance(value, str | Path) or type(value) in NUMBERS else value
        is_list = isinstance(several, tuple | list)
        return tuple(_settled(item, get_args(hint)[0]) for item in several) if is_list else value
    if hint == Count and isinstance(value, str):
        return parse_count(value)
    if (hint == Length and type(value) is int) or (hint == Strengths and type(value) in NUMBERS):
        return str(value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    return str(value) if hint is str and isinstance(value, Path) else value
