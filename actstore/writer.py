"""Write a store: whole shards, encoded by threads beside the caller, each committed or absent."""

import math
import threading
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from actstore.codec import kept_bits
from actstore.encoding import Encoder, ProcessEncoder, ThreadEncoder, n_cores
from actstore.errors import StoreError
from actstore.files import make_folder, writing
from actstore.layout import row_permutation
from actstore.ledger import Ledger, Twin
from actstore.manifest import CONTEXT_TOKENS, Manifest, StoreSpec
from actstore.metadata import dtype_of, shape_of, shard_and_chunk
from actstore.moments import as_float
from actstore.settle import open_ledger, refuse_foreign
from actstore.shardwriter import Shard, Written, write_files
from actstore.summary import peek

MAX_MOVED = 0.05
"""How far a row may be from what it was, of its norm, where it is written again."""
BLOCK_ROWS = 4096  # that are compared at a time: as floats they take more memory


class Conveyor:
    """Takes shards in order; one is encoded while the one before it is synced and committed.

    The first failure stops it: what came after is dropped, and every later call raises it.
    """

    def __init__(
        self, ledger: Ledger, stack: ExitStack, *, threads: int, queue: int, own_process: bool
    ) -> None:
        self._ledger = ledger
        self._moments = ledger.moments()
        self._failure: StoreError | None = None
        self._room = threading.Semaphore(queue)
        self._unplaced = threading.Semaphore(2)
        # Entered innermost last: what encodes must stop before what it feeds.
        self._placing = stack.enter_context(ThreadPoolExecutor(1, "actstore-commit"))
        encoder = _encoder_of(ledger.spec, threads=threads, own_process=own_process)
        self._encoder = stack.enter_context(closing(encoder))
        self._encoding = stack.enter_context(ThreadPoolExecutor(1, "actstore-write"))

    def put(self, shard: Shard) -> None:
        """Hand over a shard; blocks while as many as the queue allows are in memory."""
        self._room.acquire()
        try:
            self.check()
        except StoreError:
            self._room.release()
            raise
        self._encoding.submit(self._encode, shard)

    def wait(self) -> None:
        """Until nothing is on its way: each thread is given one empty job, in order."""
        self._encoding.submit(int).result()
        self._placing.submit(int).result()

    def check(self) -> None:
        """Tell of the first failure there was."""
        if self._failure is not None:
            raise self._failure

    def _encode(self, shard: Shard) -> None:
        """On the writing thread: one shard to its files, while the one before it is committed."""
        try:
            if self._failure is None:
                ledger = self._ledger
                if shard.index < ledger.n_kept:
                    _require_same_start(shard, ledger)
                written = write_files(shard, ledger.spec, ledger.place, self._encoder)
                self._unplaced.acquire()
                self._placing.submit(self._commit, written)
        except (OSError, StoreError) as error:
            self._fail(error)
        finally:
            self._room.release()

    def _commit(self, written: Written) -> None:
        """On the committing thread: one shard after another becomes part of the store."""
        try:
            if self._failure is None:
                written.place()
                parts, before = written.moments, self._moments
                moments = {name: sum(parts[name], start) for name, start in before.items()}
                self._ledger.commit(written, moments)
                self._moments = moments
        except (OSError, StoreError) as error:
            self._fail(error)
        finally:
            written.close()
            self._unplaced.release()

    def _fail(self, error: OSError | StoreError) -> None:
        if self._failure is None:
            self._failure = (
                error if isinstance(error, StoreError) else failed(self._ledger.path, error)
            )


def _encoder_of(spec: StoreSpec, *, threads: int, own_process: bool) -> Encoder:
    """In threads, too, where a process is asked for and cannot be had."""
    if own_process:
        sizes = [
            math.prod(shape_of(spec, name, n_rows=spec.ctx_len)[1:])
            * dtype_of(spec, name).itemsize
            * shard_and_chunk(spec, name)[1]
            for name in spec.arrays
        ]
        with suppress(OSError):
            return ProcessEncoder(chunk_bytes=max(sizes), threads=threads)
    return ThreadEncoder(threads)


