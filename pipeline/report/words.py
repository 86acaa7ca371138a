"""Numbers as they stand in the page."""


def number(value: int | float | None) -> str:
    """Four significant digits, no powers of ten from 0.0001 to a million; a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share in at most three digits."""
    return f"{100 * share:.3g} %"


def many(n: int, what: str) -> str:
    """`1 run`, `12 runs`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"
