"""Harvest(config): run the model once, fill the store.

One shard, from the text to the host's memory.

Stage one: run the model over a text, once, and fill an activation store.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from actstore.addition import adding
from actstore.reader import ActStore
from actstore.writer import ActWriter
from pipeline.device import pick_device, pick_precision
from pipeline.harvest.forward import FilledShard, Forward, ShardBuffer, forward_of
from pipeline.harvest.plan import HarvestPlan, with_precision
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.text.contexts import ContextStream, Cursor
from pipeline.text.open import open_text

OnFilled = Callable[[int], None]
"""Told the contexts of the shard that went through the model so far."""


def harvest_shard(
    plan: HarvestPlan,
    index: int,
    n_contexts: int,
    *,
    forward: Forward,
    stream: ContextStream,
    on_filled: OnFilled | None = None,
) -> FilledShard | None:
    """Compute shard `index` from the next `n_contexts` contexts of the text.

    Returns:
        The shard, shorter if the text ended inside it; None if the text had ended before.
    """
    buffer = ShardBuffer(plan, index=index, n_contexts=n_contexts, device=forward.device)
    while buffer.n_filled < n_contexts:
        wanted = min(forward.batch_size, n_contexts - buffer.n_filled)
        contexts = stream.take(wanted)
        for acts in forward(contexts.tokens):
            buffer.add(acts)
        buffer.note(contexts)
        if on_filled is not None:
            on_filled(buffer.n_filled)
        if len(contexts.tokens) < wanted:
            break
    return buffer.finish(cursor=stream.cursor) if buffer.n_filled else None


@dataclass(frozen=True, kw_only=True)
class HarvestProgress:
    """Where a harvest stands."""

    rows: int
    """Rows per site that went through the model, those of earlier runs included."""
    n_rows: int
    rows_safe: int
    """Rows per site that survive a crash now."""
    n_bytes: int
    """Of the shards on disk."""


@dataclass(frozen=True, kw_only=True)
class HarvestSummary:
    """What a harvest did."""

    n_rows: int
    """Rows per site in the store."""
    rows_written: int
    n_bytes: int
    """Of all shards on disk."""
    seconds: float
    """From the first token to the last byte; without imports and loading the model."""
    source_exhausted: bool
    fingerprint: str

    @property
    def tokens_per_s(self) -> float:
        """Rows per site and second."""
        return self.rows_written / self.seconds if self.seconds else 0.0


OnPlan = Callable[[HarvestPlan, float], None]
"""Told the plan and the seconds that it will take, about, before the first row is written."""
OnProgress = Callable[[HarvestProgress], None]


def harvest(
    plan: HarvestPlan, *, on_plan: OnPlan | None = None, on_progress: OnProgress | None = None
) -> HarvestSummary:
    """Carry out a plan that is not complete yet; an interrupted one goes on where it was safe.

    The same plan on the same machine gives the same bytes, however often it was interrupted.

    Raises:
        ConfigError: the device asked for is not there.
        ModelError: the weights cannot be fetched or read.
        TextError: the text cannot be read, or holds none.
        StoreError: another writer is at work, the disk fails or fills, or an activation is not
            finite. What was safe stays safe; the same command goes on.
    """
    config = plan.config
    if plan.spec.source["model_precision"] == "auto":
        plan = with_precision(plan, pick_precision("auto", device=pick_device(config.device)))
    tokenizer = load_tokenizer(config.model, revision=config.revision)
    text = open_text(config.text, column=config.text_column)
    with (
        forward_of(plan) as forward,
        _writer_of(plan) as writer,
        ContextStream(text, tokenizer, ctx_len=config.ctx_len, start=_cursor(writer)) as stream,
    ):
        if on_plan is not None:
            to_come = (writer.n_rows - writer.n_rows_committed) / config.ctx_len
            on_plan(plan, to_come * forward.seconds_per_context(config.ctx_len))
        start, rows_before = time.perf_counter(), writer.n_rows_committed
        run = _Run(plan=plan, forward=forward, writer=writer, stream=stream)
        run.to_the_end(on_progress)
        rows_written = writer.n_rows_committed - rows_before
    store = ActStore.open(config.out)
    return HarvestSummary(
        n_rows=store.n_rows,
        rows_written=rows_written,
        n_bytes=store.n_bytes,
        seconds=time.perf_counter() - start,
        source_exhausted=store.manifest.source_exhausted,
        fingerprint=store.fingerprint,
    )


def _writer_of(plan: HarvestPlan) -> AbstractContextManager[ActWriter]:
    """Of a whole store, or of the sites that join one."""
    if plan.state == "add":
        return adding(plan.config.out, {site.name: site.width for site in plan.spec.sites})
    return ActWriter.create_or_resume(plan.config.out, plan.spec, n_rows=plan.n_rows)


def _cursor(writer: ActWriter) -> Cursor | None:
    """Where the text goes on; None at its start."""
    return None if writer.cursor is None else Cursor.from_json(writer.cursor)


@dataclass(kw_only=True)
class _Run:
    """One harvest under way."""

    plan: HarvestPlan
    forward: Forward
    writer: ActWriter
    stream: ContextStream
    filled: FilledShard | None = None
    """On its way from the device, while the next shard's first batch is computed."""

    def to_the_end(self, tell: OnProgress | None) -> None:
        """Fill every shard that is missing."""
        exhausted = False
        for index in range(self.writer.next_shard, self.writer.n_shards):
            exhausted = self._fill(index, tell)
            if exhausted:
                break
        self._hand_over()
        self.writer.finish(source_exhausted=exhausted)

    def _fill(self, index: int, tell: OnProgress | None) -> bool:
        """Compute one shard; True when the text ended inside it."""
        n_rows = self.writer.rows_in(index)

        def on_filled(n_contexts: int) -> None:
            self._hand_over()
            if tell is not None:
                tell(self._progress(index, n_contexts))

        self.filled = harvest_shard(
            self.plan,
            index,
            n_rows // self.plan.spec.ctx_len,
            forward=self.forward,
            stream=self.stream,
            on_filled=on_filled,
        )
        return self.filled is None or self.filled.shard.n_rows < n_rows

    def _hand_over(self) -> None:
        """Give the shard before this one to the writer, once it has arrived from the device."""
        if self.filled is not None:
            self.writer.write_shard(self.filled.wait())
            self.filled = None

    def _progress(self, index: int, n_contexts: int) -> HarvestProgress:
        spec = self.plan.spec
        return HarvestProgress(
            rows=index * spec.shard_rows + n_contexts * spec.ctx_len,
            n_rows=self.writer.n_rows,
            rows_safe=self.writer.n_rows_committed,
            n_bytes=self.writer.n_bytes_committed,
        )
