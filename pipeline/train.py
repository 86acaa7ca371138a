"""Stage two: train sparse coders from an activation store; no language model is needed.

Any number of runs learn in one pass: each batch is read, moved and normalised once. The order of
rows is a function of the seed and the step, so that a run resumed from a checkpoint sees the rows
it would have seen, and on a CPU ends with the same bits.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.config import TrainConfig
from pipeline.curves import TrainReport, last_report
from pipeline.device import pick_device
from pipeline.errors import ConfigError, DataError
from pipeline.interrupt import deferred_interrupt
from pipeline.provenance import Provenance
from pipeline.run import Run, enter_run
from pipeline.sae.coder import require_possible
from pipeline.stream import device_batches
from pipeline.training.assemble import Entry, assemble
from pipeline.training.feed import Feeder
from pipeline.training.group import Group

OnStep = Callable[[TrainReport], None]
Outcome = TrainReport | DataError
"""How a run ended: complete, or no longer finite."""
OnEnd = Callable[[Path, Outcome], None]


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
    return outcome


def train_all(
    configs: Sequence[TrainConfig],
    *,
    resume: bool = False,
    on_step: OnStep | None = None,
    on_end: OnEnd | None = None,
) -> list[Outcome]:
    """Train several coders in one pass over one store, each into its own `out`.

    One that diverges stops alone.

    Args:
        configs: Equal in what `pipeline.training.grid.ONE_PASS` names.
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
    settled = [_settled(store, config) for config in configs]  # nothing is written before all are
    runs = [_enter(config, provenance, resume=resume) for config, provenance in settled]
    outcomes: dict[Path, Outcome] = {}

    def end(run: Run, outcome: Outcome) -> None:
        outcomes[run.path] = outcome
        if on_end is not None:
            on_end(run.path, outcome)

    unfinished = list[Run]()
    for run in runs:
        if run.finished:
            end(run, last_report(run.path, n_steps=count_steps(run.config, n_rows=store.n_rows)))
        elif run.failure:
            end(run, DataError(run.failure))
        else:
            unfinished.append(run)
    if unfinished:
        _train_unfinished(store, unfinished, on_step=on_step, on_end=end)
    return [outcomes[run.path] for run in runs]


def _train_unfinished(
    store: ActStore,
    runs: Sequence[Run],
    *,
    on_step: OnStep | None,
    on_end: Callable[[Run, Outcome], None],
) -> None:
    entries = [Entry(run=run, n_steps=count_steps(run.config, n_rows=store.n_rows)) for run in runs]
    config = runs[0].config
    feeder = Feeder(store, [e.feed for e in entries], device=pick_device(config.device))
    with ExitStack() as files:
        groups = assemble(feeder, entries, files=files)
        for group in groups:
            _end(group, on_end)  # a kill may have come between the last checkpoint and the end
        left = [group for group in groups if not group.done]
        if left:
            stream = _stream(feeder, config, start=min(group.step for group in left))
            _advance_all(left, feeder, stream, on_step=on_step, on_end=on_end)


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


def count_steps(config: TrainConfig, *, n_rows: int) -> int:
    """Steps that see `config.tokens` rows, rounded up; None is one pass in whole batches."""
    if config.tokens is None:
        return max(1, n_rows // config.batch_size)
    return -(-config.tokens // config.batch_size)


def require_trainable(configs: Sequence[TrainConfig]) -> None:
    """Check that the store, the same for all, has what these runs need; nothing is written.

    Raises:
        ConfigError: it lacks a site, or coders of its widths cannot have an architecture.
        StoreError: it is missing, unfinished or damaged.
    """
    store = ActStore.open(configs[0].store)
    for config in configs:
        _settled(store, config)


def _settled(store: ActStore, config: TrainConfig) -> tuple[TrainConfig, Provenance]:
    """A config with its site named and its paths absolute, and what it is trained on."""
    site = only_site(store, config.site)
    config = replace(config, store=store.path.resolve(), out=config.out.resolve(), site=site)
    d_in = store.width(site)
    require_possible(config.arch, d_in=d_in, d_sae=config.expansion * d_in)
    return config, Provenance.of(store, site=site)


def _enter(config: TrainConfig, provenance: Provenance, *, resume: bool) -> Run:
    """The run of a config; one that is gone on with, by what may be changed now."""
    run = enter_run(config, provenance, resume=resume)
    return run if run.finished else replace(run, config=config)


def _stream(
    feeder: Feeder, config: TrainConfig, *, start: int
) -> Generator[dict[str, Tensor], None, None]:
    """The endless stream of batches, from the one for step `start + 1` on."""
    batches = Batches(
        store=feeder.store,
        sites=feeder.sites,
        metadata=feeder.metadata,
        batch_size=config.batch_size,
        seed=config.order_seed,
        window_rows=config.window_rows,
        threads=config.threads,
    )
    return device_batches(batches.start_at(start), device=pick_device(config.device))


def _advance_all(
    groups: Sequence[Group],
    feeder: Feeder,
    stream: Generator[dict[str, Tensor], None, None],
    *,
    on_step: OnStep | None,
    on_end: Callable[[Run, Outcome], None],
) -> None:
    """Give every group the batches of its steps until all are done.

    Args:
        groups: To train.
        feeder: Makes of a batch what each of them is fed.
        stream: From the first batch that any of them needs.
        on_step: Called with each line of the curves.
        on_end: Called as each run ends.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; each member has written a checkpoint, unless it was
            pressed twice.
    """
    active = list(groups)
    first = min(group.step for group in active)
    with deferred_interrupt() as interrupt, closing(stream):
        try:
            for step, batch in enumerate(stream, start=first):
                fed = feeder.fed(batch)
                for group in [group for group in active if group.step == step]:
                    reports = group.advance(fed[group.feed])
                    if on_step is not None:
                        for report in reports:
                            on_step(report)
                    _end(group, on_end)
                active = [group for group in active if group.members and not group.done]
                if not active:
                    return
                if interrupt.asked:
                    raise KeyboardInterrupt  # noqa: TRY301 - the place where it is safe
        except KeyboardInterrupt:
            if not interrupt.forced:
                for group in active:
                    group.save()
            raise


def _end(group: Group, on_end: Callable[[Run, Outcome], None]) -> None:
    """Part with members that diverged, and finish the others when they are done."""
    for member, error in group.part_with_failures():
        member.fail(error)
        on_end(member.run, error)
    if group.members and group.done:
        group.finish()
        for member in group.members:
            report = last_report(member.run.path, n_steps=member.n_steps, reused=False)
            on_end(member.run, report)
