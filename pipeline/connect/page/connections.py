"""Equations that a page shows, and the features that they are about."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.connect.connector import End
from pipeline.connect.reading.read import load_reading
from pipeline.connect.reading.values import KINDS, Reading
from pipeline.features.feature import BEFORE, Feature
from pipeline.features.files import FeatureSet, has_features
from pipeline.report.gather import evenly
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
    """What was read of a connector, with so many of its outputs; None if it was not."""
    reading = load_reading(run)
    if reading is None:
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
