"""What was read of a connector as JSON, with the tokens that features fire on."""

from collections.abc import Sequence
from typing import cast

import numpy as np

from pipeline.config.serialization import to_json
from pipeline.connect.reading.values import KINDS, Effect, Equation, Reading, Relation
from pipeline.features.feature import feature_document
from pipeline.features.files import FeatureSet

FeaturesOfEnds = tuple[FeatureSet | None, FeatureSet | None]
"""What the features of the source and of the target fire on; None where nobody knows."""


def top_tokens(features: FeatureSet | None, index: int, *, n: int = 4) -> list[str]:
    """Texts of the tokens that make up most of a feature's activation; none without features."""
    if features is None:
        return []
    sample = features.feature(index).sample
    tokens, place = np.unique(sample.token, return_inverse=True)
    total = np.bincount(place, sample.value, len(tokens))
    return [features.texts.alone(int(tokens[i])) for i in np.argsort(-total, kind="stable")[:n]]


def reading_document(reading: Reading, ends: FeaturesOfEnds, *, rows: int) -> dict[str, object]:
    """So many of the clearest equations, and relations of each kind; `connections.json` has all.

    Texts are as the tokenizer has them: whoever shows them must escape them.
    """
    effects = reading.effects
    related = [relation for kind in KINDS for relation in reading.related(kind)[:rows]]
    return {
        **_told(reading),
        "equations": [_equation(equation, ends) for equation in reading.clearest[:rows]],
        "relations": [_relation(relation, ends) for relation in related],
        "agreement": effects
        and {
            "terms": to_json(effects.connected),
            "all": to_json(effects.every),
            "control_true": effects.control_true,
        },
    }


def output_document(
    reading: Reading, output: int, effects: Sequence[Effect], ends: FeaturesOfEnds
) -> dict[str, object]:
    """One output feature: its equation, relations, effects, and all that is known of its inputs."""
    equation = reading.equation(output)
    source, target = ends
    feature = None if target is None else feature_document(target.feature(output), target.texts)
    return {
        **_equation(equation, ends),
        "relations": [_relation(r, ends) for r in reading.relations if r.output == output],
        "effects": to_json(list(effects)),
        "feature": feature,
        "inputs": [
            feature_document(source.feature(term.feature), source.texts)
            for term in equation.terms
            if source is not None
        ],
    }


def _told(value: object) -> dict[str, object]:
    return cast("dict[str, object]", to_json(value))


def _equation(equation: Equation, ends: FeaturesOfEnds) -> dict[str, object]:
    source, target = ends
    named = {str(term.feature): top_tokens(source, term.feature) for term in equation.terms}
    fires_on = top_tokens(target, equation.output)
    return {**_told(equation), "fires_on": fires_on, "inputs_fire_on": named}


def _relation(relation: Relation, ends: FeaturesOfEnds) -> dict[str, object]:
    source, target = ends
    return {
        **_told(relation),
        "inside": relation.inside,
        "output_fires_on": top_tokens(target, relation.output),
        "a_fires_on": top_tokens(source, relation.a),
        "b_fires_on": top_tokens(source, relation.b),
    }
