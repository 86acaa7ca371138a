"""A run is a directory.

    run.json            config, provenance of the store, version; written again when complete
    metrics.jsonl       the curves
    checkpoints/        what an interrupted run goes on from
    sae.safetensors     the finished coder

A run is complete when run.json names the checksum of its sae.safetensors.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from actstore.files import make_folder, write_file, write_json
from pipeline.checkpoint import FOLDER
from pipeline.codec import from_json, to_json
from pipeline.config import TrainConfig
from pipeline.curves import METRICS
from pipeline.errors import CheckpointError, ConfigError
from pipeline.provenance import Provenance
from pipeline.sae.activation import make_activation
from pipeline.sae.coder import SparseCoder

FORMAT = 1
RUN, CODER = "run.json", "sae.safetensors"

# What may differ between a run and its continuation: where things lie and who computes, not what.
FREE = {"store", "out", "device", "threads", "stack", "checkpoint_every"}


def saepipe_version() -> str:
    """The version installed, `unknown` in a bare checkout."""
    try:
        return version("saepipe")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True, kw_only=True)
class _Document:
    """run.json."""

    format: int = FORMAT
    kind: Literal["sae"] = "sae"
    saepipe: str = field(default_factory=saepipe_version)
    config: TrainConfig
    store: Provenance
    sha256: str = ""
    """Of sae.safetensors; empty until the run is complete."""
    failure: str = ""
    """Why training stopped for good."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run on disk."""

    path: Path
    config: TrainConfig
    """As it ran: the site named, the paths absolute."""
    provenance: Provenance
    sha256: str = ""
    failure: str = ""
    """Why it will never be complete."""

    @staticmethod
    def open(path: Path) -> "Run":
        """A complete run.

        Raises:
            CheckpointError: there is no run at `path`, or it is unfinished or damaged.
        """
        run = _read(path)
        if run.failure:
            raise CheckpointError(f"{path} was never finished: {run.failure}")
        if not run.finished:
            raise CheckpointError(
                f"{path} is an unfinished run: finish it with saepipe train "
                f"{run.provenance.path} --out {path} --resume and the options it began with"
            )
        return run

    @property
    def finished(self) -> bool:
        """Whether training reached its end."""
        return bool(self.sha256)

    @property
    def d_sae(self) -> int:
        """Number of latents."""
        return self.config.expansion * self.provenance.d_in

    def load_coder(self, device: torch.device) -> SparseCoder:
        """The finished coder in float32, every byte checked.

        Raises:
            CheckpointError: sae.safetensors is missing or damaged.
        """
        path = self.path / CODER
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != self.sha256:
                raise ValueError("its checksum does not match run.json")  # noqa: TRY301
            tensors = load(data)
        except (OSError, ValueError, SafetensorError) as error:
            raise CheckpointError(
                f"{path} is missing or damaged ({error}): train again into another --out"
            ) from error
        coder = self.blank_coder()
        coder.load_state_dict(tensors)
        return coder.to(device)

    def blank_coder(self) -> SparseCoder:
        """A coder of this run's shape and architecture, its parameters still to be loaded."""
        activation = make_activation(self.config.arch, d_sae=self.d_sae)
        return SparseCoder(self.provenance.d_in, self.d_sae, activation)

    def finish(self, coder: SparseCoder) -> "Run":
        """Write the finished coder, and only then call the run complete.

        Raises:
            OSError: the disk is full or fails.
        """
        data = save({name: t.cpu().contiguous() for name, t in coder.state_dict().items()})
        write_file(self.path / CODER, [data])
        run = replace(self, sha256=hashlib.sha256(data).hexdigest())
        _write(run)
        return run

    def fail(self, why: str) -> None:
        """Keep word that training diverged: going on would only lead there again.

        Raises:
            OSError: the disk is full or fails.
        """
        _write(replace(self, failure=why))


def enter_run(config: TrainConfig, provenance: Provenance, *, resume: bool) -> Run:
    """The run in `config.out`: created, gone on with, or found complete.

    Raises:
        ConfigError: the folder holds another run, something else, or an unfinished run while
            `resume` was not asked for.
        CheckpointError: its run.json is damaged.
    """
    run = Run(path=config.out, config=config, provenance=provenance)
    if not (config.out / RUN).exists():
        if config.out.exists() and (not config.out.is_dir() or any(config.out.glob("[!.]*"))):
            partial = sorted(p.name for p in config.out.iterdir()) == [f"{RUN}.partial"]
            if not partial:
                raise ConfigError(f"{config.out} exists and is not a run: choose another --out")
        make_folder(config.out)
        _write(run)
        return run
    found = _read(config.out)
    if not found.finished and not found.failure and not _began(config.out):
        _write(run)  # what was asked for before never made a step
        return run
    _require_same(found, run)
    if not found.finished and not found.failure and not resume:
        raise ConfigError(
            f"{config.out} holds an unfinished run of this configuration: add --resume to go on "
            "with it, or choose another --out"
        )
    return found


def _began(path: Path) -> bool:
    """Whether training left anything behind."""
    metrics = path / METRICS
    lines = metrics.exists() and metrics.stat().st_size > 0
    return lines or any((path / FOLDER).glob("step-*"))


def _require_same(found: Run, now: Run) -> None:
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
    if found.provenance.fingerprint != now.provenance.fingerprint:
        raise ConfigError(
            f"{now.path} was trained on another store, or {now.provenance.path} changed since "
            f"(fingerprint {found.provenance.fingerprint[:12]} there, "
            f"{now.provenance.fingerprint[:12]} now): choose another --out"
        )


def _flat(value: object, prefix: str = "") -> dict[str, object]:
    """A nested config as `arch.kind` -> value."""
    flat: dict[str, object] = {}
    for name, item in cast("dict[str, object]", value).items():
        flat |= _flat(item, f"{prefix}{name}.") if isinstance(item, dict) else {prefix + name: item}
    return flat


def _write(run: Run) -> None:
    document = _Document(
        config=run.config, store=run.provenance, sha256=run.sha256, failure=run.failure
    )
    write_json(run.path / RUN, to_json(document))


def _read(path: Path) -> Run:
    try:
        raw = json.loads((path / RUN).read_bytes())
        kind = raw["kind"] if isinstance(raw, dict) and "kind" in raw else "sae"
        if kind != "sae":
            raise CheckpointError(f"{path} is a {kind} run, not one of saepipe train")
        document = from_json(_Document, raw, where=RUN)
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{path} is not a run: it has no {RUN}; saepipe train makes one"
        ) from error
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path / RUN} is damaged: {error}") from error
    if document.format != FORMAT:
        raise CheckpointError(
            f"{path} is a run of format {document.format}, this saepipe reads format {FORMAT}"
        )
    return Run(
        path=path,
        config=document.config,
        provenance=document.store,
        sha256=document.sha256,
        failure=document.failure,
    )
