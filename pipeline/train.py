"""Stage two: train a sparse coder from an activation store; no language model is needed.

One loop feeds each batch of one stream to every member; a plain run has one member. The order of
rows is a function of the seed and the step, so a run resumed from a checkpoint sees the rows it
would have seen, and on a CPU ends with the same bits.
"""

import logging
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.checkpoint import load_checkpoint, newest_checkpoint
from pipeline.config import TrainConfig
from pipeline.curves import Curves, TrainReport, last_report
from pipeline.device import pick_device
from pipeline.errors import ConfigError
from pipeline.interrupt import deferred_interrupt
from pipeline.member import Member
from pipeline.run import METRICS, Provenance, Run, enter_run
from pipeline.sae.coder import SparseCoder, make_coder, require_possible
from pipeline.stream import device_batches

log = logging.getLogger(__name__)

OnStep = Callable[[TrainReport], None]


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
        ConfigError: the site is not in the store, `k` is impossible, or `out` holds something else.
        CheckpointError: the run in `out` is damaged, or the disk fails.
        DataError: the loss stopped being finite.
        StoreError: the store is missing, unfinished or damaged.
    """
    store = ActStore.open(config.store)
    site = only_site(store, config.site)
    config = replace(config, store=store.path.resolve(), out=config.out.resolve(), site=site)
    provenance = Provenance.of(store, site=site)
    d_in = provenance.d_in
    require_possible(config.arch, d_in=d_in, d_sae=config.expansion * d_in)
    n_steps = count_steps(config, n_rows=store.n_rows)
    run = enter_run(config, provenance, resume=resume)
    if run.finished:
        return last_report(run.path / METRICS, n_steps=n_steps)
    folder = newest_checkpoint(run.path)
    checkpoint = load_checkpoint(folder) if folder else None
    log.info("%s: from step %d of %d", run.path, checkpoint.step if checkpoint else 0, n_steps)
    run = replace(run, config=config)
    with Curves(run.path / METRICS, keep=checkpoint.metrics_bytes if checkpoint else 0) as curves:
        member = Member(run, start_coder(run, store), curves=curves, n_steps=n_steps)
        if checkpoint:
            member.restore(checkpoint)
        advance_all([member], batches_of(store, config, start=member.step), on_step=on_step)
        member.finish()
    return last_report(run.path / METRICS, n_steps=n_steps, reused=False)


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
    return math.ceil(config.tokens / config.batch_size)


def start_coder(run: Run, store: ActStore) -> SparseCoder:
    """A new coder on its device: weights of the seed, `b_dec` at the mean of the store's site.

    From the mean, the first reconstruction is already centred: the latents need not spend the
    first steps on the offset that all rows share.
    """
    config, provenance = run.config, run.provenance
    coder = make_coder(config.arch, d_in=provenance.d_in, d_sae=run.d_sae, seed=config.seed)
    with torch.no_grad():
        coder.b_dec.copy_(torch.from_numpy(store.mean(provenance.site)))
    return coder.to(pick_device(config.device))


def batches_of(
    store: ActStore, config: TrainConfig, *, start: int
) -> Generator[dict[str, Tensor], None, None]:
    """The endless stream of a run's batches, from the one for step `start + 1` on."""
    assert config.site is not None
    batches = Batches(
        store=store,
        sites=(config.site,),
        batch_size=config.batch_size,
        seed=config.seed,
        window_rows=config.window_rows,
        threads=config.threads,
    )
    return device_batches(batches.start_at(start), device=pick_device(config.device))


def advance_all(
    members: Sequence[Member],
    stream: Generator[dict[str, Tensor], None, None],
    *,
    on_step: OnStep | None = None,
) -> None:
    """Give every member each batch of the stream until all are done.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed; each member has written a checkpoint, unless it was
            pressed twice.
    """
    with deferred_interrupt() as interrupt, closing(stream):
        try:
            left = max(member.n_steps - member.step for member in members)
            for batch in islice(stream, left):
                for member in members:
                    report = member.advance(batch[member.site])
                    if report is not None and on_step is not None:
                        on_step(report)
                if interrupt.asked:
                    raise KeyboardInterrupt  # noqa: TRY301 - the place where it is safe
        except KeyboardInterrupt:
            if not interrupt.forced:
                for member in members:
                    member.save()
            raise
