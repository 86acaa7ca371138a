"""Numbers as people write and read them."""

from pipeline.errors import ConfigError


def layers_of(text: str | None) -> list[int]:
    """Read `0-5`, `1,3` or `0-2,5`: layers, each once, in this order; none of None."""
    layers = list[int]()
    for word in text.split(",") if text is not None else ():
        first, dash, last = word.strip().partition("-")
        if not (first.isdecimal() and (last.isdecimal() or not dash)):
            raise ConfigError(f"--layers takes layers as in 0-5 or 1,3, got {text!r}")
        layers += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(layers))


def duration(seconds: int | float) -> str:
    """The unit that leaves few digits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
