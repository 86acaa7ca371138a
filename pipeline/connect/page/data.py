"""Outputs of a connector as the page's script reads them: compact, rounded, texts kept once."""

from collections.abc import Mapping, Sequence
from dataclasses import fields

from pipeline.connect.page.connections import Connections, EndFeatures
from pipeline.connect.reading.values import Effect, Equation, Relation, Term
from pipeline.features.feature import Examples
from pipeline.report.feature_data import Places, examples_data, rounded
from pipeline.report.gather import evenly

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
