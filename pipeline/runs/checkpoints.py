"""Checkpoints: `RUN/checkpoints/step-000020000/`, whole or absent.

    sae.safetensors        the parameters of what is trained
    optimizer.safetensors  moments of each parameter, rows of silence of each latent
    state.json             step, length of metrics.jsonl, SHA-256 of the two files above, and a
                           digest of what a run must share that goes on from it

A checkpoint is written under a temporary name, fsynced and renamed. What is in it, with the config
and the store, determines every later bit of the run on a CPU; the order of rows needs no state but
the step, and nothing else in training is random.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from actstore.files import make_folder, partial_of, sync_folder, write_file, write_json
from pipeline.config.serialization import from_json, to_json
from pipeline.errors import CheckpointError, ConfigError

FOLDER = "checkpoints"
TRAINED, OPTIMIZER, STATE = "sae.safetensors", "optimizer.safetensors", "state.json"
FORMAT = 1
NAME = re.compile(r"step-(\d{9,})")
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """All that changes in training."""

    step: int
    metrics_bytes: int
    """Length of metrics.jsonl when this was taken."""
    trained: Mapping[str, Tensor]
    optimizer: Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class _State:
    format: int
    step: int
    metrics_bytes: int
    sha256_coder: str
    sha256_optimizer: str
    digest: str = ""
    """Of the run; empty in checkpoints of versions that did not say."""


def save_checkpoint(run: Path, checkpoint: Checkpoint, *, digest: str) -> Path:
    """Write a checkpoint, gives its folder; one of the same step stays, it holds the same.

    Args:
        run: The folder of the run.
        checkpoint: What it holds.
        digest: Of what a run must share that goes on from it.
    """
    folder = run / FOLDER / f"step-{checkpoint.step:09d}"
    if (folder / STATE).exists():
        return folder
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    trained, optimizer = save(dict(checkpoint.trained)), save(dict(checkpoint.optimizer))
    write_file(partial / TRAINED, [trained])
    write_file(partial / OPTIMIZER, [optimizer])
    state = _State(
        format=FORMAT,
        step=checkpoint.step,
        metrics_bytes=checkpoint.metrics_bytes,
        sha256_coder=hashlib.sha256(trained).hexdigest(),
        sha256_optimizer=hashlib.sha256(optimizer).hexdigest(),
        digest=digest,
    )
    write_json(partial / STATE, to_json(state))
    partial.rename(folder)
    sync_folder(folder.parent)
    return folder


def checkpoints_of(run: Path) -> dict[int, Path]:
    """The folders of checkpoints by step.

    What a kill left half written is not one, nor is what somebody else put there.
    """
    found = {folder: NAME.fullmatch(folder.name) for folder in (run / FOLDER).glob("step-*")}
    return {int(name[1]): f for f, name in found.items() if name is not None and f.is_dir()}


def drop_checkpoint(folder: Path) -> None:
    """Remove a checkpoint; a kill on the way leaves it whole or absent."""
    partial = partial_of(folder)
    shutil.rmtree(partial, ignore_errors=True)
    folder.rename(partial)
    shutil.rmtree(partial)


def load_checkpoint(folder: Path, *, digest: str) -> Checkpoint:
    """Read a checkpoint, every byte checked.

    Raises:
        CheckpointError: it is damaged, or of a run of another digest.
    """
    state = _attempt(folder / STATE, lambda data: _state(data, folder))
    if state.digest not in ("", digest):
        raise CheckpointError(
            f"{folder / STATE} is of a run of another configuration, store or SAE: {_back(folder)}"
        )
    return Checkpoint(
        step=state.step,
        metrics_bytes=state.metrics_bytes,
        trained=_tensors(folder / TRAINED, state.sha256_coder),
        optimizer=_tensors(folder / OPTIMIZER, state.sha256_optimizer),
    )


def _state(data: bytes, folder: Path) -> _State:
    state = from_json(_State, json.loads(data))
    if f"step-{state.step:09d}" != folder.name or state.metrics_bytes < 0:
        raise ValueError(f"it says step {state.step}, and {state.metrics_bytes} bytes of curves")
    return state


class _Tensors(dict[str, Tensor]):
    """What a file holds; what it lacks is its reader's to be told, whoever asks for it."""

    def __init__(self, path: Path, tensors: dict[str, Tensor]) -> None:
        super().__init__(tensors)
        self._path = path

    def __missing__(self, name: str) -> Tensor:
        raise CheckpointError(
            f"{self._path} has no {name}: another version of saepipe wrote it, which trained in "
            "another way; train into another --out"
        )


def _tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    def read(data: bytes) -> dict[str, Tensor]:
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("its checksum does not match")
        return load(data)

    return _Tensors(path, _attempt(path, read))


def _back(folder: Path) -> str:
    """What to do without a checkpoint."""
    return (
        f"delete the folder {folder} to go back to the checkpoint before it, or to the start, "
        "then train again"
    )


def _attempt(path: Path, read: Callable[[bytes], T]) -> T:
    """`read` of the file's bytes, with one line for whatever is wrong with it."""
    try:
        return read(path.read_bytes())
    except (OSError, ValueError, SafetensorError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is missing or damaged ({error}): {_back(path.parent)}"
        ) from error
