"""What lies in the folder of a run for a page about it; which of its features to show."""

from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pipeline.features.files import FeatureSet, has_features
from pipeline.report.feature_data import ShownFeatures
from pipeline.runs.curves import METRICS

N_DEAD = 6
"""Dead features shown, at most."""


def choose_features(n_active: Int64[np.ndarray, " d_sae"], *, n: int) -> list[int]:
    """At most `n` features, evenly by frequency among those alive, and a few dead ones if any.

    The most and the least frequent are among them; equals are told apart by their index.
    """
    by_frequency = np.argsort(-n_active, kind="stable")
    alive = by_frequency[n_active[by_frequency] > 0]
    dead = np.flatnonzero(n_active == 0)
    n_dead = min(N_DEAD, dead.size, n if not alive.size else n - 1)
    shown = alive[evenly(alive.size, n - n_dead)], dead[evenly(dead.size, n_dead)]
    return np.concatenate(shown).tolist()


def evenly(n_items: int, n: int) -> list[int]:
    """The places of `n` of some items, or of all: as far apart as possible, both ends included."""
    return np.linspace(0, n_items - 1, min(n, n_items)).round().astype(np.int64).tolist()


def curves_of(run: Path) -> Path | None:
    """Its curves, if there are any."""
    curves = run / METRICS
    return curves if curves.exists() and curves.stat().st_size else None


def shown_features(run: Path, *, n: int) -> ShownFeatures | None:
    """At most `n` of its features, if they are collected."""
    if not has_features(run):
        return None
    found = FeatureSet.open(run)
    return ShownFeatures(
        features=tuple(found.feature(i) for i in choose_features(found.n_active, n=n)),
        n_tokens=found.facts.n_tokens,
        texts=found.texts,
        notes=found.facts.notes,
    )
