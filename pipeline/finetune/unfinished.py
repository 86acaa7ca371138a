"""What an interrupted fine-tuning goes on from: the folder that it is made in, `OUT.partial`.

    begun.json      config, and which SAE, model and text
    checkpoints/    c, d, their moments and the losses so far: the newest alone

It becomes `OUT` when it is whole. What never made a step leaves nothing.
"""

import json
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from actstore.files import partial_of, remove, write_json
from pipeline.config.serialization import from_json, to_json
from pipeline.config.stages import FinetuneConfig
from pipeline.disk import writing
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.finetune.sources import Sources
from pipeline.runs.belongs import BEGUN, digest_of
from pipeline.runs.checkpoints import (
    FOLDER,
    Checkpoint,
    checkpoints_of,
    drop_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from pipeline.runs.folder import LOCK, differences
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import TunedSAE

FREE = {"out", "device"}
"""What may differ between a fine-tuning and the one that is gone on with or reused for it."""
LOSSES = "losses"


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """begun.json."""

    config: FinetuneConfig
    sha256: str
    """Of the SAE."""
    sources: Sources = field(default_factory=Sources)


@contextmanager
def unfinished(
    config: FinetuneConfig, run: SAERun, sources: Sources
) -> Generator[Path, None, None]:
    """The folder to make a fine-tuning in, whose lock is held.

    Raises:
        ConfigError: it is of another config, SAE, model or text.
        CheckpointError: its begun.json is damaged.
    """
    folder = partial_of(config.out)
    try:
        _enter(folder, config, run, sources)
        yield folder
    except DataError:  # going on would only lead there again
        shutil.rmtree(folder)
        raise
    except BaseException:
        if folder.is_dir() and not checkpoints_of(folder):  # it may be the whole one already
            shutil.rmtree(folder)
        raise


def _enter(folder: Path, config: FinetuneConfig, run: SAERun, sources: Sources) -> None:
    if checkpoints_of(folder):
        _require_same(_read(folder / BEGUN), config, run, sources)
        return
    for leftover in folder.iterdir():
        if leftover.name != LOCK:
            remove(leftover)
    begun = _Begun(config=config, sha256=run.sha256, sources=sources)
    write_json(folder / BEGUN, to_json(begun))


def _read(file: Path) -> _Begun:
    try:
        return from_json(_Begun, json.loads(file.read_bytes()), where=BEGUN)
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}): delete {file.parent} to fine-tune from the start"
        ) from error


def _require_same(there: _Begun, config: FinetuneConfig, run: SAERun, sources: Sources) -> None:
    changed = differences(there.config, config, free=FREE)
    if there.sha256 != run.sha256:
        changed = f"{run.path} was trained again since"
    elif not changed and (replaced := there.sources.changed(sources, config, run)):
        changed = f"{replaced} changed since"
    if changed:
        folder = partial_of(config.out)
        raise ConfigError(
            f"{folder} is an unfinished fine-tuning of another configuration ({changed}): delete "
            "it, or choose another --out"
        )


def _digest(folder: Path) -> str:
    """What its checkpoints are held to."""
    begun = json.loads((folder / BEGUN).read_bytes())
    return digest_of(begun["config"], free=FREE, origins=[begun["sha256"]])


def keep(
    folder: Path, tuned: TunedSAE, optimizer: torch.optim.Optimizer, losses: Sequence[float]
) -> None:
    """Write a checkpoint, and let go of those before it.

    Raises:
        CheckpointError: the disk is full or fails.
    """
    moments = {
        f"{i}.{name}": value.cpu()
        for i, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }
    checkpoint = Checkpoint(
        step=len(losses),
        metrics_bytes=0,
        trained={"c": tuned.c.detach().cpu(), "d": tuned.d.detach().cpu()},
        optimizer=moments | {LOSSES: torch.tensor(losses, dtype=torch.float64)},
    )
    before = checkpoints_of(folder)
    with writing(folder):
        save_checkpoint(folder, checkpoint, digest=_digest(folder))
        for step, old in before.items():
            if step != checkpoint.step:
                drop_checkpoint(old)


def restore(folder: Path, tuned: TunedSAE, optimizer: torch.optim.Optimizer) -> list[float]:
    """Become what was kept, to the bit; the losses of the steps that were made.

    Raises:
        CheckpointError: it is damaged, or another fine-tuning's.
    """
    found = checkpoints_of(folder)
    if not found:
        return []
    checkpoint = load_checkpoint(found[max(found)], digest=_digest(folder))
    with torch.no_grad():
        tuned.c.copy_(checkpoint.trained["c"])
        tuned.d.copy_(checkpoint.trained["d"])
    state = dict(checkpoint.optimizer)
    losses = state.pop(LOSSES).tolist()
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        i, _, what = name.partition(".")
        moments.setdefault(int(i), {})[what] = value
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return losses


def leave_whole(out: Path) -> None:
    """Remove what only an unfinished one needs from the folder that was renamed to `out`."""
    for name in (BEGUN, FOLDER, LOCK):
        remove(out / name)