def _require_same_start(shard: Shard, ledger: Ledger) -> None:
    """Hold a last shard that is written again, longer, to the contexts and rows it began with."""
    old = ledger.kept(CONTEXT_TOKENS, shard.index)
    if not np.array_equal(shard.tokens[: len(old)], old):
        raise _gives_others(shard, ledger, "tokens")
    spec, n_rows = ledger.spec, shard.n_rows
    place = np.empty(n_rows, np.int64)  # of each row, counted in context order
    place[row_permutation(n_rows, seed=spec.seed, shard=shard.index)] = np.arange(n_rows)
    again = place[row_permutation(old.size, seed=spec.seed, shard=shard.index)]
    keep = kept_bits(spec.codec)
    limit = MAX_MOVED + (0 if keep is None else 0.5 ** (keep + 1))  # of which old rows are rounded
    for name in spec.names:
        share = _share_moved(shard.acts[name], again, ledger.kept(name, shard.index), limit=limit)
        if share > 0.5:
            raise _gives_others(shard, ledger, f"rows of {name}")


def _share_moved(
    new: Shaped[np.ndarray, "rows width"],
    again: Int64[np.ndarray, " n"],
    old: Shaped[np.ndarray, "n width"],
    *,
    limit: float,
) -> float:
    """The share of `new[again]` that are farther than `limit`, of their norm, from what they were.

    They need not be the same to the bit: another batch size, device or kind of processor may go on
    with a store, and rounds otherwise, by a percent or so in 16 bits. And rows are told one by one,
    as those of huge norm, of which many models have a few, hardly differ between a model and its
    fine-tuning and would outweigh all others in one sum. NaN counts as near: it is told elsewhere.
    """
    n_moved = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(old), BLOCK_ROWS):
            was = as_float(old[start : start + BLOCK_ROWS]).astype(np.float32)
            now = as_float(new[again[start : start + BLOCK_ROWS]]).astype(np.float32)
            moved = np.linalg.norm(now - was, axis=1) > limit * np.linalg.norm(was, axis=1)
            n_moved += int(np.count_nonzero(moved))
    return n_moved / len(old)


def _gives_others(shard: Shard, ledger: Ledger, what: str) -> StoreError:
    return StoreError(
        f"{ledger.path} cannot be extended: its source no longer gives the {what} it gave "
        f"for shard {shard.index}; write another store"
    )


def failed(path: Path, error: OSError) -> StoreError:
    """What a full or failing disk means to whoever writes the store at `path`."""
    return StoreError(
        f"{error.filename or path} could not be written: {error.strerror}; "
        "what was committed is kept, the same command goes on from there"
    )


@contextmanager
def disk_errors_told(path: Path) -> Generator[None]:
    """Raise what a disk says as `failed` puts it."""
    try:
        yield
    except OSError as error:
        raise failed(path, error) from error


class Gathered:
    """Contexts in the order they were added, taken out as permuted shards."""

    def __init__(self, spec: StoreSpec) -> None:
        self._spec = spec
        self._acts: dict[str, list[Shaped[np.ndarray, "n ctx_len width"]]] = {
            site.name: [] for site in spec.sites
        }
        self._tokens: list[Int32[np.ndarray, "n ctx_len"]] = []
        self._documents: list[Int64[np.ndarray, "n ctx_len"]] = []

    @property
    def n_rows(self) -> int:
        """Rows waiting at each site."""
        return sum(tokens.size for tokens in self._tokens)

    def add(
        self,
        acts: Mapping[str, Shaped[np.ndarray, "n ctx_len width"]],
        tokens: Int32[np.ndarray, "n ctx_len"],
        document_id: Int64[np.ndarray, "n ctx_len"],
    ) -> None:
        """Take up contexts; they are copied, the caller may reuse its arrays."""
        wanted = {site.name: (*tokens.shape, site.width) for site in self._spec.sites}
        given = {name: rows.shape for name, rows in acts.items()}
        if given != wanted or tokens.shape != document_id.shape:
            raise StoreError(f"expected rows of {wanted} for these tokens, got {given}")
        if tokens.shape[1] != self._spec.ctx_len:
            raise StoreError(f"expected contexts of {self._spec.ctx_len}, got {tokens.shape[1]}")
        for name, rows in acts.items():
            if rows.dtype != self._spec.storage:
                raise StoreError(f"{name}: expected {self._spec.storage}, got {rows.dtype}")
            self._acts[name].append(rows.copy())
        self._tokens.append(tokens.copy())
        self._documents.append(document_id.copy())

    def take(self, shard: int, n_rows: int) -> Shard:
        """The first `n_rows` rows, as a shard."""
        n_contexts = n_rows // self._spec.ctx_len
        order = row_permutation(n_rows, seed=self._spec.seed, shard=shard)
        return Shard(
            index=shard,
            acts={
                name: _cut(parts, n_contexts).reshape(n_rows, -1)[order]
                for name, parts in self._acts.items()
            },
            tokens=_cut(self._tokens, n_contexts),
            document_id=_cut(self._documents, n_contexts),
            cursor={},
        )


