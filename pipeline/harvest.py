"""Stage one: run the model over a text, once, and fill an activation store."""

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from actstore.writer import ActWriter
from pipeline.config import HarvestConfig
from pipeline.device import DTYPES, pick_device, pick_precision
from pipeline.families import Site
from pipeline.model import LanguageModel, load_for_sites
from pipeline.plan import HarvestPlan, with_precision
from pipeline.shard_buffer import FilledShard, ShardBuffer
from pipeline.sites import reading
from pipeline.text import open_text
from pipeline.tokenizer import load_tokenizer
from pipeline.tokens import ContextStream, Cursor

log = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 1024  # more leaves the caches, and is slower
GPU_BATCH_TOKENS = 65_536  # halved until it fits

Acts = dict[Site, Tensor]


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
    device = pick_device(config.device)
    precision = plan.spec.source["model_precision"]
    if precision == "auto":
        precision = pick_precision("auto", device=device)
        plan = with_precision(plan, precision)
    tokenizer = load_tokenizer(config.model, revision=config.revision)
    text = open_text(config.text, column=config.text_column)
    model = load_for_sites(
        config.model,
        plan.sites,
        revision=config.revision,
        device=device,
        dtype=DTYPES[str(precision)],
    )
    with (
        torch.inference_mode(),
        reading(model, plan.sites) as read,
        ActWriter.create_or_resume(config.out, plan.spec, n_rows=plan.n_rows) as writer,
        ContextStream(text, tokenizer, ctx_len=config.ctx_len, start=_cursor(writer)) as stream,
    ):
        reader = _Reader(read, batch_size=_batch_size(config, device), device=device)
        if on_plan is not None:
            to_come = (plan.n_rows - writer.n_rows_committed) / config.ctx_len
            on_plan(plan, to_come * reader.seconds_per_context(config.ctx_len))
        run = _Run(plan=plan, model=model, reader=reader, writer=writer, stream=stream)
        return run.to_the_end(on_progress)


def _cursor(writer: ActWriter) -> Cursor | None:
    """Where the text goes on; None at its start."""
    return None if writer.cursor is None else Cursor.from_json(writer.cursor)


def _batch_size(config: HarvestConfig, device: torch.device) -> int:
    """Contexts per forward pass."""
    tokens = CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS
    return config.batch_size or max(1, tokens // config.ctx_len)


class _Reader:
    """Runs batches through the model; on a GPU, batches that do not fit are halved for good."""

    def __init__(
        self, read: Callable[[Tensor], Acts], *, batch_size: int, device: torch.device
    ) -> None:
        self.batch_size = batch_size
        self.device = device
        self._read = read

    def __call__(self, tokens: Int32[np.ndarray, "contexts position"]) -> Iterator[Acts]:
        """Activations of these contexts, in order, in as few parts as fit."""
        done = 0
        while done < len(tokens):
            part = torch.from_numpy(tokens[done : done + self.batch_size])
            try:
                acts = self._read(self._to_device(part))
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                log.info("out of memory: %d contexts a batch from here on", self.batch_size)
                continue
            done += len(part)
            yield acts

    def seconds_per_context(self, ctx_len: int) -> float:
        """Timed on one batch, after one that warms up."""
        tokens = np.zeros((self.batch_size, ctx_len), dtype=np.int32)
        self._run_through(tokens)
        start = time.perf_counter()
        self._run_through(tokens)
        return (time.perf_counter() - start) / len(tokens)

    def _run_through(self, tokens: Int32[np.ndarray, "contexts position"]) -> None:
        for acts in self(tokens):
            next(iter(acts.values()))[-1, -1, -1].item()  # waits for the device

    def _to_device(self, tokens: Tensor) -> Tensor:
        if self.device.type == "cuda":
            tokens = tokens.pin_memory()
        return tokens.to(self.device, non_blocking=True).long()


@dataclass(kw_only=True)
class _Run:
    """One harvest under way."""

    plan: HarvestPlan
    model: LanguageModel
    reader: _Reader
    writer: ActWriter
    stream: ContextStream
    filled: FilledShard | None = None
    """On its way from the device, while the next shard's first batch is computed."""

    def to_the_end(self, tell: OnProgress | None) -> HarvestSummary:
        """Fill every shard that is missing."""
        start, rows_before = time.perf_counter(), self.writer.n_rows_committed
        n_shards = self.plan.spec.layout(self.plan.n_rows).n_shards
        exhausted = False
        for index in range(self.writer.next_shard, n_shards):
            exhausted = self._fill(index, tell)
            if exhausted:
                break
        self._hand_over()
        manifest = self.writer.finish(source_exhausted=exhausted)
        return HarvestSummary(
            n_rows=manifest.n_rows,
            rows_written=manifest.n_rows - rows_before,
            n_bytes=self.writer.n_bytes_committed,
            seconds=time.perf_counter() - start,
            source_exhausted=exhausted,
            fingerprint=manifest.fingerprint,
        )

    def _fill(self, index: int, tell: OnProgress | None) -> bool:
        """Compute one shard; True when the text ended inside it."""
        n_contexts = self.writer.rows_in(index) // self.plan.spec.ctx_len
        buffer = ShardBuffer(
            self.plan, index=index, n_contexts=n_contexts, device=self.reader.device
        )
        while buffer.n_filled < n_contexts:
            wanted = min(self.reader.batch_size, n_contexts - buffer.n_filled)
            contexts = self.stream.take(wanted)
            for acts in self.reader(contexts.tokens):
                buffer.add(acts)
            buffer.note(contexts)
            self._hand_over()
            if tell is not None:
                tell(self._progress(index, buffer.n_filled))
            if len(contexts.tokens) < wanted:
                break
        if buffer.n_filled:
            self.filled = buffer.finish(cursor=self.stream.cursor)
        return buffer.n_filled < n_contexts

    def _hand_over(self) -> None:
        """Give the shard before this one to the writer, once it has arrived from the device."""
        if self.filled is not None:
            self.writer.write_shard(self.filled.wait())
            self.filled = None

    def _progress(self, index: int, n_contexts: int) -> HarvestProgress:
        spec = self.plan.spec
        return HarvestProgress(
            rows=index * spec.shard_rows + n_contexts * spec.ctx_len,
            n_rows=self.plan.n_rows,
            rows_safe=self.writer.n_rows_committed,
            n_bytes=self.writer.n_bytes_committed,
        )
