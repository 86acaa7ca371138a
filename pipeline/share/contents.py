"""Which files of a run are pushed, and how: a pulled run is a run again.

    run.json, cfg.json, sae.safetensors     what it is, and its weights
    tuned.safetensors, features.json        of a fine-tuning: scales and biases, what they moved
    folded.json, imported.json              of a folded or imported one: where it is from
    metrics.jsonl, eval.json, *.png         curves, the evaluation, figures
    features/                               where they are asked for
    README.md                               the card
    saelens/                                the same SAE for other tools, of which COPIES knows

A sweep's are in a folder a run, beside sweep.json and sweep.csv.
"""

import json
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from actstore.files import readable_json
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluate.report import EVAL_FILE, load_report
from pipeline.features.files import FACTS, FOLDER, TABLES, FeatureSet, has_features
from pipeline.finetune.fold import FOLDED, require_folding
from pipeline.finetune.meaning import FEATURES
from pipeline.finetune.run import TUNED, FinetunedRun, is_finetuned
from pipeline.hub.repository import Content
from pipeline.runs.belongs import RUN
from pipeline.runs.curves import METRICS
from pipeline.runs.imported import IMPORTED, imported
from pipeline.runs.kinds import Lazy, says_kind
from pipeline.runs.sae_run import CODER, SAERun
from pipeline.runs.sweep import SWEEP
from pipeline.sae.sae import ABOUT, described
from pipeline.share.shown import shown

COPIES: Mapping[str, Lazy] = {"saelens": Lazy("pipeline.exchange.exporting:export")}
"""`(run, name, folder)`: writes a run's SAE into a folder, in the way of the tool of that name, or
says by a ConfigError that it cannot. The name is that of the folder in the repository, too."""

TABLE = "sweep.csv"
_AS_THEY_ARE = (CODER, TUNED, METRICS, FEATURES)
_WITHOUT_PATHS = (RUN, FOLDED, IMPORTED, EVAL_FILE)
_CONTENT = {EVAL_FILE: {"worst"}}
"""Keys of what is text of a data set."""
_OF_FEATURES = tuple(f"{FOLDER}/{name}" for name in (FACTS, *(f"{t}.parquet" for t in TABLES)))
_OF_RUN = (*_AS_THEY_ARE, *_WITHOUT_PATHS, ABOUT, *_OF_FEATURES, "*.png")


def is_of_run(path: str) -> bool:
    """Whether a file, by its path from the folder of a run, is one that runs are pushed with."""
    return any(fnmatch(path, one) and path.count("/") == one.count("/") for one in _OF_RUN)


def is_of_sweep(path: str) -> bool:
    """The same of a sweep, whose runs are folders."""
    return path in (SWEEP, TABLE) or is_of_run(path.partition("/")[2])


def was_pushed(path: str) -> bool:
    """Whether a file of a repository, by its path, is surely one that a run was pushed with."""
    return path in (*_AS_THEY_ARE, *_WITHOUT_PATHS, ABOUT, *_OF_FEATURES, SWEEP, TABLE) or (
        path.partition("/")[0] in COPIES
    )


def contents_of(run: Path, *, features: bool = False) -> dict[str, Content]:
    """The files of a finished run of an SAE by their names, each checked.

    Args:
        run: Of a training, a fine-tuning or a folding.
        features: Whether what its features fire on goes along.

    Raises:
        CheckpointError: it is unfinished, damaged, or of another kind.
        ConfigError: it has no features.
    """
    if features and not has_features(run):
        raise ConfigError(f"{run} has no features to push: find them first: saepipe features {run}")
    found: dict[str, Content] = {}
    if not is_finetuned(run):
        sae = require_whole(run)
        found[ABOUT] = described(sae.load_sae(torch.device("cpu")), sha256=sae.sha256)
    else:
        require_whole(run)
    for name in _WITHOUT_PATHS:
        if (run / name).exists():
            found[name] = public_json(run / name, content=_CONTENT.get(name, set()))
    found |= {name: run / name for name in _AS_THEY_ARE if (run / name).exists()}
    found |= {file.name: file for file in sorted(run.glob("*.png"))}
    if features:
        require_features(run)
        found[f"{FOLDER}/{FACTS}"] = public_json(run / FOLDER / FACTS)
        found |= {name: run / name for name in _OF_FEATURES if not name.endswith(FACTS)}
    return found


def require_whole(run: Path) -> Any:  # noqa: ANN401 - SAERun, or FinetunedRun
    """The run in a folder, its weights, its curves and what is told of it read and checked.

    Raises:
        CheckpointError: it is unfinished or damaged, or not of an SAE.
    """
    cpu = torch.device("cpu")
    load_report(run)
    imported(run)
    require_folding(run)
    if is_finetuned(run):
        tuned = FinetunedRun.open(run)
        tuned.load_sae(cpu)
        tuned.losses()
        tuned.meaning()
        return tuned
    if (kind := says_kind(run)) == "connector":
        raise CheckpointError(f"{run} is a {kind} run: only SAEs go to the hub, and come from it")
    sae = SAERun.open(run)
    sae.load_sae(cpu)
    if (run / METRICS).exists():
        _ = sae.curves
    return sae


def require_features(run: Path) -> None:
    """Read all of the features that were found for a run.

    Raises:
        CheckpointError: they are damaged, or of other weights.
    """
    FeatureSet.open(run).check()


def public_json(file: Path, *, content: set[str] | None = None) -> bytes:
    """A file of JSON as everybody may see it; one that keeps a key a line keeps that."""
    raw = file.read_bytes()
    document: Any = shown(json.loads(raw), content=content or set())
    if file.name != EVAL_FILE:
        return readable_json(document)
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in document.items()]
    return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def copies_of(run: Path) -> tuple[Mapping[str, Content], list[str]]:
    """Its SAE for other tools, by path, and why it cannot be had for some."""
    found: dict[str, Content] = {}
    notes: list[str] = []
    for name, write in COPIES.items():
        with TemporaryDirectory() as scratch:
            folder = Path(scratch) / name
            try:
                write(run, name, folder)
            except ConfigError as error:
                notes.append(f"without {name}/: {error}")
                continue
            for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                data = public_json(file) if file.suffix == ".json" else file.read_bytes()
                found[f"{name}/{file.relative_to(folder).as_posix()}"] = data
    return found, notes