def _cut(parts: list[np.ndarray], n: int) -> np.ndarray:
    """Join `parts`, keep what follows the first `n` entries in them, give those."""
    whole = np.concatenate(parts)
    parts[:] = [whole[n:]]
    return whole[:n]


class ActWriter:
    """A store being written: a context manager that holds the store's lock.

    Leaving it early, by an error or a crash, loses only what was not committed: the next
    `create_or_resume` goes on at `next_shard`, from `cursor`.
    """

    def __init__(self, ledger: Ledger, conveyor: Conveyor | None, stack: ExitStack) -> None:
        self._ledger = ledger
        self._stack = stack
        self.next_shard = ledger.layout.n_shards if ledger.complete else len(ledger.entries)
        """The shard that `write_shard` takes next."""
        self.cursor = ledger.entries[-1].cursor if ledger.entries else None
        """Where the source stood before `next_shard` on opening; None at its start."""
        self._gathered = Gathered(ledger.spec)
        self._short = False
        self._conveyor = conveyor

    @classmethod
    def create_or_resume(
        cls,
        path: Path,
        spec: StoreSpec,
        *,
        n_rows: int,
        threads: int | None = None,
        queue: int = 2,
        own_process: bool = False,
        beside: Twin | None = None,
    ) -> "ActWriter":
        """Begin a store, go on with one that was left unfinished, or extend one that is complete.

        Args:
            path: The store's folder, `NAME.actstore`.
            spec: What it shall be; what is there must be the same.
            n_rows: Rows it shall hold, rounded up to whole contexts. If it holds them already there
                is nothing to write: `next_shard` equals `n_shards`.
            threads: Of compression; None means as many as there are cores, 8 at most.
            queue: Shards held in memory before `write_shard` blocks.
            own_process: Encode in a process of its own. It is slower by itself, but leaves the
                interpreter to a caller who launches many small kernels, as one who feeds a GPU.
            beside: A complete store whose tokens every shard must have.

        Raises:
            StoreError: If another writer is at it, the spec differs, or the store is damaged.
        """
        if n_rows <= 0:
            raise StoreError(f"n_rows must be positive, got {n_rows}")
        if beside is None and peek(path) is None:
            spec.require_sensible(n_rows)
            with disk_errors_told(path):
                refuse_foreign(path)  # before a lock is left in it
        with ExitStack() as stack:
            with disk_errors_told(path):
                make_folder(path)
                stack.enter_context(writing(path))
                ledger = open_ledger(path, spec, n_rows=n_rows, beside=beside)
            # With one less, all threads of a product wait for the one whose core is shared.
            threads = threads or min(8, n_cores())
            conveyor = None
            if not ledger.complete:
                conveyor = Conveyor(
                    ledger, stack, threads=threads, queue=queue, own_process=own_process
                )
            return cls(ledger, conveyor, stack.pop_all())

    @property
    def spec(self) -> StoreSpec:
        """The store's."""
        return self._ledger.spec

    @property
    def n_rows(self) -> int:
        """Rows the store shall hold."""
        return self._ledger.layout.n_rows

    @property
    def n_shards(self) -> int:
        """Shards the store shall hold."""
        return self._ledger.layout.n_shards

    @property
    def n_rows_committed(self) -> int:
        """Rows that no crash can take away."""
        if self._ledger.complete:
            return self._ledger.manifest.n_rows
        return self._ledger.n_rows

    @property
    def n_bytes_committed(self) -> int:
        """Size of the files of those rows; of shards this store was opened with too."""
        return sum(size for entry in self._ledger.entries for size, _ in entry.files.values())

    def rows_in(self, shard: int) -> int:
        """Rows that `shard` shall hold."""
        return self._ledger.layout.rows_in(shard)

    def write_shard(self, shard: Shard) -> None:
        """Hand over the next shard; blocks while as many as `queue` are in memory.

        The arrays belong to the writer from here on: do not change them. A shard with fewer rows
        than `rows_in` must be the last, of a source that ended.

        Raises:
            StoreError: If it does not fit the store, or an earlier shard could not be written.
            NonFiniteError: If an earlier shard held NaN or infinity.
        """
        self._check(shard)
        assert self._conveyor is not None  # a complete store has no next shard
        self._conveyor.put(shard)
        self.next_shard += 1
        self._short = shard.n_rows < self.rows_in(shard.index)

    def append(
        self,
        acts: Mapping[str, Shaped[np.ndarray, "n ctx_len width"]],
        *,
        tokens: Int32[np.ndarray, "n ctx_len"],
        document_id: Int64[np.ndarray, "n ctx_len"] | None = None,
    ) -> None:
        """Add contexts; shards are formed, permuted and written as they fill.

        After a resume go on with context `n_rows_committed // ctx_len`. Do not mix with
        `write_shard`.

        Args:
            acts: Rows by site, in order; bfloat16 as its bits, uint16.
            tokens: What the rows stand for, any int32 label.
            document_id: The document of each row; zeros if left out.

        Raises:
            StoreError: As `write_shard` does.
        """
        if document_id is None:
            document_id = np.zeros(tokens.shape, np.int64)
        self._gathered.add(acts, tokens, document_id)
        while self.next_shard < self.n_shards:
            n_rows = self.rows_in(self.next_shard)
            if self._gathered.n_rows < n_rows:
                return
            self.write_shard(self._gathered.take(self.next_shard, n_rows))
        if self._gathered.n_rows:
            raise StoreError(f"more rows were given than the {self.n_rows} this store was made for")

    def finish(self, *, source_exhausted: bool = False) -> Manifest:
        """Wait for every shard, then make the store complete.

        Args:
            source_exhausted: The source ended; fewer rows than `n_rows` are all there will be.

        Raises:
            StoreError: If a shard could not be written, or rows are missing.
            NonFiniteError: If a shard held NaN or infinity.
        """
        if source_exhausted and self._gathered.n_rows:
            self.write_shard(self._gathered.take(self.next_shard, self._gathered.n_rows))
        ledger = self._ledger
        if self._conveyor is None or ledger.complete:
            return ledger.manifest
        self._conveyor.wait()
        self._conveyor.check()
        if not source_exhausted and ledger.n_rows < self.n_rows:
            raise StoreError(f"{ledger.path} holds {ledger.n_rows} of {self.n_rows} rows; go on")
        if not ledger.entries and ledger.manifest.state == "writing":
            raise StoreError(f"{ledger.path} would be empty: the source gave no whole context")
        with disk_errors_told(ledger.path):
            return ledger.finish(source_exhausted=source_exhausted)

    def close(self) -> None:
        """Finish what was handed over, stop the threads and give up the lock."""
        self._stack.close()

    def __enter__(self) -> "ActWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close()
        if kind is None and self._conveyor is not None:
            self._conveyor.check()

    def _check(self, shard: Shard) -> None:
        if self._short:
            raise StoreError("a shard with fewer rows than planned must be the last")
        if shard.index != self.next_shard or self.next_shard >= self.n_shards:
            raise StoreError(
                f"expected shard {self.next_shard} of {self.n_shards}, got shard {shard.index}"
            )
        if not 0 < shard.n_rows <= self.rows_in(shard.index):
            raise StoreError(
                f"shard {shard.index} shall hold {self.rows_in(shard.index)} rows, "
                f"got {shard.n_rows}"
            )
        shard.check(self.spec)
