"""The features that a page shows: which of a run, and as its script reads them.

Data are compact: numbers rounded, texts kept once.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pipeline.features.feature import Examples, Feature, TokenEffect
from pipeline.features.files import FeatureSet, has_features
from pipeline.text.token_text import TokenTexts, visible

N_DEAD = 6
"""Dead features shown, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownFeatures:
    """Those features of a run that a page shows."""

    features: tuple[Feature, ...]
    n_tokens: int
    """Tokens read."""
    texts: TokenTexts
    notes: tuple[str, ...]
    """What a reader must know, one sentence each."""


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


def feature_data(shown: ShownFeatures) -> dict[str, object]:
    """What `json.dumps` takes; tokens are places in `tokens`, a table of their texts."""
    places = Places()
    features = [_feature(feature, shown.texts, places) for feature in shown.features]
    return {"nTokens": shown.n_tokens, "tokens": places.table, "items": features}


def rounded(value: int | float | None) -> int | float | None:
    """Three significant digits, whole where that is a whole number; None for what is no number."""
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.3g}")
    return int(short) if short.is_integer() else short


class Places(dict[str, int]):
    """The places of texts in a table, filled as they are met."""

    def __init__(self) -> None:
        super().__init__()
        self.table: list[str] = []

    def __missing__(self, text: str) -> int:
        self[text] = len(self.table)
        self.table.append(visible(text))
        return self[text]


def _feature(feature: Feature, texts: TokenTexts, places: Places) -> dict[str, object]:
    sample = zip(feature.sample.token.tolist(), feature.sample.value.tolist(), strict=True)
    return {
        "index": feature.index,
        "nActive": feature.n_active,
        "frequency": rounded(feature.frequency),
        "mean": rounded(feature.mean),
        "max": rounded(feature.max),
        "deadCosine": rounded(feature.dead_cosine),
        "encoderDecoder": rounded(feature.encoder_decoder_cosine),
        "top": examples_data(feature.top, texts, places),
        "spread": examples_data(feature.spread, texts, places),
        "sample": [[places[texts.alone(token)], rounded(value)] for token, value in sample],
        "promoted": _effects(feature.promoted, places),
        "suppressed": _effects(feature.suppressed, places),
        "neighbours": [[n.index, rounded(n.cosine)] for n in feature.neighbours],
    }


def _effects(effects: Sequence[TokenEffect], places: Places) -> list[list[object]]:
    return [[places[effect.text], rounded(effect.effect)] for effect in effects]


def examples_data(examples: Examples, texts: TokenTexts, places: Places) -> list[dict[str, object]]:
    """Each without what lies beyond the ends of its context."""
    return [
        {
            "context": context,
            "position": position,
            "tokens": [places[piece] for piece in texts.pieces(tokens)],
            "values": [rounded(value) if value else 0 for value in values.tolist()],
        }
        for context, position, tokens, values in examples.inside()
    ]
