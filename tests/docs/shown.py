"""Output as a page shows it, and as it is printed.

A page shows some lines of what is printed, or what they begin with, in their order; a line of `...`
says that there are others. Numbers may be 10 % off, for CPUs and libraries round differently. How
long something took, how much of a disk is free, and dates are of a machine and an hour: any do.
"""

import re
import sys
from collections.abc import Iterator

TOLERANCE = 0.1
GAP = "..."
_NUMBER = r"(?<!\w)(?<!\w\.)[-−+]?\d+(?:,\d{3})*(?:\.\d+)?(?:[eE][-+]?\d+)?"  # noqa: RUF001
_HERE_AND_NOW = re.compile(
    rf"{_NUMBER}[kMG]?(?= ?(?:s|min|h|tokens/s|rows/s)\b)|{_NUMBER}[kMG]?(?=B free\b)"
    r"|\d{4}-\d\d-\d\d \d\d:\d\d"
)
_RULE = re.compile(r"([─━═-])\1+")


def not_printed(shown: str, printed: str, *, tolerance: float = TOLERANCE) -> str | None:
    """The first line that is shown and was not printed after those before it; None where all were.

    Widths do not count: columns are as wide as their numbers.
    """
    rest = iter(printed.splitlines())
    for line in lines_of(shown):
        if not any(alike(line, other, tolerance=tolerance) for other in rest):
            return line
    return None


def lines_of(shown: str) -> Iterator[str]:
    """Lines that must be found."""
    return (line for line in shown.splitlines() if line.strip() not in ("", GAP))


def alike(shown: str, printed: str, *, tolerance: float = TOLERANCE) -> bool:
    """Whether a line begins with what is shown: with equal words, and numbers that are near."""
    a, b = (_HERE_AND_NOW.sub("~", line) for line in (shown, printed))
    (*words, last), others = (_plain(re.split(_NUMBER, line)) for line in (a, b))
    numbers = zip(re.findall(_NUMBER, a), re.findall(_NUMBER, b), strict=False)
    return (
        len(words) < len(others)
        and others[: len(words)] == words
        and re.match(rf"{re.escape(last)}(?!(?<=\w)\w)", others[len(words)]) is not None
        and all(_near(x, y, tolerance) for x, y in numbers)
    )


def _plain(words: list[str]) -> list[str]:
    return [_RULE.sub(r"\1", " ".join(part.split())) for part in words]


def _near(shown: str, printed: str, tolerance: float) -> bool:
    a, b = (float(number.replace(",", "").replace("−", "-")) for number in (shown, printed))  # noqa: RUF001
    return abs(a - b) <= tolerance * max(abs(a), sys.float_info.min)
