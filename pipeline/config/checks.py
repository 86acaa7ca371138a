"""What configs require of their settings; lengths of training as people say them."""

import math
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

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


def require_seed(config: object, *names: str) -> None:
    """Raise ConfigError for the first setting that is no seed of every generator."""
    _require("must be from 0 to 2**63 - 1", lambda value: 0 <= value < 2**63, config, *names)


def _require(what: str, holds: Callable[[float], bool], config: object, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        if value is not None and not holds(value):
            raise ConfigError(f"{name} {what}, got {value}")


Unit = Literal["%", "steps", "rows"]

_NUMBER = r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)"
_FORM = re.compile(rf"\s*{_NUMBER}\s*([kMB]?)\s*(%|steps?|tokens?|rows?)?\s*")
_FACTOR = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9}


def parse_duration(duration: str) -> tuple[Fraction, Unit]:
    """Amount and unit of a length of training: `10k steps`, `5M tokens` (or just `5M`), `20%`.

    Exactly, so that 7% of 100 steps is 7 steps and not 8.
    """
    found = _FORM.fullmatch(duration)
    if found is None:
        raise ConfigError(f"{duration!r} is not a length of training: type 10k steps, 5M or 20%")
    number, factor, unit = found.groups()
    kind = "%" if unit == "%" else "steps" if unit and unit.startswith("step") else "rows"
    return Fraction(number) * _FACTOR[factor], kind


def steps_of(duration: str, *, batch_size: int, n_steps: int) -> int:
    """How many steps it takes in a run of `n_steps`; a part of a step counts as one."""
    amount, unit = parse_duration(duration)
    match unit:
        case "steps":
            return math.ceil(amount)
        case "rows":
            return math.ceil(amount / batch_size)
        case "%":
            return math.ceil(amount / 100 * n_steps)
