"""Which features of a run a page shows."""

import numpy as np
from jaxtyping import Int64

N_DEAD = 6
"""Dead features shown, at most."""


def choose_features(n_active: Int64[np.ndarray, " d_sae"], *, n: int) -> list[int]:
    """At most `n` features, evenly by frequency among those alive, and a few dead ones if any.

    The most and the least frequent are among them; equals are told apart by their index.

    Args:
        n_active: On how many tokens each feature is above zero.
        n: Features to choose, the dead included.
    """
    by_frequency = np.argsort(-n_active, kind="stable")
    alive = by_frequency[n_active[by_frequency] > 0]
    dead = np.flatnonzero(n_active == 0)
    n_dead = min(N_DEAD, dead.size, n if not alive.size else n - 1)
    return [*_evenly(alive, n - n_dead), *_evenly(dead, n_dead)]


def _evenly(items: Int64[np.ndarray, " items"], n: int) -> list[int]:
    """`n` of them, or all, as far apart as possible, both ends included."""
    places = np.linspace(0, items.size - 1, min(n, items.size)).round().astype(np.int64)
    return items[places].tolist()
