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


def counter(
    on_progress: OnProgress | None, *, stage: str, total: int, unit: str, words: str = ""
) -> Callable[[int], None]:
    """What a stage counts with: called with how much of `total` is done, it tells `on_progress`."""

    def tell(done: int) -> None:
        if on_progress is not None:
            on_progress(Progress(stage=stage, done=done, total=total, unit=unit, words=words))

    return tell


def short(value: int | float) -> str:
    """1234567 as 1.23M."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * factor:  # 999,700 is 1M, not 1e+03k
            return f"{value / factor:.3g}{letter}"
    return f"{value:.3g}"


def size(n_bytes: int | float) -> str:
    """1234567 as 1.23MB."""
    return f"{short(n_bytes)}B"


def duration(seconds: int | float) -> str:
    """The unit that leaves few digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
