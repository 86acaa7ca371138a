"""Stage one: run the model over a text, once, and fill an activation store.

What brings torch is imported inside: a harvest that is complete needs none.
"""

import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from actstore.addition import adding
from actstore.errors import StoreError
from actstore.ledger import holds_rows
from actstore.reader import ActStore
from actstore.removal import remove_rowless
from actstore.writer import ActWriter
from pipeline.config.stages import HarvestConfig
from pipeline.harvest.plan import HarvestPlan, link, make_plan, rows_asked
from pipeline.lm.chat import load_chat_template
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.progress import OnProgress, Progress, size
from pipeline.text.contexts import ContextStream, Cursor, open_contexts

if TYPE_CHECKING:
    from pipeline.harvest.forward import FilledShard, Forward

OnPlan = Callable[[HarvestPlan, float], None]
"""Told the plan and the seconds that it will take, about, before its first row is written."""


@dataclass(frozen=True, kw_only=True)
class HarvestSummary:
    """What a harvest did."""

    store: Path
    reused: bool
    """The store was complete already, and nothing ran."""
    found: Path | None
    """The complete store elsewhere that `store` was made a link to."""
    n_rows: int
    """Rows per site in the store."""
    n_rows_asked: int
    """Rows per site that were asked for: a store that was there may hold more."""
    rows_written: int
    """Rows per site that went through the model now."""
    n_bytes: int
    """Of all shards on disk."""
    seconds: float
    """From the first token to the last byte; without imports and loading the model."""
    source_exhausted: bool
    fingerprint: str
    notes: tuple[str, ...]
    """What people should know of the rows."""

    @property
    def tokens_per_s(self) -> float:
        """Rows per site and second."""
        return self.rows_written / self.seconds if self.seconds else 0.0

    @property
    def holds_more(self) -> bool:
        """Whether the store holds more than was asked for: a training reads it all unless told."""
        return self.n_rows > self.n_rows_asked

    def __repr__(self) -> str:
        linked = f", linked to {self.found}" if self.found else ""
        more = f", more than the {self.n_rows_asked:,} asked for" if self.holds_more else ""
        did = "complete already" if self.reused else f"{self.rows_written:,} of them written now"
        return f"HarvestSummary({self.store}: {self.n_rows:,} rows a site{more}, {did}{linked})"


def harvest(
    config: HarvestConfig,
    *,
    on_plan: OnPlan | None = None,
    on_progress: OnProgress | None = None,
) -> HarvestSummary:
    """Have a store hold what is asked for, and compute only what is missing.

    An interrupted harvest goes on where it was safe; sites and rows are added to a store that lacks
    them; a store elsewhere that holds them all is linked. The same config on the same machine gives
    the same bytes, however often it was interrupted.

    Raises:
        ConfigError: a setting that model, disk, device or the store that is there do not allow.
        ModelError: the model cannot be found, reached or read.
        TextError: the text cannot be found, reached or read, or holds none.
        StoreError: another writer is at work, the disk fails or fills, or an activation is not
            finite. What was safe stays safe; the same call goes on.
    """
    rows, seconds, ran = 0, 0.0, False
    while (plan := make_plan(config)).state != "complete":
        written, took = _carry_out(plan, on_plan=on_plan, on_progress=on_progress)
        rows, seconds, ran = rows + written, seconds + took, True
        if plan.state != "add":
            break  # only an addition of sites may leave rows to write: do not ask the hub again
    if plan.found is not None:
        link(plan.found, config.out)
    store = ActStore.open(config.out)
    return HarvestSummary(
        store=config.out,
        reused=not ran,
        found=plan.found,
        n_rows=store.n_rows,
        n_rows_asked=rows_asked(config),
        rows_written=rows,
        n_bytes=store.n_bytes,
        seconds=seconds,
        source_exhausted=store.manifest.source_exhausted,
        fingerprint=store.fingerprint,
        notes=plan.notes,
    )


