"""Between which values a probability lies, given how often something happened."""

import math

Z = 3.0
"""Standard errors on either side: many pairs are looked at, and chance must not win among them."""


def wilson(n_hits: int, n: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of `Z` standard errors, 99.7 %; 0 and 1 for `n` of 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = n_hits / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - reach), min(1.0, middle + reach)
