"""Features as the page's script reads them: compact, rounded, texts kept once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.features.feature import Examples, Feature, TokenEffect
from pipeline.text.token_text import TokenTexts, visible


@dataclass(frozen=True, kw_only=True, eq=False)
class ShownFeatures:
    """Those features of a run that a page shows."""

    features: tuple[Feature, ...]
    n_tokens: int
    """Tokens read."""
    texts: TokenTexts
    notes: tuple[str, ...]
    """What a reader must know, one sentence each."""


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
