"""export_rows(config): a site of a store in a format of others, in the order of its texts.

A shard is in memory at a time. What is written has its name once it is whole, and none before.
"""

import os
import time
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from actstore.files import locked, make_folder, partial_of, remove, sync_folder
from actstore.manifest import CONTEXT_TOKENS
from actstore.reader import ActStore
from pipeline.config.rows import ExportConfig
from pipeline.disk import require_room
from pipeline.errors import ConfigError
from pipeline.exchange.rows.values import BLOCK_BYTES, as_stored
from pipeline.exchange.rows.writers import SUFFIX, WRITERS, Content
from pipeline.progress import OnProgress, counter
from pipeline.stores import has_tokens

Part = tuple[
    Shaped[np.ndarray, "contexts ctx_len width"],
    Int32[np.ndarray, "contexts ctx_len"],
    Int64[np.ndarray, "contexts ctx_len"],
]
"""Contexts that follow one another: their rows as stored, token ids and document ids."""


@dataclass(frozen=True, kw_only=True)
class ExportSummary:
    """What an export wrote."""

    path: Path
    """The file or folder."""
    files: tuple[Path, ...]
    """All files, those beside it too."""
    n_rows: int
    n_bytes: int
    seconds: float
    notes: tuple[str, ...]
    """What people should know of what is in them."""

    @property
    def rows_per_s(self) -> float:
        """Rows and second."""
        return self.n_rows / self.seconds if self.seconds else 0.0


def export_rows(config: ExportConfig, *, on_progress: OnProgress | None = None) -> ExportSummary:
    """Write the rows of a site, in the order of contexts, with their token ids where there are any.

    Raises:
        ConfigError: the site is not there, `out` is taken or has another ending than its format,
            or the disk has no room.
        StoreError: the store is missing, unfinished or damaged.
    """
    store, start = ActStore.open(config.store), time.perf_counter()
    if config.site not in store.sites:
        raise ConfigError(
            f"{config.store} has no site {config.site!r}; it has {', '.join(store.sites)}"
        )
    content, notes = _content(config, store)
    _require_place(config, content)
    tell = counter(on_progress, stage="export", total=content.n_rows, unit="rows")
    partial, done = partial_of(config.out), 0
    with ExitStack() as held:
        held.enter_context(_disk_told(config.out))
        held.enter_context(_alone(config.out))
        files = _require_place(config, content)  # by now, another process may have ended
        held.enter_context(_gone_on_failure([partial, *map(partial_of, files)]))
        remove(partial)
        with WRITERS[config.to](partial, content) as write:
            for rows, tokens, documents in contexts_of(store, config.site):
                write(as_stored_in(content, rows), tokens, documents)
                done += tokens.size
                tell(done)
        for file in (*files[1:], config.out):  # the rows come last: with them it is whole
            partial_of(file).rename(file)
        sync_folder(config.out.parent)
    written = tuple(sorted(config.out.iterdir())) if config.out.is_dir() else files
    return ExportSummary(
        path=config.out,
        files=written,
        n_rows=content.n_rows,
        n_bytes=sum(file.stat().st_size for file in written),
        seconds=time.perf_counter() - start,
        notes=notes,
    )


def contexts_of(store: ActStore, site: str) -> Iterator[Part]:
    """All contexts of a store in their order, a part of a shard at a time."""
    spec = store.spec
    per_shard = spec.shard_rows // spec.ctx_len
    step = max(1, BLOCK_BYTES // (spec.ctx_len * store.width(site) * spec.storage.itemsize))
    for shard in range(store.n_shards):
        tokens = store.shard(CONTEXT_TOKENS, shard)
        context, position = (store.shard(name, shard) for name in ("context_id", "position"))
        place = np.empty(tokens.shape, np.int64)
        place[context - shard * per_shard, position] = np.arange(len(context))
        acts, documents = store.shard(site, shard), store.shard("document_id", shard)
        for start in range(0, len(tokens), step):
            rows = place[start : start + step]
            yield acts[rows], tokens[start : start + step], documents[rows]


def as_stored_in(
    content: Content, rows: Shaped[np.ndarray, "contexts ctx_len width"]
) -> Shaped[np.ndarray, "contexts ctx_len width"]:
    """Rows in the dtype of what is written, which loses nothing."""
    flat = as_stored(rows.reshape(-1, content.width), content.dtype)
    return flat.reshape(rows.shape)


def _content(config: ExportConfig, store: ActStore) -> tuple[Content, tuple[str, ...]]:
    spec, notes = store.spec, list[str]()
    dtype = spec.dtype
    if dtype == "bfloat16" and config.to != "safetensors":
        dtype = "float32"
        notes.append(f"{config.to} has no bfloat16: rows are float32, of the same values")
    tokens = has_tokens(spec)
    if not tokens:
        notes.append("the store has no token ids, and so has what was written")
    source = {name: str(spec.source[name]) for name in ("model", "revision") if name in spec.source}
    content = Content(
        site=config.site,
        n_contexts=store.n_contexts,
        ctx_len=spec.ctx_len,
        width=store.width(config.site),
        dtype=dtype,
        has_tokens=tokens,
        facts={
            **source,
            "site": config.site,
            "ctx_len": str(spec.ctx_len),
            "store": store.fingerprint,
        },
    )
    return content, tuple(notes)


def _require_place(config: ExportConfig, content: Content) -> tuple[Path, ...]:
    """The files that there will be, of a format of one the only one; refused where one is taken."""
    out, suffix = config.out, SUFFIX[config.to]
    if suffix and out.suffix != suffix:
        raise ConfigError(f"{config.to} is a file *{suffix}: type --out {out}{suffix}")
    files = (out,)
    if config.to == "npy" and content.has_tokens:
        files = (out, tokens_beside(out))
    for file in files:
        if file.exists():
            raise ConfigError(f"{file} is there already: remove it, or choose another --out")
    require_room(out, content.n_bytes)
    return files


def tokens_beside(out: Path) -> Path:
    """Where the token ids of a `.npy` of rows are."""
    return out.with_suffix(".tokens.npy")


@contextmanager
def _alone(out: Path) -> Generator[None]:
    """Hold the place of `out`: two that wrote there at once would write into one file.

    Raises:
        ConfigError: another process is writing there.
    """

    def held(holder: str) -> ConfigError:
        return ConfigError(
            f"{out} is being written by {holder}: wait for it, or choose another --out"
        )

    make_folder(out.parent)
    lock = out.with_name(f".{out.name}.lock")
    with locked(lock, held):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


@contextmanager
def _gone_on_failure(partials: list[Path]) -> Generator[None]:
    try:
        yield
    except BaseException:
        for path in partials:
            remove(path)
        raise


@contextmanager
def _disk_told(out: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        said = error.strerror or os.fspath(error.filename or "") or str(error)
        raise ConfigError(
            f"{error.filename or out} could not be written: {said}; nothing of it is kept: make "
            "room there, or choose another --out"
        ) from error
