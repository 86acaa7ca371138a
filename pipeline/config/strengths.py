"""How far a feature is steered, as people say it: `8`, `5x` its mean, `2max` its largest."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, cast

from pipeline.errors import ConfigError

Unit = Literal["", "x", "max"]

_FORM = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(x|max|)\s*")
_WANTED = (
    "type a number, in the units of the site, as 8 or -2.5; or 5x, of the feature's mean active "
    "activation; or 2max, of its largest"
)


@dataclass(frozen=True)
class Strength:
    """A number and what it counts."""

    number: float
    unit: Unit
    """Activations; means of the feature where it is active; its largest activations."""

    def __str__(self) -> str:
        return f"{self.number:g}{self.unit}"


def parse_strengths(texts: Iterable[str], *, option: str) -> tuple[Strength, ...]:
    """Each of some texts, or several of them with commas between.

    Raises:
        ConfigError: one is no strength, not finite, or there twice.
    """
    words = [word for text in texts for word in text.split(",")]
    found = list[Strength]()
    for word in words:
        read = _FORM.fullmatch(word)
        if read is None or not math.isfinite(float(read[1])):
            raise ConfigError(f"--{option} {word.strip()!r} is no strength: {_WANTED}")
        found.append(Strength(float(read[1]), cast("Unit", read[2])))
    for strength in found:
        if found.count(strength) > 1:
            raise ConfigError(f"--{option} has {strength} twice: name each once")
    return tuple(found)
