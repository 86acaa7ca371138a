"""What lies in the folders of runs, for a page about them. What is absent stays None."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.connect.run import is_connector
from pipeline.curves import METRICS
from pipeline.errors import ConfigError
from pipeline.evaluate.files import load_report
from pipeline.evaluate.names import names_of
from pipeline.evaluate.report import EvalReport
from pipeline.features.files import FeatureSet, has_features
from pipeline.finetune_run import FinetunedRun, is_finetuned
from pipeline.report.choose import choose_features
from pipeline.report.connect_gather import ConnectorMaterial, connector_material
from pipeline.report.feature_data import ShownFeatures
from pipeline.run import Run


@dataclass(frozen=True, kw_only=True, eq=False)
class Material:
    """One run of a sparse autoencoder."""

    name: str
    """The end of its path that tells it from the others."""
    path: Path
    run: Run
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
        if is_connector(path)
        else _material(path, name, n_features=n_features)
        for path, name in zip(distinct, names, strict=True)
    )


def _curves(run: Path) -> Path | None:
    """Its curves, if there are any."""
    curves = run / METRICS
    return curves if curves.exists() and curves.stat().st_size else None


def _material(path: Path, name: str, *, n_features: int) -> Material:
    tuned = FinetunedRun.open(path) if is_finetuned(path) else None
    run = tuned.run if tuned else Run.open(path)
    return Material(
        name=name,
        path=path,
        run=run,
        tuned=tuned,
        curves=_curves(path),
        evaluation=load_report(path),
        features=_features(path, n=n_features),
    )


def _features(run: Path, *, n: int) -> ShownFeatures | None:
    if not has_features(run):
        return None
    found = FeatureSet.open(run)
    return ShownFeatures(
        features=tuple(found.feature(i) for i in choose_features(found.n_active, n=n)),
        n_tokens=found.facts.n_tokens,
        texts=found.texts,
        notes=found.facts.notes,
    )
