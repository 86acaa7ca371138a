"""The two threads between a finished shard and its commit."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from actstore.errors import StoreError
from actstore.files import size_of
from actstore.ledger import Ledger
from actstore.manifest import CONTEXT_TOKENS
from actstore.metadata import shard_key
from actstore.moments import merged
from actstore.shardreader import ShardReader
from actstore.shardwriter import Shard, Written, write_files


class Conveyor:
    """Takes shards in order; one is encoded while the one before it is synced and committed.

    The first failure stops it: what came after is dropped, and every later call raises it.
    """

    def __init__(self, ledger: Ledger, stack: ExitStack, *, threads: int, queue: int) -> None:
        self._ledger = ledger
        self._moments = ledger.moments()
        self._failure: StoreError | None = None
        self._room = threading.Semaphore(queue)
        self._unplaced = threading.Semaphore(2)
        # Entered innermost last: what encodes must stop before what it feeds.
        self._placing = stack.enter_context(ThreadPoolExecutor(1, "actstore-commit"))
        self._pool = stack.enter_context(ThreadPoolExecutor(threads, "actstore-encode"))
        self._encoding = stack.enter_context(ThreadPoolExecutor(1, "actstore-write"))

    def put(self, shard: Shard) -> None:
        """Hand over a shard; blocks while as many as the queue allows are in memory.

        Raises:
            StoreError: If an earlier shard could not be written.
        """
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
        """Tell of the first failure there was.

        Raises:
            StoreError: That one.
        """
        if self._failure is not None:
            raise self._failure

    def _encode(self, shard: Shard) -> None:
        """On the writing thread: one shard to its files, while the one before it is committed."""
        try:
            if self._failure is None:
                ledger = self._ledger
                if shard.index < ledger.n_kept:
                    _require_same_start(shard, ledger)
                written = write_files(shard, ledger.spec, ledger.place, self._pool)
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
                self._place(written)
        except (OSError, StoreError) as error:
            self._fail(error)
        finally:
            written.close()
            self._unplaced.release()

    def _place(self, written: Written) -> None:
        written.place()
        moments = {
            name: merged(written.moments[name], start) for name, start in self._moments.items()
        }
        self._ledger.commit(
            shard=written.shard.index,
            rows=written.shard.n_rows,
            files={name: (tally.size, tally.crc) for name, tally in written.tallies.items()},
            moments=moments,
            cursor=written.shard.cursor,
        )
        self._moments = moments

    def _fail(self, error: OSError | StoreError) -> None:
        if self._failure is None:
            self._failure = (
                error if isinstance(error, StoreError) else failed(self._ledger.path, error)
            )


def _require_same_start(shard: Shard, ledger: Ledger) -> None:
    """Hold a last shard that is written again, longer, to the contexts it began with."""
    spec = ledger.spec
    name, rows = CONTEXT_TOKENS, ledger.manifest.n_rows
    sizes = [size_of(ledger.root / shard_key(name, k)) or 0 for k in range(ledger.n_kept)]
    old = ShardReader(ledger.root, spec, name, n_rows=rows, sizes=sizes).read(shard.index)
    if not np.array_equal(shard.tokens[: len(old)], old):
        raise StoreError(
            f"{ledger.path} cannot be extended: its source no longer gives the tokens it gave "
            f"for shard {shard.index}; write another store"
        )


def failed(path: Path, error: OSError) -> StoreError:
    """What a full or failing disk means to whoever writes the store at `path`."""
    return StoreError(
        f"{error.filename or path} could not be written: {error.strerror}; "
        "what was committed is kept, the same command goes on from there"
    )
