"""Lengths of training, as people say them: `10k steps`, `5M tokens` (or just `5M`), `20%`."""

import math
import re
from fractions import Fraction
from typing import Literal

from pipeline.errors import ConfigError

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
    amount, unit = parse_span(span)
    match unit:
        case "steps":
            return math.ceil(amount)
        case "rows":
            return math.ceil(amount / batch_size)
        case "%":
            return math.ceil(amount / 100 * n_steps)


def parse_span(span: str) -> tuple[Fraction, Unit]:
    """Amount and unit; exactly, so that 7% of 100 steps is 7 steps and not 8.

    Raises:
        ConfigError: it is not a span.
    """
    found = _FORM.fullmatch(span)
    if found is None:
        raise ConfigError(f"{span!r} is not a length of training: type 10k steps, 5M or 20%")
    number, factor, unit = found.groups()
    return Fraction(number) * _FACTOR[factor], _UNIT[unit]
