"""Stage two: train from an activation store whatever learns from it; no language model is needed.

Any number of runs learn in one pass: each batch is read, moved and normalised once. The order of
rows is a function of the seed and the step, so that a run resumed from a checkpoint sees the rows
it would have seen, and on a CPU ends with the same bits.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from actstore.reader import ActStore
from pipeline.config.defaults import with_batch_size
from pipeline.config.training import LoopConfig
from pipeline.errors import ConfigError, DataError
from pipeline.runs.curves import METRICS, StepReport, last_report
from pipeline.runs.folder import RunFolder, enter, require_own
from pipeline.runs.kinds import RunKind, kind_named
from pipeline.training.loop import OnEnd, OnStep, Outcome, advance_all, end, stream_of


def train(config: LoopConfig, *, resume: bool = True, on_step: OnStep | None = None) -> StepReport:
    """Train one run to the end, into `config.out`.

    A complete run of the same configuration is not trained again: its last report comes back with
    `reused` set. An unfinished one is gone on with. Ctrl-C leaves a checkpoint behind before it is
    raised on.

    Args:
        config: What to train on what.
        resume: Whether to go on with an unfinished run in `config.out`; it is refused otherwise.
        on_step: Called with each line of the curves: at the first step, every `log_every` steps
            and at the last.

    Raises:
        ConfigError: the site is not in the store, a setting is impossible, or `out` holds something
            else, or is trained into by another process.
        CheckpointError: the run in `out` is damaged, or the disk fails.
        DataError: the loss stopped being finite.
        StoreError: the store is missing, unfinished or damaged.
    """
    (outcome,) = train_all([config], resume=resume, on_step=on_step)
    if isinstance(outcome, DataError):
        raise outcome
    return outcome


def train_all(
    configs: Sequence[LoopConfig],
    *,
    resume: bool = True,
    on_step: OnStep | None = None,
    on_end: OnEnd | None = None,
) -> list[Outcome]:
    """Train several runs of one kind in one pass over one store.

    Each goes into its own `out`; one that diverges stops alone.

    Args:
        configs: Equal in what `pipeline.config.grid.ONE_PASS` names.
        resume: Whether to go on with what is unfinished.
        on_step: Called with each line of each run's curves.
        on_end: Called as each run ends, with its folder.

    Returns:
        How each ended, in their order.

    Raises:
        PipelineError: as `train`, but for a loss that is not finite.
        StoreError: as `train`.
    """
    store, kind = ActStore.open(configs[0].store), kind_named(configs[0].KIND)
    blank = _blank(kind, store, configs)  # nothing is written before all are
    with ExitStack() as locks:
        runs = [_entered(run, resume=resume, locks=locks) for run in blank]
        return _train_entered(kind, store, runs, on_step=on_step, on_end=on_end)


def _train_entered(
    kind: RunKind,
    store: ActStore,
    runs: Sequence[RunFolder],
    *,
    on_step: OnStep | None,
    on_end: OnEnd | None,
) -> list[Outcome]:
    outcomes: dict[Path, Outcome] = {}

    def told(path: Path, outcome: Outcome) -> None:
        outcomes[path] = outcome
        if on_end is not None:
            on_end(path, outcome)

    unfinished = list[RunFolder]()
    for run in runs:
        if run.finished:
            n_steps = run.config.n_steps(store.n_rows)
            require_own(run.path / METRICS, run.curves_sha256)
            told(run.path, last_report(run.path, kind.curves, n_steps=n_steps))
        elif run.failure:
            told(run.path, DataError(run.failure))
        else:
            unfinished.append(run)
    if unfinished:
        _train_unfinished(kind, store, unfinished, on_step=on_step, on_end=told)
    return [outcomes[run.path] for run in runs]


def _train_unfinished(
    kind: RunKind,
    store: ActStore,
    runs: Sequence[RunFolder],
    *,
    on_step: OnStep | None,
    on_end: OnEnd,
) -> None:
    config = runs[0].config
    n_steps = [run.config.n_steps(store.n_rows) for run in runs]
    with ExitStack() as files:
        source, groups = kind.assemble(store, runs, n_steps, files=files)
        for group in groups:
            end(group, kind.curves, on_end)  # a kill may have come after the last checkpoint
        left = [group for group in groups if not group.done]
        if left:
            start = min(group.step for group in left)
            stream = stream_of(store, source, config, start=start, stop=max(n_steps))
            advance_all(left, source, stream, curves=kind.curves, on_step=on_step, on_end=on_end)


def require_trainable(configs: Sequence[LoopConfig]) -> None:
    """Check that the store, the same for all, has what these runs need; nothing is written.

    Raises:
        ConfigError: it lacks a site, or SAEs of its widths cannot have an architecture.
        StoreError: it is missing, unfinished or damaged.
    """
    store, kind = ActStore.open(configs[0].store), kind_named(configs[0].KIND)
    _blank(kind, store, configs)


def _blank(kind: RunKind, store: ActStore, configs: Sequence[LoopConfig]) -> list[RunFolder]:
    runs = list[RunFolder]()
    for config in with_batch_size(configs, n_rows=store.n_rows):
        absolute = replace(config, store=store.path.resolve(), out=config.out.resolve())
        if absolute.store in (absolute.out, *absolute.out.parents):
            raise ConfigError(
                f"{config.out} lies inside the store it learns from: choose another --out"
            )
        runs.append(kind.prepare(store, absolute))
    return runs


def _entered(run: RunFolder, *, resume: bool, locks: ExitStack) -> RunFolder:
    """A run as it stands; one that is gone on with, by what may be changed now."""
    found = enter(run, resume=resume, locks=locks)
    return found if found.finished else replace(found, config=run.config)
