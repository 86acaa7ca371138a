"""How far something long has come: what every verb tells whoever waits for it, and its words."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Where one stage of something long stands; a stage that begins anew counts from zero."""

    stage: str
    """What is being done, in one word: `harvest`, `train`, `eval`."""
    done: int
    total: int
    unit: str
    """Of both counts: `tokens`, `rows`, `steps`."""
    words: str = ""
    """What else there is to say: a loss, bytes on disk."""


OnProgress = Callable[[Progress], None]
"""Called now and then; what it raises ends the work as Ctrl-C would."""


def short(value: int | float) -> str:
    """1234567 as 1.23M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def size(n_bytes: int | float) -> str:
    """1234567 as 1.23MB."""
    return f"{short(n_bytes)}B"
