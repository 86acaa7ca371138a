"""From runs of SAEs to groups that train together, each where its checkpoints left it."""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, assert_never

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn.functional import normalize

from pipeline.config.training import BDecStart, TrainConfig
from pipeline.device import pick_device, pick_dtype
from pipeline.disk import writing
from pipeline.runs.checkpoints import Checkpoint, checkpoints_of, drop_checkpoint, load_checkpoint
from pipeline.runs.curves import METRICS, Curves
from pipeline.runs.sae_run import SAERun
from pipeline.sae.architecture import Architecture, architecture_of
from pipeline.sae.dead import generator_of
from pipeline.sae.sae import SAE, fit
from pipeline.sae.stack import Stack, stacked
from pipeline.training.feed import Feed, Feeder
from pipeline.training.group import STACKED, Group, SAEMember

log = logging.getLogger(__name__)

OWN = {"out": None, "seed": 0, "lr": 1.0, "lr_warmup": "0", "lr_decay": "0", "l1_warmup": "0"}
"""Settings that members of one stack may differ in, beside the penalty's."""


FirstRows = Callable[[Feed], Tensor]
"""Some rows of a feed, `[n, d]`, that its SAEs start from; read when they are first asked for."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A run that is to be trained, and for how long."""

    run: SAERun
    n_steps: int

    @property
    def feed(self) -> Feed:
        """What it is fed."""
        return Feed.of(self.run.config, site=self.run.provenance.site)


def assemble(feeder: Feeder, entries: Sequence[Entry], *, files: ExitStack) -> list[Group]:
    """Groups of these unfinished runs: stacked where that is faster, else of one member each.

    Raises:
        CheckpointError: a checkpoint is damaged, or the disk fails.
        ConfigError: a device or kernels that were asked for are not there.
    """

    @cache
    def rows(feed: Feed) -> Tensor:
        return feeder.sample(feed, n_rows=START_ROWS)

    shapes: dict[object, list[Entry]] = {}
    for entry in entries:
        shapes.setdefault(_shape(entry.run.config), []).append(entry)
    groups = list[Group]()
    for alike in shapes.values():
        checkpoints = _common(alike)
        if _at_once(feeder, alike, checkpoints, rows):
            groups.append(_group(feeder, alike, checkpoints, rows, files=files))
        else:
            for entry, checkpoint in zip(alike, checkpoints, strict=True):
                groups.append(_group(feeder, [entry], [checkpoint], rows, files=files))
    return groups


def _shape(config: TrainConfig) -> TrainConfig:
    """Equal for runs that can be one stack."""
    own: dict[str, Any] = OWN | {"out": config.store, "arch": config.arch.shape}
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
    return [
        load_checkpoint(folders[newest], digest=entry.run.digest) if newest else None
        for entry, folders in zip(entries, found, strict=True)
    ]


