"""Equations that a page shows, the features that they are about, and both for its script.

The script reads them compact, rounded, texts kept once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.connect.connector import End
from pipeline.connect.reading.read import load_reading
from pipeline.connect.reading.values import KINDS, Effect, Equation, Reading, Relation, Term
from pipeline.features.feature import BEFORE, Examples, Feature
from pipeline.features.files import FeatureSet, has_features
from pipeline.report.feature_data import Places, evenly, examples_data, rounded
from pipeline.runs.belongs import is_of
from pipeline.text.token_text import TokenTexts, label

N_RELATIONS = 8
"""Of each kind in the table of the clearest."""
_N_PEAKS = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class EndFeatures:
    """Those features of one SAE that the page is about; none of an SAE whose are not collected."""

    features: Mapping[int, Feature]
    texts: TokenTexts

    def peaks(self, index: int) -> list[str]:
        """The tokens that a feature fires on most, each once; none of one that is not known."""
        if index not in self.features:
            return []
        column = self.features[index].top.tokens[:, BEFORE]
        tokens = (self.texts.alone(token) for token in column.tolist())
        return list(dict.fromkeys(token.strip() or label(token) for token in tokens))[:_N_PEAKS]


@dataclass(frozen=True, kw_only=True, eq=False)
class Connections:
    """What was read of a connector, and the features it is about."""

    reading: Reading
    outputs: tuple[int, ...]
    """Those shown."""
    source: EndFeatures
    target: EndFeatures


def load_connections(run: Path, *, n: int) -> Connections | None:
    """What was read of a connector, with so many of its outputs; None if it was not.

    Nor is what was read of another connector.
    """
    reading = load_reading(run)
    if reading is None or not is_of(run, reading.connector):
        return None
    outputs = choose_outputs(reading, n=n, n_relations=N_RELATIONS)
    inputs = {term.feature for o in outputs for term in reading.equation(o).terms}
    return Connections(
        reading=reading,
        outputs=tuple(outputs),
        source=_features(reading.source, inputs),
        target=_features(reading.target, set(outputs)),
    )


def choose_outputs(reading: Reading, *, n: int, n_relations: int) -> list[int]:
    """At most `n` outputs of a connector, the most telling first.

    Those of the clearest relations of each kind, those whose inputs were removed in the model, half
    of the rest those that their equations explain best, and then the others evenly by frequency.
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
    return first + [others[i].output for i in evenly(len(others), n - len(first))]


def _features(end: End, chosen: set[int]) -> EndFeatures:
    """Features of the weights that the connector was trained with; none where they are not."""
    if has_features(end.run):
        found = FeatureSet.open(end.run)
        if found.facts.coder == end.sha256:
            features = {i: found.feature(i) for i in sorted(chosen)}
            return EndFeatures(features=features, texts=found.texts)
    return EndFeatures(features={}, texts=TokenTexts({}.get))


# --- for the script ---------------------------------------------------------------------------

_N_OF_OUTPUT, _N_OF_INPUT = 6, 4
"""Strongest contexts shown of an output, and of each input."""


def connector_data(connections: Connections) -> dict[str, object]:
    """What `json.dumps` takes; tokens are places in `tokens`, a table of their texts."""
    reading, places = connections.reading, Places()
    effects = {
        (point.input, point.output): point
        for point in (reading.effects.points if reading.effects else ())
        if not point.control
    }
    related: dict[int, list[Relation]] = {}
    for relation in reading.relations:
        related.setdefault(relation.output, []).append(relation)
    equations = [reading.equation(output) for output in connections.outputs]
    return {
        "nTokens": reading.n_tokens,
        "tokens": places.table,
        "inputs": _inputs(connections.source, places),
        "items": [
            _output(equation, connections.target, places, effects=effects)
            | {"relations": [_relation(r) for r in related.get(equation.output, [])]}
            for equation in equations
        ],
    }


def _output(
    equation: Equation,
    target: EndFeatures,
    places: Places,
    *,
    effects: Mapping[tuple[int, int], Effect],
) -> dict[str, object]:
    return {
        "index": equation.output,
        "nActive": equation.n_active,
        "frequency": rounded(equation.frequency),
        "mean": rounded(equation.mean),
        "bias": rounded(equation.bias),
        "explained": rounded(equation.explained),
        "explainedShown": rounded(equation.explained_shown),
        "nAbove": equation.n_above,
        "nFurther": equation.n_further,
        "nAdding": len(equation.adding),
        "terms": [
            _term(term, effects.get((term.feature, equation.output))) for term in equation.terms
        ],
        **_contexts(target, equation.output, places, n=_N_OF_OUTPUT),
    }


def _term(term: Term, effect: Effect | None) -> list[object]:
    """Feature, weight, contribution, share, and what removing it takes: predicted, true, tokens."""
    told: list[object] = [term.feature, *map(rounded, (term.weight, term.contribution, term.share))]
    if effect is None:
        return told
    return [*told, rounded(effect.linear), rounded(effect.true), effect.n_tokens]


def _relation(relation: Relation) -> dict[str, object]:
    return {
        "kind": relation.kind,
        "a": relation.a,
        "b": relation.b,
        "inside": rounded(relation.inside),
        "cells": [[cell.n, rounded(cell.p)] for cell in relation.cells],
    }


def _inputs(source: EndFeatures, places: Places) -> dict[str, object]:
    """Every input that an equation names, by its number."""
    return {
        str(index): {
            "frequency": rounded(feature.frequency),
            "nActive": feature.n_active,
            **_contexts(source, index, places, n=_N_OF_INPUT),
        }
        for index, feature in source.features.items()
    }


def _contexts(end: EndFeatures, index: int, places: Places, *, n: int) -> dict[str, object]:
    """Contexts of a feature: the strongest and, half as many, from those drawn at random."""
    feature = end.features.get(index)
    if feature is None:
        return {"max": None, "top": [], "spread": []}
    strongest = range(min(n, len(feature.top.value)))
    return {
        "max": rounded(feature.max),
        "top": examples_data(_some(feature.top, strongest), end.texts, places),
        "spread": examples_data(
            _some(feature.spread, evenly(len(feature.spread.value), n // 2)), end.texts, places
        ),
    }


def _some(examples: Examples, places: Sequence[int]) -> Examples:
    """Those at these places."""
    kept = list(places)
    return Examples(**{f.name: getattr(examples, f.name)[kept] for f in fields(examples)})
