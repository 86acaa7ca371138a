"""import_rows(config): rows of activations that others kept become a store.

Memory holds a few shards, whatever the size of the source. What is committed stays: the same call
goes on behind it, and a store comes out the same however often it was stopped.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from actstore.errors import NonFiniteError, StoreError
from actstore.layout import row_permutation
from actstore.ledger import holds_rows
from actstore.reader import ActStore, peek
from actstore.removal import remove_rowless
from actstore.writer import ActWriter, Shard
from pipeline.config.rows import ImportConfig
from pipeline.errors import DataError
from pipeline.exchange.rows.plan import ImportPlan, make_plan
from pipeline.exchange.rows.values import Values, as_stored, blocks
from pipeline.progress import OnProgress, Progress, size

OnPlan = Callable[[ImportPlan], None]
"""Told the plan before its first row is read."""
NO_TOKEN = -1
"""In the place of a token id where none is known."""


@dataclass(frozen=True, kw_only=True)
class ImportSummary:
    """What an import did. It stands for the path of its store."""

    store: Path
    reused: bool
    """The store was complete already, and nothing was read."""
    n_rows: int
    """Rows per site in the store."""
    rows_written: int
    """Rows per site that were read now."""
    n_bytes: int
    """Of all shards on disk."""
    seconds: float
    fingerprint: str
    notes: tuple[str, ...]
    """What people should know of the rows."""

    @property
    def rows_per_s(self) -> float:
        """Rows per site and second."""
        return self.rows_written / self.seconds if self.seconds else 0.0

    def __fspath__(self) -> str:
        return str(self.store)


def import_rows(
    config: ImportConfig,
    *,
    on_plan: OnPlan | None = None,
    on_progress: OnProgress | None = None,
) -> ImportSummary:
    """Have a store hold the rows of a source, in its order of contexts.

    Raises:
        ConfigError: it is not said which rows of what these are, or what is said cannot be, or the
            disk has no room.
        DataError: a file is damaged, changes meanwhile, or holds rows that are not finite.
        StoreError: another store is there, another writer is at work, or the disk fails or fills.
            What was committed stays; the same call goes on.
    """
    plan = make_plan(config)
    start = time.perf_counter()
    with (
        _nothing_left(config.out),
        _not_finite_told(plan),
        ActWriter.create_or_resume(config.out, plan.spec, n_rows=plan.n_rows) as writer,
    ):
        before = writer.n_rows_committed
        if before < plan.n_rows:
            plan.require_room(n_rows_there=before)
            if on_plan is not None:
                on_plan(plan)
        for index in range(writer.next_shard, writer.n_shards):

            def told(done: int, writer: ActWriter = writer) -> None:
                if on_progress is not None:
                    words = f"{size(writer.n_bytes_committed)} on disk"
                    on_progress(
                        Progress(
                            stage="import", done=done, total=plan.n_rows, unit="rows", words=words
                        )
                    )

            shard = read_shard(plan, index, writer.rows_in(index), told=told)
            plan.require_unchanged()
            writer.write_shard(shard)
        writer.finish()
        written = writer.n_rows_committed - before
    store = ActStore.open(config.out)
    return ImportSummary(
        store=config.out,
        reused=not written,
        n_rows=store.n_rows,
        rows_written=written,
        n_bytes=store.n_bytes,
        seconds=time.perf_counter() - start,
        fingerprint=store.fingerprint,
        notes=plan.notes,
    )


def read_shard(plan: ImportPlan, index: int, n_rows: int, *, told: Callable[[int], None]) -> Shard:
    """The rows of a shard, put in the store's order as they are read."""
    spec = plan.spec
    first = index * spec.shard_rows
    order = row_permutation(n_rows, seed=spec.seed, shard=index)
    place = np.empty_like(order)
    place[order] = np.arange(n_rows)
    acts = {site.name: np.empty((n_rows, site.width), spec.storage) for site in spec.sites}
    row_bytes = sum(v.itemsize * (v.width or 1) for v in plan.sites.values())
    for start, stop in blocks(first, first + n_rows, row_bytes=row_bytes):
        for name, values in plan.sites.items():
            rows = as_stored(values.read(start, stop), spec.dtype)
            acts[name][place[start - first : stop - first]] = rows
        told(stop)
    span, contexts = (first, first + n_rows), (-1, spec.ctx_len)
    tokens = _numbers(plan.tokens, *span, absent=NO_TOKEN, below=2**31)
    documents = _numbers(plan.documents, *span, absent=0, below=2**63)
    return Shard(
        index=index,
        acts=acts,
        tokens=tokens.astype(np.int32).reshape(contexts),
        document_id=documents.reshape(contexts),
        cursor={"row": first + n_rows},
    )


def _numbers(
    values: Values | None, start: int, stop: int, *, absent: int, below: int
) -> Int64[np.ndarray, " n"]:
    """One number a row, sure to be what a store can hold."""
    if values is None:
        return np.full(stop - start, absent, np.int64)
    found = values.read(start, stop)
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= below:
        raise DataError(
            f"{values.words} holds {low if low < 0 else high}: ids are from 0 to {below - 1}"
        )
    return found.astype(np.int64)


@contextmanager
def _nothing_left(out: Path) -> Generator[None]:
    """A store that was begun now, and stopped before it held a row, goes again."""
    there = peek(out)
    try:
        yield
    except BaseException:
        if there is None and not holds_rows(out):
            with suppress(StoreError, OSError):  # it is told why it was stopped
                remove_rowless(out)
        raise


@contextmanager
def _not_finite_told(plan: ImportPlan) -> Generator[None]:
    """Which row of the source holds what no store takes."""
    try:
        yield
    except NonFiniteError as error:
        row = error.context_id * plan.spec.ctx_len + error.position
        words = plan.sites[error.site].words
        raise DataError(
            f"row {row:,} of {words} (position {error.position} of context {error.context_id}) "
            f"holds NaN or infinity, or more than {plan.spec.dtype} can: its shard was not stored; "
            "leave that row out"
        ) from error