def _carry_out(
    plan: HarvestPlan, *, on_plan: OnPlan | None = None, on_progress: OnProgress | None = None
) -> tuple[int, float]:
    """Carry out one plan that is not complete yet; gives rows written a site, and seconds."""
    from pipeline.device import pick_device, pick_precision
    from pipeline.harvest.forward import forward_of

    config, ctx_len = plan.config, plan.spec.ctx_len
    if plan.spec.source["model_precision"] == "auto":
        plan = plan.with_precision(pick_precision("auto", device=pick_device(config.device)))
    with (
        forward_of(plan) as forward,
        _nothing_left(plan),
        _writer_of(plan, own_process=forward.device.type != "cpu") as writer,
        context_stream(config, start=Cursor.from_json(writer.cursor)) as stream,
    ):
        if on_plan is not None:
            to_come = (writer.n_rows - writer.n_rows_committed) / ctx_len
            on_plan(plan, to_come * forward.seconds_per_context(ctx_len))
        start, rows_before = time.perf_counter(), writer.n_rows_committed
        _fill(plan, forward, writer, stream, on_progress)
        rows_written = writer.n_rows_committed - rows_before
    return rows_written, time.perf_counter() - start


@contextmanager
def _nothing_left(plan: HarvestPlan) -> Generator[None]:
    """A store that was begun now, and stopped before it held a row, goes again."""
    try:
        yield
    except BaseException:
        if plan.state == "new" and not holds_rows(plan.config.out):
            with suppress(StoreError, OSError):  # it is told why it was stopped
                remove_rowless(plan.config.out)
        raise


def _fill(
    plan: HarvestPlan,
    forward: "Forward",
    writer: ActWriter,
    stream: ContextStream,
    on_progress: OnProgress | None,
) -> None:
    """Write every shard that is missing."""
    from pipeline.harvest.forward import harvest_shard

    spec, exhausted = plan.spec, False
    computed: FilledShard | None = None  # on its way from the device

    def hand_over() -> None:
        nonlocal computed
        if computed is not None:
            writer.write_shard(computed.wait())
            computed = None

    for index in range(writer.next_shard, writer.n_shards):

        def told(n_contexts: int, before: int = index * spec.shard_rows) -> None:
            hand_over()  # the shard before: the first batch of this one ran meanwhile
            if on_progress is not None:
                on_progress(
                    Progress(
                        stage="harvest",
                        done=before + n_contexts * spec.ctx_len,
                        total=writer.n_rows,
                        unit="tokens",
                        words=f"{size(writer.n_bytes_committed)} on disk",
                    )
                )

        n_rows = writer.rows_in(index)
        computed = harvest_shard(
            plan, index, n_rows // spec.ctx_len, forward=forward, stream=stream, on_batch=told
        )
        exhausted = computed is None or computed.shard.n_rows < n_rows
        if exhausted:
            break
    hand_over()
    writer.finish(source_exhausted=exhausted)


def context_stream(config: HarvestConfig, *, start: Cursor) -> ContextStream:
    """The contexts that this harvest reads, from `start` on."""
    tokenizer = load_tokenizer(
        config.model, revision=config.revision, special_tokens=config.special_tokens
    )
    chat = None
    if config.chat_template:
        chat = load_chat_template(config.model, revision=config.revision)
    return open_contexts(
        config.text, tokenizer, column=config.text_column, chat=chat, ctx_len=config.ctx_len,
        documents=config.documents, start=start,
    )  # fmt: skip


def _writer_of(plan: HarvestPlan, *, own_process: bool) -> AbstractContextManager[ActWriter]:
    """Of a whole store, or of the sites that join one."""
    out, spec = plan.config.out, plan.spec
    if plan.state == "add":
        sites = {site.name: site.width for site in spec.sites}
        return adding(out, sites, own_process=own_process)
    return ActWriter.create_or_resume(out, spec, n_rows=plan.n_rows, own_process=own_process)
