"""Which features of a run a page shows, and which outputs of a connector."""

import numpy as np
from jaxtyping import Int64

from pipeline.connect.reading.values import KINDS, Reading

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


def choose_outputs(reading: Reading, *, n: int, n_relations: int) -> list[int]:
    """At most `n` outputs of a connector, the most telling first.

    Those of the clearest relations of each kind, those whose inputs were removed in the model, half
    of the rest those that their equations explain best, and then the others evenly by frequency.

    Args:
        reading: What was read of the connector.
        n: Outputs to choose.
        n_relations: Of each kind, whose outputs must be there.
    """
    related = [r.output for kind in KINDS for r in reading.related(kind)[:n_relations]]
    points = reading.effects.points if reading.effects else ()
    removed = [point.output for point in points if not point.control]
    first = list(dict.fromkeys([*related, *removed]))[:n]
    best = [e.output for e in reading.clearest if e.output not in first]
    first += best[: (n - len(first)) // 2]
    others = sorted(
        (e for e in reading.equations if e.output not in first),
        key=lambda e: (-e.n_active, e.output),
    )
    chosen = _evenly(np.array([e.output for e in others], np.int64), n - len(first))
    return [*first, *chosen]


def evenly(n_items: int, n: int) -> list[int]:
    """The places of `n` of some items, or of all: as far apart as possible, both ends included."""
    return np.linspace(0, n_items - 1, min(n, n_items)).round().astype(np.int64).tolist()


def _evenly(items: Int64[np.ndarray, " items"], n: int) -> list[int]:
    return items[evenly(items.size, n)].tolist()
