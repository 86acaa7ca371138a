"""What an interrupted fine-tuning goes on from: the folder that it is made in, `OUT.partial`.

    begun.json      config, and which SAE, model and text
    checkpoints/    what is learned, its moments and the losses so far: the newest alone

It becomes `OUT` when it is whole. What never made a step leaves nothing.
"""

import json
import shutil
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch

from actstore.files import partial_of, remove, write_json
from pipeline.config.serialization import from_json, to_json
from pipeline.config.stages import FinetuneConfig
from pipeline.disk import writing
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.finetune.learn import Course, Keeping, Learner
from pipeline.finetune.sources import Sources, as_it_was
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

FREE = {"out", "device", "compare", "compare_lrs", "checkpointing"}
"""What may differ between a fine-tuning and the one that is gone on with or reused for it."""
LOSSES, BY_EPOCH, BEST = "losses", "by_epoch", "best."


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """begun.json."""

    config: FinetuneConfig
    sha256: str
    """Of the SAE; of several, joined by `+` in their order."""
    sources: Sources = field(default_factory=Sources)


@contextmanager
def unfinished(
    config: FinetuneConfig, runs: Sequence[SAERun], sources: Sources
) -> Generator[Path, None, None]:
    """The folder to make a fine-tuning through these SAEs in, whose lock is held.

    Raises:
        ConfigError: it is of another config, SAE, model or text.
        CheckpointError: its begun.json is damaged.
    """
    folder = partial_of(config.out)
    try:
        _enter(folder, config, runs, sources)
        yield folder
    except DataError:  # going on would only lead there again
        shutil.rmtree(folder)
        raise
    except BaseException:
        if folder.is_dir() and not checkpoints_of(folder):  # it may be the whole one already
            shutil.rmtree(folder)
        raise


def _enter(folder: Path, config: FinetuneConfig, runs: Sequence[SAERun], sources: Sources) -> None:
    if checkpoints_of(folder):
        _require_same(_read(folder / BEGUN), config, runs, sources)
        return
    for leftover in folder.iterdir():
        if leftover.name != LOCK:
            remove(leftover)
    begun = _Begun(config=config, sha256=_checksums(runs), sources=sources)
    write_json(folder / BEGUN, to_json(begun))


def _read(file: Path) -> _Begun:
    try:
        return from_json(_Begun, as_it_was(json.loads(file.read_bytes())), where=BEGUN)
    except (OSError, ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}): delete {file.parent} to fine-tune from the start"
        ) from error


def _checksums(runs: Sequence[SAERun]) -> str:
    return "+".join(run.sha256 for run in runs)


def _require_same(
    there: _Begun, config: FinetuneConfig, runs: Sequence[SAERun], sources: Sources
) -> None:
    changed = differences(there.config, config, free=FREE)
    paths = there.config.run, *there.config.beside
    was = zip(runs, there.sha256.split("+"), strict=False)
    same = list(paths) == [run.path for run in runs]
    again = [str(run.path) for run, sha256 in was if run.sha256 != sha256] if same else []
    if again:
        were = "was" if len(again) == 1 else "were"
        changed = f"{' and '.join(again)} {were} trained again since"
    elif not changed and (replaced := there.sources.changed(sources, config, runs[0])):
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


def kept_in(folder: Path) -> Keeping:
    """Keeps a course in the folder, the newest alone, and finds it again to the bit.

    Raises, on use:
        CheckpointError: the disk is full or fails; what was kept is damaged, or another's.
    """
    return Keeping(restore=partial(_restore, folder), keep=partial(_keep, folder))


def _keep(folder: Path, learner: Learner, course: Course) -> None:
    moments = {
        f"{i}.{name}": value.cpu()
        for i, state in learner.adam.state_dict()["state"].items()
        for name, value in state.items()
    }
    course_so_far = {
        LOSSES: torch.tensor(course.losses, dtype=torch.float64),
        BY_EPOCH: torch.tensor(course.by_epoch, dtype=torch.float64),
        **{f"{BEST}{name}": value for name, value in course.best.items()},
    }
    checkpoint = Checkpoint(
        step=len(course.losses),
        metrics_bytes=0,
        trained=learner.copied(),
        optimizer=moments | course_so_far,
    )
    before = checkpoints_of(folder)
    with writing(folder):
        save_checkpoint(folder, checkpoint, digest=_digest(folder))
        for step, old in before.items():
            if step != checkpoint.step:
                drop_checkpoint(old)


def _restore(folder: Path, learner: Learner) -> Course:
    found = checkpoints_of(folder)
    if not found:
        return Course()
    checkpoint = load_checkpoint(found[max(found)], digest=_digest(folder))
    learner.become(checkpoint.trained)
    state = dict(checkpoint.optimizer)
    losses = state.pop(LOSSES).tolist()
    by_epoch = state.pop(BY_EPOCH, torch.empty(0)).tolist()
    names = [name for name in state if name.startswith(BEST)]
    best = {name.removeprefix(BEST): state.pop(name) for name in names}
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in state.items():
        i, _, what = name.partition(".")
        moments.setdefault(int(i), {})[what] = value
    groups = learner.adam.state_dict()["param_groups"]
    learner.adam.load_state_dict({"state": moments, "param_groups": groups})
    return Course(losses=losses, by_epoch=by_epoch, best=best)


def leave_whole(out: Path) -> None:
    """Remove what only an unfinished one needs from the folder that was renamed to `out`."""
    for name in (BEGUN, FOLDER, LOCK):
        remove(out / name)
