"""Require_positive and kin; lengths of training: `10k steps`, `5M`, `20%`.

What configs require of their settings. None means that a setting is left open.

Lengths of training, as people say them: `10k steps`, `5M tokens` (or just `5M`), `20%`.
"""

import math
import re
from fractions import Fraction
from typing import Literal

from pipeline.errors import ConfigError


def require_positive(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting that is not above zero."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise ConfigError(f"{name} must be positive, got {value}")


def require_not_negative(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting below zero."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 0:
            raise ConfigError(f"{name} must not be negative, got {value}")


def require_fraction(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting that is not between zero and one."""
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < 1:
            raise ConfigError(f"{name} must be above 0 and below 1, got {value}")


def require_penalty(config: object) -> None:
    """Raise ConfigError for an l1, or a target of it, that cannot be."""
    require_not_negative(config, "l1")
    require_fraction(config, "target")
    target, l1 = (getattr(config, name) for name in ("target", "l1"))
    if target is not None and l1 == 0:
        raise ConfigError("l1 is 0, and a target multiplies it until it is right: type an --l1 > 0")


Unit = Literal["%", "steps", "rows"]

_NUMBER = r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)"
_FORM = re.compile(rf"\s*{_NUMBER}\s*([kMB]?)\s*(%|steps?|tokens?|rows?)?\s*")
_FACTOR = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}
_UNIT: dict[str | None, Unit] = {
    None: "rows",
    "token": "rows",
    "tokens": "rows",
    "row": "rows",
    "rows": "rows",
    "step": "steps",
    "steps": "steps",
    "%": "%",
}


def steps_of(span: str, *, batch_size: int, n_steps: int) -> int:
    """How many steps a span takes in a run of `n_steps`; a part of a step counts as one.

    Raises:
        ConfigError: it is not a span.
    """
    amount, unit = parse_duration(span)
    match unit:
        case "steps":
            return math.ceil(amount)
        case "rows":
            return math.ceil(amount / batch_size)
        case "%":
            return math.ceil(amount / 100 * n_steps)


def parse_duration(span: str) -> tuple[Fraction, Unit]:
    """Amount and unit; exactly, so that 7% of 100 steps is 7 steps and not 8.

    Raises:
        ConfigError: it is not a span.
    """
    found = _FORM.fullmatch(span)
    if found is None:
        raise ConfigError(f"{span!r} is not a length of training: type 10k steps, 5M or 20%")
    number, factor, unit = found.groups()
    return Fraction(number) * _FACTOR[factor], _UNIT[unit]
