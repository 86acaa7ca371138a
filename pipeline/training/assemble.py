"""From runs to groups that train together, each where its checkpoints left it."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from pipeline.checkpoint import Checkpoint, checkpoints_of, drop_checkpoint, load_checkpoint
from pipeline.curves import METRICS, Curves
from pipeline.device import DTYPES, pick_device, pick_precision
from pipeline.run import Run
from pipeline.sae.coder import SparseCoder, make_coder
from pipeline.sae.objectives import coefficient_of, make_aux, make_objective
from pipeline.sae.stack import Stack, stacked
from pipeline.train_config import TrainConfig
from pipeline.training.feed import Feed, Feeder
from pipeline.training.group import STACKED, Group
from pipeline.training.member import Member
from pipeline.training.record import writing
from pipeline.training.stacking import stack_is_faster
from pipeline.training.start import b_dec_start

OWN = {"out": None, "seed": 0, "lr": 1.0, "lr_warmup": "0", "lr_decay": "0", "l1_warmup": "0"}
"""Settings that members of one stack may differ in, beside the penalty's."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run that is to be trained, and for how long."""

    run: Run
    n_steps: int

    @property
    def feed(self) -> Feed:
        """What it is fed."""
        return Feed.of(self.run.config, site=self.run.provenance.site)


def assemble(feeder: Feeder, entries: Sequence[Entry], *, files: ExitStack) -> list[Group]:
    """Groups of these runs: stacked where that is faster, else of one member each.

    Args:
        feeder: Makes the rows of every run's feed.
        entries: Runs of one store that are not finished.
        files: Closes the runs' curves.

    Raises:
        CheckpointError: a checkpoint is damaged, or the disk fails.
        ConfigError: a device or kernels that were asked for are not there.
    """
    shapes: dict[object, list[Entry]] = {}
    for entry in entries:
        shapes.setdefault(_shape(entry.run.config), []).append(entry)
    groups = list[Group]()
    for alike in shapes.values():
        checkpoints = _common(alike)
        if _at_once(feeder, alike, checkpoints):
            groups.append(_group(feeder, alike, checkpoints, files=files))
        else:
            for entry, checkpoint in zip(alike, checkpoints, strict=True):
                groups.append(_group(feeder, [entry], [checkpoint], files=files))
    return groups


def _shape(config: TrainConfig) -> TrainConfig:
    """Equal for runs that can be one stack."""
    own: dict[str, Any] = OWN | {"out": config.store}
    arch: Any = config.arch
    if hasattr(arch, "l1"):
        own["arch"] = replace(arch, l1=0.0, target=None)
    return replace(config, **own)


def _common(entries: Sequence[Entry]) -> list[Checkpoint | None]:
    """The newest checkpoint of each whose step all have: members of a stack keep step.

    A kill may have left some members a newer one. It is dropped: the curves are written again from
    the common step on, and its word of how long they were would no longer be true.
    """
    found = [checkpoints_of(entry.run.path) for entry in entries]
    newest = max(set(found[0]).intersection(*found), default=0)
    for entry, folders in zip(entries, found, strict=True):
        with writing(entry.run.path):
            for step in folders:
                if step > newest:
                    drop_checkpoint(folders[step])
    return [load_checkpoint(folders[newest]) if newest else None for folders in found]


def _at_once(
    feeder: Feeder, entries: Sequence[Entry], checkpoints: Sequence[Checkpoint | None]
) -> bool:
    """Whether to make these runs one stack: as they were before, as was asked for, or by test."""
    config = entries[0].run.config
    if len(entries) == 1 or config.stack == "off":
        return False
    began = checkpoints[0]
    if began is not None:
        return bool(began.optimizer[STACKED])
    if config.stack == "on":
        return True
    stack = _stack(feeder, entries)
    sparse = stack.starts_sparse(config.sparse)
    return stack_is_faster(
        stack, n_rows=config.batch_size, n_steps=entries[0].n_steps, sparse=sparse
    )


def _group(
    feeder: Feeder,
    entries: Sequence[Entry],
    checkpoints: Sequence[Checkpoint | None],
    *,
    files: ExitStack,
) -> Group:
    feed = entries[0].feed
    members = list[Member]()
    for entry, checkpoint in zip(entries, checkpoints, strict=True):
        run = entry.run
        keep = checkpoint.metrics_bytes if checkpoint else 0
        coefficient = coefficient_of(
            run.config.arch, d_in=run.provenance.d_in, rms=feeder.rms(feed)
        )
        members.append(
            Member(
                run,
                curves=files.enter_context(Curves(run.path / METRICS, keep=keep)),
                n_steps=entry.n_steps,
                coefficient=coefficient,
            )
        )
    group = Group(members, _stack(feeder, entries), feeder=feeder, feed=feed)
    saved = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
    if saved:
        group.restore(saved)
    return group


def _stack(feeder: Feeder, entries: Sequence[Entry]) -> Stack:
    """Coders at their start, on their device."""
    run, feed = entries[0].run, entries[0].feed
    config, d_in, rms = run.config, run.provenance.d_in, feeder.rms(feed)
    device = pick_device(config.device)
    objective = make_objective(config.arch, d_sae=run.d_sae, rms=rms)
    coders = [_coder(feeder, entry).to(device) for entry in entries]
    return Stack(
        stacked(coders, objective),
        objective,
        aux=make_aux(config.arch, d_in=d_in),
        dtype=DTYPES[pick_precision(config.precision, device=device)],
    )


@torch.no_grad()
def _coder(feeder: Feeder, entry: Entry) -> SparseCoder:
    """A new coder: weights of the seed, `b_dec` in the middle of the rows.

    From there, the first reconstruction is already centred: the latents need not spend the first
    steps on the offset that all rows share.
    """
    run, feed = entry.run, entry.feed
    config = run.config
    coder = make_coder(
        config.arch,
        d_in=run.provenance.d_in,
        d_sae=run.d_sae,
        seed=config.seed,
        rms=feeder.rms(feed),
    )
    if config.arch.kind != "tied":
        coder.b_dec.copy_(b_dec_start(feeder, feed, config.b_dec_start))
    return coder
