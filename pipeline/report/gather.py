"""What lies in the folders of runs; which features to show.

Which features of a run a page shows, and which outputs of a connector.

What lies in the folder of a connector, and in those of its SAEs, for a page about it.

What lies in the folders of runs, for a page about them. What is absent stays None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from pipeline.connect.connector import End
from pipeline.connect.reading.read import load_reading
from pipeline.connect.reading.values import KINDS, Reading
from pipeline.connect.report import ConnectorReport, load_connector_report
from pipeline.connect.run import ConnectorRun
from pipeline.errors import ConfigError
from pipeline.evaluate.report import EvalReport, load_report
from pipeline.features.feature import BEFORE, Feature
from pipeline.features.files import FeatureSet, has_features
from pipeline.finetune.run import FinetunedRun, is_finetuned
from pipeline.report.feature_data import ShownFeatures
from pipeline.runs.curves import METRICS
from pipeline.runs.kinds import says_kind
from pipeline.runs.names import names_of
from pipeline.runs.sae_run import SAERun
from pipeline.text.token_text import TokenTexts, label

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


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """One run of a sparse autoencoder."""

    name: str
    """The end of its path that tells it from the others."""
    path: Path
    run: SAERun
    """The coder's; of a fine-tuned one, that of the coder it froze."""
    tuned: FinetunedRun | None
    curves: Path | None
    """Its metrics.jsonl, if it has any lines."""
    evaluation: EvalReport | None
    features: ShownFeatures | None


def gather(paths: Sequence[Path], *, n_features: int) -> tuple[Material | ConnectorMaterial, ...]:
    """What is known of each run, in the order given, each once.

    Raises:
        ConfigError: there is no run.
        CheckpointError: a folder holds no finished run, or a file of it is damaged.
    """
    if not paths:
        raise ConfigError("a report needs a run: saepipe report RUN [RUN...]")
    distinct = list({path.resolve(): path for path in paths}.values())
    names = names_of([path.resolve() for path in distinct])
    return tuple(
        connector_material(path, name, curves=_curves(path), n_features=n_features)
        if says_kind(path) == "connector"
        else _material(path, name, n_features=n_features)
        for path, name in zip(distinct, names, strict=True)
    )


def _curves(run: Path) -> Path | None:
    """Its curves, if there are any."""
    curves = run / METRICS
    return curves if curves.exists() and curves.stat().st_size else None


def _material(path: Path, name: str, *, n_features: int) -> Material:
    tuned = FinetunedRun.open(path) if is_finetuned(path) else None
    run = tuned.run if tuned else SAERun.open(path)
    return Material(
        name=name,
        path=path,
        run=run,
        tuned=tuned,
        curves=_curves(path),
        evaluation=load_report(path),
        features=_features_gather(path, n=n_features),
    )


def _features_gather(run: Path, *, n: int) -> ShownFeatures | None:
    if not has_features(run):
        return None
    found = FeatureSet.open(run)
    return ShownFeatures(
        features=tuple(found.feature(i) for i in choose_features(found.n_active, n=n)),
        n_tokens=found.facts.n_tokens,
        texts=found.texts,
        notes=found.facts.notes,
    )
