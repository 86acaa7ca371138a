"""What configs require of their settings, and how people write numbers and lengths of training."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from pipeline.errors import ConfigError

# None means that a setting is left open: every requirement lets it pass.


def require_positive(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting that is not above zero."""
    _require("must be positive", lambda value: value > 0, config, *names)


def require_not_negative(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting below zero."""
    _require("must not be negative", lambda value: value >= 0, config, *names)


def require_fraction(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting that is not between zero and one."""
    _require("must be above 0 and below 1", lambda value: 0 < value < 1, config, *names)


def _require(what: str, holds: Callable[[float], bool], config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise ConfigError(f"{name} {what}, got {value}")


def require_penalty(config: object) -> None:
    """Raise ConfigError for an l1, or a target of it, that cannot be."""
    require_not_negative(config, "l1")
    require_fraction(config, "target")
    target, l1 = (getattr(config, name) for name in ("target", "l1"))
    if target is not None and l1 == 0:
        raise ConfigError("l1 is 0, and a target multiplies it until it is right: type an --l1 > 0")


def parse_count(text: str) -> int:
    """Read `500k`, `20M`, `1.5B` or a plain number.

    Raises:
        ConfigError: it is something else.
    """
    factor = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:].lower(), 1)
    digits = text[:-1] if factor > 1 else text
    try:
        return round(float(digits.replace("_", "")) * factor)
    except (ValueError, OverflowError):
        raise ConfigError(f"expected a number like 500k, 20M or 1B, got {text!r}") from None


Count = Annotated[int, parse_count]
"""A whole number that may be given as text, too: `500k`."""


def settle(config: object) -> None:
    """Make of what people write what a config holds: for `__post_init__`, first of all.

    Text becomes a path where one is meant, and a number where a `Count` is; a list, or a single
    text, becomes a tuple.
    """
    for name, (kind, *details) in _written(type(config)).items():
        value: Any = getattr(config, name)
        settled = _settled(kind, details, value)
        if settled is not value:
            object.__setattr__(config, name, settled)


def _settled(kind: object, details: list[object], value: Any) -> Any:  # noqa: ANN401
    if kind is tuple:
        listed = (value,) if isinstance(value, str | Path) else value
        if not isinstance(listed, tuple | list):
            return value
        if details[0] is Path:
            return tuple(Path(item) if isinstance(item, str) else item for item in listed)
        return tuple(listed)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is str and isinstance(value, Path):
        return str(value)
    return parse_count(value) if kind is int and isinstance(value, str) and details else value


@cache
def _written(config: type) -> Mapping[str, list[object]]:
    """What each setting is but for None: its type, and what a tuple or an `Annotated` holds."""
    hints = get_type_hints(config, include_extras=True)
    return {f.name: _plain(hints[f.name]) for f in fields(config)}


def _plain(hint: Any) -> list[object]:  # noqa: ANN401
    options = [option for option in get_args(hint) if option is not type(None)]
    if get_origin(hint) not in (tuple, Annotated, None) and len(options) == 1:  # X | None
        return _plain(options[0])
    if get_origin(hint) is Annotated:
        return list(get_args(hint))
    return [get_origin(hint) or hint, *options]


Unit = Literal["%", "steps", "rows"]

_NUMBER = r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)"
_FORM = re.compile(rf"\s*{_NUMBER}\s*([kMB]?)\s*(%|steps?|tokens?|rows?)?\s*")
_FACTOR = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


def parse_duration(duration: str) -> tuple[Fraction, Unit]:
    """Amount and unit of a length of training: `10k steps`, `5M tokens` (or just `5M`), `20%`.

    Exactly, so that 7% of 100 steps is 7 steps and not 8.

    Raises:
        ConfigError: it is no length of training.
    """
    found = _FORM.fullmatch(duration)
    if found is None:
        raise ConfigError(f"{duration!r} is not a length of training: type 10k steps, 5M or 20%")
    number, factor, unit = found.groups()
    kind = "%" if unit == "%" else "steps" if unit and unit.startswith("step") else "rows"
    return Fraction(number) * _FACTOR[factor], kind


def steps_of(duration: str, *, batch_size: int, n_steps: int) -> int:
    """How many steps it takes in a run of `n_steps`; a part of a step counts as one.

    Raises:
        ConfigError: it is no length of training.
    """
    amount, unit = parse_duration(duration)
    match unit:
        case "steps":
            return math.ceil(amount)
        case "rows":
            return math.ceil(amount / batch_size)
        case "%":
            return math.ceil(amount / 100 * n_steps)
