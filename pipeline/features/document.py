"""A feature as JSON."""

import numpy as np
from jaxtyping import Float32

from pipeline.codec import to_json
from pipeline.features.feature import BEFORE, Examples, Feature
from pipeline.features.token_text import TokenTexts


def feature_document(feature: Feature, texts: TokenTexts) -> dict[str, object]:
    """All that is known of a feature, as what `json.dumps` takes.

    Examples hold the tokens of their context alone, without the places beyond its ends; `at` is
    the place, among those, of the token with the largest activation. Texts are as the tokenizer
    has them: whoever shows them must escape them.
    """
    scalars = (
        "index", "n_active", "frequency", "mean", "max", "dead_cosine", "encoder_decoder_cosine",
    )  # fmt: skip
    sample = feature.sample
    return {
        **{name: getattr(feature, name) for name in scalars},
        "top": examples_document(feature.top, texts),
        "spread": examples_document(feature.spread, texts),
        "sample": {
            "tokens": sample.token.tolist(),
            "texts": [texts.alone(token) for token in sample.token.tolist()],
            "values": rounded(sample.value),
        },
        **{
            name: to_json(getattr(feature, name))
            for name in ("promoted", "suppressed", "neighbours")
        },
    }


def examples_document(examples: Examples, texts: TokenTexts) -> list[dict[str, object]]:
    """Each example, its text cut into a piece a token."""
    told: list[dict[str, object]] = []
    for i, (context, position) in enumerate(
        zip(examples.context.tolist(), examples.position.tolist(), strict=True)
    ):
        inside = examples.tokens[i] >= 0
        tokens = examples.tokens[i][inside].tolist()
        told.append(
            {
                "context": context,
                "position": position,
                "value": float(examples.value[i]),
                "at": int(inside[:BEFORE].sum()),
                "tokens": tokens,
                "texts": list(texts.pieces(tokens)),
                "values": rounded(examples.values[i][inside]),
            }
        )
    return told


def rounded(values: Float32[np.ndarray, " n"]) -> list[float]:
    """Six digits: as many as float32 has, without the tail of its binary form."""
    return [float(f"{value:.6g}") for value in values.tolist()]