def _at_once(
    feeder: Feeder,
    entries: Sequence[Entry],
    checkpoints: Sequence[Checkpoint | None],
    rows: FirstRows,
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
    stack = _stack(feeder, entries, rows)
    sparse = stack.starts_sparse(config.sparse)
    return stack_is_faster(
        stack, n_rows=config.rows_per_step, n_steps=entries[0].n_steps, sparse=sparse
    )


def _group(
    feeder: Feeder,
    entries: Sequence[Entry],
    checkpoints: Sequence[Checkpoint | None],
    rows: FirstRows,
    *,
    files: ExitStack,
) -> Group:
    stack = _stack(feeder, entries, rows)
    members = list[SAEMember]()
    for entry, checkpoint in zip(entries, checkpoints, strict=True):
        keep = checkpoint.metrics_bytes if checkpoint else 0
        curves = files.enter_context(Curves(entry.run.path / METRICS, keep=keep))
        architecture = _architecture(feeder, entry)
        members.append(
            SAEMember(entry.run, curves=curves, n_steps=entry.n_steps, architecture=architecture)
        )
    group = Group(members, stack, feeder=feeder, feed=entries[0].feed)
    saved = [checkpoint for checkpoint in checkpoints if checkpoint is not None]
    if saved:
        group.restore(saved)
    return group


def _architecture(feeder: Feeder, entry: Entry) -> Architecture:
    run, rms = entry.run, feeder.rms(entry.feed)
    return architecture_of(run.config.arch, d_in=run.provenance.d_in, d_sae=run.d_sae, rms=rms)


@torch.no_grad()
def _stack(feeder: Feeder, entries: Sequence[Entry], rows: FirstRows) -> Stack:
    """SAEs at their start, on their device: weights of the seed, `b_dec` in the middle of the rows.

    From there, the first reconstruction is already centred: the latents need not spend the first
    steps on the offset that all rows share.
    """
    first, device = entries[0], pick_device(entries[0].run.config.device)
    arch, saes = _architecture(feeder, first), list[SAE]()
    for entry in entries:
        run, config = entry.run, entry.run.config
        d_in, rms = run.provenance.d_in, feeder.rms(entry.feed)
        sae = SAE(config.arch, d_in=d_in, d_sae=run.d_sae, seed=config.seed, rms=rms)
        if "b_dec" in arch.trained:
            sae.b_dec.copy_(b_dec_start(feeder, entry.feed, config.b_dec_start))
        if config.w_dec_start == "rows":
            point_at_rows(sae, rows(entry.feed).cpu(), seed=config.seed)
        saes.append(sae.to(device))
        own = _architecture(feeder, entry)
        if own.begins_fitted and own.fitted_l0 is not None:
            fit(saes[-1], own, [rows(entry.feed)[:FIRST_ROWS]], l0=own.fitted_l0)
    return Stack(stacked(saes, arch), arch, dtype=pick_dtype(first.run.config.precision, device))


# Where directions start. From rows alone, latents that begin alike stay alike; from noise alone,
# those that point where no row does are never active.

FIRST_ROWS = 2**12
"""To which a new SAE is fitted."""


def point_at_rows(sae: SAE, x: Float[Tensor, "n d"], *, seed: int) -> None:
    """Add to each random direction one of equal length, towards a row as seen from their mean.

    The norms of both matrices' rows stay as they are, and so does that they point the same way.
    """
    generator = generator_of(seed, 0)
    chosen = torch.randint(len(x), (sae.d_sae,), generator=generator)
    towards = normalize(x[chosen] - x.mean(0), dim=-1)
    for rows in (sae.W_dec, sae.W_enc.T):
        norm = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
        rows.copy_(normalize(normalize(rows, dim=-1) + towards, dim=-1) * norm)


# Whether members are computed at once or one after another: measured, not guessed.

TRIALS, TRIAL_ROWS = 2, 1024
SHARE = 0.02
"""Of a run that may go into finding out; a shorter run is trained in turn."""
WORTH = 0.95
"""A stack must take less than this share of the time: its memory is the larger one."""


def stack_is_faster(stack: Stack, *, n_rows: int, n_steps: int, sparse: bool) -> bool:
    """Time both ways of computing the gradients of random rows, in turns.

    What is learned from does not matter to the time, and nothing is learned here.

    Args:
        stack: Of all members.
        n_rows: Of a batch; no more than TRIAL_ROWS are tried.
        n_steps: How many are to be made.
        sparse: Whether active pairs alone are computed.
    """
    tried = min(n_rows, TRIAL_ROWS)
    if 2 * (TRIALS + 1) * tried > SHARE * n_rows * n_steps:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(tried, stack.params["W_dec"].shape[-1], generator=generator)
    whole = stack.subset(range(stack.n_members))  # running thresholds move: not those of `stack`
    alone = [stack.subset([m]) for m in range(stack.n_members)]
    at_once, in_turn = list[float](), list[float]()
    for _ in range(TRIALS + 1):  # the first fills caches and memory
        at_once.append(_seconds([whole], x, sparse=sparse))
        in_turn.append(_seconds(alone, x, sparse=sparse))
    share = min(at_once[1:]) / min(in_turn[1:])
    log.info("%d members at once take %.2f of the time in turn", stack.n_members, share)
    return share < WORTH


@torch.no_grad()
def _seconds(stacks: Sequence[Stack], x: torch.Tensor, *, sparse: bool) -> float:
    device = stacks[0].params["W_dec"].device
    rows = x.to(device)
    start = time.perf_counter()
    for stack in stacks:
        ones = stack.params["b_enc"].new_ones(stack.n_members)
        stack.learn(rows, coefficient=ones, sparse=sparse)
    if device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start


# Where `b_dec` starts. The mean is the middle of the rows for the squared loss; the geometric
# median hardly moves for a few that lie far out (Bricken et al. 2023, "Towards Monosemanticity").

START_ROWS = 2**14
"""Of the sample, where one is needed: its middle is off by less than a hundredth of a deviation."""
BLOCK_ROWS = 2**10
MAX_ITERATIONS = 500
TOLERANCE = 1e-9
"""Largest step, against the mean distance, that counts as none."""


def b_dec_start(feeder: Feeder, feed: Feed, start: BDecStart) -> Float64[Tensor, " d"]:
    """Where `b_dec` of a member starts, in the unit of the rows it is fed; on the CPU.

    The mean is that of all rows of the store if none is excluded, else that of a seeded sample.

    Raises:
        StoreError: bytes of the store were altered.
    """
    match start:
        case "zero":
            return torch.zeros(feeder.store.width(feed.site), dtype=torch.float64)
        case "mean" if not feed.excludes:
            return torch.from_numpy(feeder.store.mean(feed.site)) / feeder.scale(feed)
        case "mean":
            return feeder.sample(feed, n_rows=START_ROWS).mean(0, dtype=torch.float64).cpu()
        case "median":
            return geometric_median(feeder.sample(feed, n_rows=START_ROWS).cpu())
        case _:
            assert_never(start)


def geometric_median(x: Float[Tensor, "n d"]) -> Float64[Tensor, " d"]:
    """The point with the smallest sum of distances to the rows, at least one.

    Weiszfeld's iteration (1937), from the mean, with the step of Vardi and Zhang (PNAS 2000) that
    is right where the point falls on rows.
    """
    y = x.mean(0, dtype=torch.float64)
    for _ in range(MAX_ITERATIONS):
        pull, weight = torch.zeros_like(y), y.new_zeros(())
        total, on_rows = 0.0, 0
        for block in x.split(BLOCK_ROWS):
            away = block.double() - y
            distance = torch.linalg.vector_norm(away, dim=-1)
            inverse = torch.where(distance > 0, 1 / distance, 0.0)
            pull += inverse @ away
            weight += inverse.sum()
            total += float(distance.sum())
            on_rows += int((distance == 0).sum())
        strength = float(torch.linalg.vector_norm(pull))
        if strength <= on_rows:  # the rows here outweigh all others; true too where all are equal
            return y
        step = pull / weight * (1 - on_rows / strength)
        y = y + step
        if float(torch.linalg.vector_norm(step)) <= TOLERANCE * total / len(x):
            return y
    return y
