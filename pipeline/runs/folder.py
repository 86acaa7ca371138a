"""RunFolder: created, gone on with or complete; its document, tensors and provenance.

The folder of a training: created, gone on with, or found complete.

    run.json            config, what it is trained on, version; written again when complete
    metrics.jsonl       the curves
    checkpoints/        what an interrupted run goes on from
    *.safetensors       what was trained

A run is complete when run.json names the checksum of what was trained.

Tensors of a run in one safetensors file, by whose checksum the run is complete.

Which activations a coder was trained on.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, TypeVar, cast, runtime_checkable

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from actstore.files import make_folder, write_file
from actstore.reader import ActStore
from pipeline.config.serialization import from_json, to_json
from pipeline.config.training import LoopConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.runs.checkpoints import FOLDER
from pipeline.runs.curves import METRICS

FORMAT = 1
RUN = "run.json"

# What may differ between a run and its continuation: where things lie and who computes, not what.
FREE = {"store", "out", "device", "threads", "stack", "checkpoint_every"}


def saepipe_version() -> str:
    """The version installed, `unknown` in a bare checkout."""
    try:
        return version("saepipe")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, kw_only=True)
class RunDocument:
    """What every run.json begins with."""

    format: int = FORMAT
    saepipe: str = field(default_factory=saepipe_version)


Document = TypeVar("Document", bound=RunDocument)


@runtime_checkable
class Folder(Protocol):
    """What can be entered."""

    @property
    def path(self) -> Path:
        """Of the folder."""
        ...

    @property
    def config(self) -> LoopConfig:
        """As it ran."""
        ...

    @property
    def origins(self) -> Mapping[str, tuple[Path, str]]:
        """What it was trained on, by name: where that lies, and its checksum."""
        ...

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        ...

    @property
    def failure(self) -> str:
        """Why it never will."""
        ...

    def write(self) -> None:
        """Write run.json."""
        ...

    def reread(self) -> "Folder":
        """What run.json says."""
        ...

    def fail(self, why: str) -> None:
        """Write why it will never be complete."""
        ...


FolderT = TypeVar("FolderT", bound=Folder)


def enter(run: FolderT, *, resume: bool) -> FolderT:
    """The run in `run.path`: created, gone on with, or found complete.

    Raises:
        ConfigError: the folder holds another run, something else, or an unfinished run while
            `resume` was not asked for.
        CheckpointError: its run.json is damaged.
    """
    out = run.path
    if not (out / RUN).exists():
        if out.exists() and (not out.is_dir() or any(out.glob("[!.]*"))):
            partial = sorted(p.name for p in out.iterdir()) == [f"{RUN}.partial"]
            if not partial:
                raise ConfigError(f"{out} exists and is not a run: choose another --out")
        make_folder(out)
        run.write()
        return run
    found = cast("FolderT", run.reread())
    if not found.finished and not found.failure and not _began(out):
        run.write()  # what was asked for before never made a step
        return run
    _require_same(found, run)
    if not found.finished and not found.failure and not resume:
        raise ConfigError(
            f"{out} holds an unfinished run of this configuration: add --resume to go on "
            "with it, or choose another --out"
        )
    return found


def read_document(path: Path, kind: type[Document], *, named: str, made_by: str) -> Document:
    """The run.json of a run of one kind.

    Args:
        path: Folder of the run.
        kind: What its run.json is.
        named: The `kind` that it must say.
        made_by: The command that makes such runs.

    Raises:
        CheckpointError: there is no run at `path`, or one of another kind, or it is damaged.
    """
    try:
        raw = json.loads((path / RUN).read_bytes())
        there = raw["kind"] if isinstance(raw, dict) and "kind" in raw else named
        if there != named:
            raise CheckpointError(f"{path} is a {there} run, not one of {made_by}")
        document = from_json(kind, raw, where=RUN)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is not a run: it has no {RUN}; {made_by} makes one"
        ) from error
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path / RUN} is damaged: {error}") from error
    if document.format != FORMAT:
        raise CheckpointError(
            f"{path} is a run of format {document.format}, this saepipe reads format {FORMAT}"
        )
    return document


def kind_of(path: Path) -> str:
    """What the run at `path` says that it is; empty where there is none that can be read."""
    try:
        document = json.loads((path / RUN).read_bytes())
    except (OSError, ValueError):
        return ""
    return str(document.get("kind", "")) if isinstance(document, dict) else ""


def _began(path: Path) -> bool:
    """Whether training left anything behind."""
    metrics = path / METRICS
    lines = metrics.exists() and metrics.stat().st_size > 0
    return lines or any((path / FOLDER).glob("step-*"))


def _require_same(found: Folder, now: Folder) -> None:
    """Raise ConfigError naming what differs between the run that is there and the one asked for."""
    before, after = _flat(to_json(found.config)), _flat(to_json(now.config))
    changed = [
        f"{name}: {before.get(name)} there, {after.get(name)} now"
        for name in (*before, *(after.keys() - before.keys()))
        if before.get(name) != after.get(name) and name not in FREE
    ]
    if changed:
        raise ConfigError(
            f"{now.path} holds a run of another configuration ({'; '.join(changed)}): "
            "choose another --out"
        )
    for name, (path, checksum) in now.origins.items():
        _, was = found.origins[name]
        if was != checksum:
            raise ConfigError(
                f"{now.path} was trained on another {name}, or {path} changed since "
                f"(fingerprint {was[:12]} there, {checksum[:12]} now): choose another --out"
            )


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """A nested config as `arch.kind` -> value."""
    flat: dict[str, object] = {}
    for name, item in cast("dict[str, object]", value).items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item}
    return flat


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write them, whole or not at all; gives the file's SHA-256.

    Raises:
        OSError: the disk is full or fails.
    """
    data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    write_file(path, [data])
    return hashlib.sha256(data).hexdigest()


def load_tensors(path: Path, *, sha256: str, advice: str) -> dict[str, Tensor]:
    """Read them, every byte checked.

    Args:
        path: The file.
        sha256: What its bytes must come to.
        advice: What to do where they do not.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("its checksum does not match run.json")  # noqa: TRY301
        return load(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error}): {advice}") from error


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Which activations a coder was trained on. Texts are empty where the store does not say."""

    path: Path
    fingerprint: str
    model: str
    revision: str
    model_fingerprint: str
    text: str
    site: str
    d_in: int
    ctx_len: int
    n_rows: int
    dtype: str

    @staticmethod
    def of(store: ActStore, *, site: str) -> "Provenance":
        """The provenance of one site of an open store."""
        spec = store.spec
        source = {name: value for name, value in spec.source.items() if isinstance(value, str)}
        return Provenance(
            path=store.path.resolve(),
            fingerprint=store.fingerprint,
            model=source.get("model", ""),
            revision=source.get("revision", ""),
            model_fingerprint=source.get("model_fingerprint", ""),
            text=source.get("text", ""),
            site=site,
            d_in=store.width(site),
            ctx_len=spec.ctx_len,
            n_rows=store.n_rows,
            dtype=spec.dtype,
        )
