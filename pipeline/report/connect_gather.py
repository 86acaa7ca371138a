"""What lies in the folder of a connector, and in those of its SAEs, for a page about it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.connect.evaluation.files import load_connector_report
from pipeline.connect.evaluation.report import ConnectorReport
from pipeline.connect.pair import End
from pipeline.connect.reading.files import load_reading
from pipeline.connect.reading.values import Reading
from pipeline.connect.run import ConnectorRun
from pipeline.features.feature import BEFORE, Feature
from pipeline.features.files import FeatureSet, has_features
from pipeline.features.token_text import TokenTexts, label
from pipeline.report.choose import choose_outputs

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


@dataclass(frozen=True, kw_only=True, eq=False)
class ConnectorMaterial:
    """One connector. What is absent is None."""

    name: str
    """The end of its path that tells it from the others."""
    path: Path
    run: ConnectorRun
    curves: Path | None
    """Its metrics.jsonl, if it has any lines."""
    evaluation: ConnectorReport | None
    connections: Connections | None


def connector_material(
    path: Path, name: str, *, curves: Path | None, n_features: int
) -> ConnectorMaterial:
    """What is known of one connector.

    Raises:
        CheckpointError: it is unfinished, or a file of it is damaged.
    """
    run = ConnectorRun.open(path)
    reading = load_reading(path)
    return ConnectorMaterial(
        name=name,
        path=path,
        run=run,
        curves=curves,
        evaluation=load_connector_report(path),
        connections=None if reading is None else _connections(reading, n=n_features),
    )


def _connections(reading: Reading, *, n: int) -> Connections:
    outputs = choose_outputs(reading, n=n, n_relations=N_RELATIONS)
    inputs = {term.feature for o in outputs for term in reading.equation(o).terms}
    return Connections(
        reading=reading,
        outputs=tuple(outputs),
        source=_features(reading.source, inputs),
        target=_features(reading.target, set(outputs)),
    )


def _features(end: End, chosen: set[int]) -> EndFeatures:
    """Features of the weights that the connector was trained with; none where they are not."""
    if has_features(end.run):
        found = FeatureSet.open(end.run)
        if found.facts.coder == end.sha256:
            features = {i: found.feature(i) for i in sorted(chosen)}
            return EndFeatures(features=features, texts=found.texts)
    return EndFeatures(features={}, texts=TokenTexts({}.get))
