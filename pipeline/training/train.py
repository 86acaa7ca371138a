"""Stage two: train sparse coders from an activation store; no language model is needed.

Any number of runs learn in one pass: each batch is read, moved and normalised once. The order of
rows is a function of the seed and the step, so that a run resumed from a checkpoint sees the rows
it would have seen, and on a CPU ends with the same bits.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from actstore.reader import ActStore
from pipeline.config.grid import Trainable
from pipeline.config.training import ConnectConfig, LoopConfig, TrainConfig
from pipeline.connect.run import ConnectorRun, blank_connector_run
from pipeline.connect.train import PairFeeder, assemble_connectors
from pipeline.device import pick_device
from pipeline.errors import ConfigError, DataError
from pipeline.runs.curves import ConnectStep, TrainReport, last_report
from pipeline.runs.folder import Provenance, enter
from pipeline.runs.sae_run import Run
from pipeline.sae.sae import require_possible
from pipeline.training.assemble import Entry, assemble
from pipeline.training.feed import Feeder
from pipeline.training.loop import (
    AnyGroup,
    OnEnd,
    OnStep,
    Outcome,
    Source,
    advance_all,
    end,
    stream_of,
)

AnyRun = Run | ConnectorRun


def train(
    config: TrainConfig, *, resume: bool = False, on_step: OnStep | None = None
) -> TrainReport:
    """Train one coder to the end, into `config.out`.

    A complete run of the same configuration is not trained again: its last report comes back with
    `reused` set. Ctrl-C leaves a checkpoint behind before it is raised on.

    Args:
        config: What to train on what.
        resume: Go on with an unfinished run in `config.out` from its newest checkpoint.
        on_step: Called with each line of the curves: at the first step, every `log_every` steps
            and at the last.

    Raises:
        ConfigError: the site is not in the store, a setting is impossible, or `out` holds something
            else.
        CheckpointError: the run in `out` is damaged, or the disk fails.
        DataError: the loss stopped being finite.
        StoreError: the store is missing, unfinished or damaged.
    """
    (outcome,) = train_all([config], resume=resume, on_step=on_step)
    if isinstance(outcome, DataError):
        raise outcome
    assert isinstance(outcome, TrainReport)
    return outcome


def train_all(
    configs: Sequence[Trainable],
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    on_end: OnEnd | None = None,
) -> list[Outcome]:
    """Train several coders, or several connectors, in one pass over one store.

    Each goes into its own `out`; one that diverges stops alone.

    Args:
        configs: Equal in what `pipeline.config.grid.ONE_PASS` names.
        resume: Go on with what is unfinished.
        on_step: Called with each line of each run's curves.
        on_end: Called as each run ends, with its folder.

    Returns:
        How each ended, in their order.

    Raises:
        ConfigError: as `train`.
        CheckpointError: as `train`.
        StoreError: as `train`.
    """
    store = ActStore.open(configs[0].store)
    blank = [_blank(store, config) for config in configs]  # nothing is written before all are
    runs = [_enter(run, resume=resume) for run in blank]
    outcomes: dict[Path, Outcome] = {}

    def told(path: Path, outcome: Outcome) -> None:
        outcomes[path] = outcome
        if on_end is not None:
            on_end(path, outcome)

    unfinished = list[AnyRun]()
    for run in runs:
        if run.finished:
            kind = TrainReport if isinstance(run, Run) else ConnectStep
            n_steps = count_steps(run.config, n_rows=store.n_rows)
            told(run.path, last_report(run.path, kind, n_steps=n_steps))
        elif run.failure:
            told(run.path, DataError(run.failure))
        else:
            unfinished.append(run)
    if unfinished:
        _train_unfinished(store, unfinished, on_step=on_step, on_end=told)
    return [outcomes[run.path] for run in runs]


def _train_unfinished(
    store: ActStore,
    runs: Sequence[AnyRun],
    *,
    on_step: OnStep | None,
    on_end: OnEnd,
) -> None:
    config = runs[0].config
    n_steps = [count_steps(run.config, n_rows=store.n_rows) for run in runs]
    with ExitStack() as files:
        source, groups = _source_and_groups(store, runs, n_steps, files=files)
        for group in groups:
            end(group, on_end)  # a kill may have come between the last checkpoint and the end
        left = [group for group in groups if not group.done]
        if left:
            stream = stream_of(store, source, config, start=min(group.step for group in left))
            advance_all(left, source, stream, on_step=on_step, on_end=on_end)


def _source_and_groups(
    store: ActStore, runs: Sequence[AnyRun], n_steps: Sequence[int], *, files: ExitStack
) -> tuple[Source, Sequence[AnyGroup]]:
    """What is to be trained, where its checkpoints left it, and what feeds it."""
    device = pick_device(runs[0].config.device)
    coders = [
        Entry(run=run, n_steps=n)
        for run, n in zip(runs, n_steps, strict=True)
        if isinstance(run, Run)
    ]
    if coders:
        feeder = Feeder(store, [entry.feed for entry in coders], device=device)
        return feeder, assemble(feeder, coders, files=files)
    connectors = [run for run in runs if isinstance(run, ConnectorRun)]
    pairs = PairFeeder(store, connectors, device=device)
    return pairs, assemble_connectors(pairs, connectors, n_steps, files=files)


def only_site(store: ActStore, site: str | None) -> str:
    """The site asked for, or the only one there is.

    Raises:
        ConfigError: the store lacks it, or holds several and none was named.
    """
    names = store.sites
    if site is None and len(names) == 1:
        return names[0]
    if site is None or site not in names:
        wanted = f"no site {site!r}" if site else "several sites"
        raise ConfigError(f"{store.path} has {wanted}: choose --site from {', '.join(names)}")
    return site


def count_steps(config: LoopConfig, *, n_rows: int) -> int:
    """Steps that see `config.tokens` rows, rounded up; None is one pass in whole batches."""
    if config.tokens is None:
        return max(1, n_rows // config.batch_size)
    return -(-config.tokens // config.batch_size)


def require_trainable(configs: Sequence[Trainable]) -> None:
    """Check that the store, the same for all, has what these runs need; nothing is written.

    Raises:
        ConfigError: it lacks a site, or coders of its widths cannot have an architecture.
        StoreError: it is missing, unfinished or damaged.
    """
    store = ActStore.open(configs[0].store)
    for config in configs:
        _blank(store, config)


def _blank(store: ActStore, config: Trainable) -> AnyRun:
    """A run as it will be written: paths absolute, the site named, nothing trained yet."""
    config = replace(config, store=store.path.resolve(), out=config.out.resolve())
    if isinstance(config, ConnectConfig):
        return blank_connector_run(store, config)
    site = only_site(store, config.site)
    d_in = store.width(site)
    require_possible(config.arch, d_in=d_in, d_sae=config.expansion * d_in)
    config = replace(config, site=site)
    return Run(path=config.out, config=config, provenance=Provenance.of(store, site=site))


def _enter(run: AnyRun, *, resume: bool) -> AnyRun:
    """A run as it stands; one that is gone on with, by what may be changed now."""
    found = enter(run, resume=resume)
    return found if found.finished else replace(found, config=run.config)
