"""Chunks encoded beside the caller: by threads of this process, or by a process of its own.

Threads share one interpreter lock with whoever computes the rows: a loop that launches many small
kernels keeps half of its speed beside them. A process shares nothing with it but memory, which rows
go and bytes come back through; for these copies it is slower by itself. Both give the same bytes
and the same moments.
"""

import math
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from socket import socketpair
from typing import Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Shaped

from actstore.codec import CRC_BYTES, encode, kept_bits, rounded
from actstore.errors import StoreError
from actstore.moments import Moments
from actstore.shardfile import Parts, padded

Values = Shaped[np.ndarray, "n ..."]

JOB_CHUNKS = 8
"""Whose moments are taken together: the same for all encoders, or sums would round otherwise."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Some chunks of an array, one after another."""

    chunks: Sequence[Parts]
    """Valid until the next are asked for."""
    moments: Sequence[Moments]
    """Of each `JOB_CHUNKS` of them, if they are of activations."""


@runtime_checkable
class Encoder(Protocol):
    """What turns the rows of a shard into chunks."""

    def encode(self, values: Values, *, codec: str, chunk: int) -> Generator[Encoded]:
        """All chunks of an array, in order; what is not taken is let go of by closing it."""
        ...

    def close(self) -> None:
        """Stop working."""
        ...


def n_cores() -> int:
    """That this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def encode_chunks(values: Values, codec: str, chunk: int) -> Encoded:
    """Chunks encoded here and now."""
    moments, stored = (), values
    if values.ndim == 2 and values.dtype != np.int32:
        keep = kept_bits(codec)
        stored = values if keep is None else rounded(values, keep=keep)
        moments = (Moments.of(stored, before=None if keep is None else values),)
    parts = [stored[i : i + chunk] for i in range(0, len(stored), chunk)]
    return Encoded(chunks=[encode(padded(part, chunk), codec) for part in parts], moments=moments)


@final
class ThreadEncoder:
    """Encodes in threads of this process."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, "actstore-encode")

    def close(self) -> None:
        """Stop the threads, once they have done what they are at."""
        self._pool.shutdown()

    def encode(self, values: Values, *, codec: str, chunk: int) -> Generator[Encoded]:
        """As `Encoder` says; all of it is begun at once."""
        jobs = [
            self._pool.submit(encode_chunks, some, codec, chunk)
            for some in _cut(values, JOB_CHUNKS * chunk)
        ]

        def results() -> Generator[Encoded]:
            try:
                for job in jobs:
                    yield job.result()
            finally:
                for job in jobs:
                    job.cancel()

        return results()


def _cut(values: Values, n: int) -> list[Shaped[np.ndarray, "_ ..."]]:
    return [values[i : i + n] for i in range(0, len(values), n)]


SLOTS = 4
"""Pieces on their way at once."""
SLOT_BYTES = 2**22
"""Of the rows of a piece, about; its chunks come back in as much memory again."""
_GROWTH = 64  # bytes that encoding may add to a chunk
_IDLE = 5  # the process is this much nicer than whoever computes the rows


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """Rows that lie in a slot, to be encoded."""

    slot: int
    shape: tuple[int, ...]
    dtype: str
    codec: str
    chunk: int


@dataclass(frozen=True, kw_only=True)
class _Answer:
    """What was made of them: chunks lie one after another in the other half of the slot."""

    slot: int
    sizes: Sequence[int]
    crcs: bytes
    moments: Sequence[Moments]


@final
class ProcessEncoder:
    """Encodes in a process of its own, which ends with this one.

    Args:
        chunk_bytes: Of the largest chunk there will be.
        threads: Of that process.

    Raises:
        OSError: no process, or no memory to share with one, can be had.
    """

    def __init__(self, *, chunk_bytes: int, threads: int) -> None:
        self._half = max(SLOT_BYTES, JOB_CHUNKS * (chunk_bytes + _GROWTH))
        self._answers: dict[int, _Answer | _Failed] = {}
        self._free = deque(range(SLOTS))
        ours, theirs = socketpair()
        with ours, theirs, shared_memory(2 * self._half * SLOTS) as memory:
            told = theirs.fileno(), memory, self._half, threads
            code = (
                f"import sys; sys.path[:] = {sys.path!r}; "
                f"from actstore.encoding import serve; serve(*{told!r})"
            )
            self._process = subprocess.Popen(
                [sys.executable, "-c", code], pass_fds=told[:2], stdin=subprocess.DEVNULL
            )
            self._mapped = mmap.mmap(memory, 0)
            self._pipe = Connection(ours.detach())

    def encode(self, values: Values, *, codec: str, chunk: int) -> Generator[Encoded]:
        """As `Encoder` says; some pieces are begun ahead of what is taken.

        Raises:
            StoreError: the process has ended, as one that is killed for its memory has.
        """
        chunk_bytes = chunk * math.prod(values.shape[1:]) * values.itemsize
        n_jobs = max(1, self._half // (JOB_CHUNKS * (chunk_bytes + _GROWTH)))
        pieces = iter(_cut(values, n_jobs * JOB_CHUNKS * chunk))
        ahead = deque[int]()
        try:
            while True:
                while self._free and (rows := next(pieces, None)) is not None:
                    ahead.append(self._send(rows, codec, chunk))
                if not ahead:
                    return
                slot = ahead.popleft()
                try:
                    yield self._received(slot)
                finally:
                    self._free.append(slot)
        finally:
            for slot in ahead:  # they are being worked on
                with suppress(StoreError):  # told of already
                    self._answer(slot)
                self._free.append(slot)

    def close(self) -> None:
        """End the process; what it works on is let go of."""
        self._pipe.close()
        self._process.wait()
        with suppress(BufferError):  # it goes with the last chunk that somebody holds
            self._mapped.close()

    def _send(self, rows: Values, codec: str, chunk: int) -> int:
        slot = self._free.popleft()
        place = _place(self._mapped, 2 * slot * self._half, rows.shape, rows.dtype)
        np.copyto(place, rows)
        piece = _Piece(slot=slot, shape=rows.shape, dtype=rows.dtype.str, codec=codec, chunk=chunk)
        with _ended_told():
            self._pipe.send(piece)
        return slot

    def _received(self, slot: int) -> Encoded:
        answer = self._answer(slot)
        if isinstance(answer, _Failed):
            raise answer.error
        start, chunks = (2 * slot + 1) * self._half, list[Parts]()
        mapped = memoryview(self._mapped)
        for i, size in enumerate(answer.sizes):
            crc = answer.crcs[CRC_BYTES * i : CRC_BYTES * (i + 1)]
            chunks.append((mapped[start : start + size], crc))
            start += size
        return Encoded(chunks=chunks, moments=answer.moments)

    def _answer(self, slot: int) -> "_Answer | _Failed":
        """Of a slot; those of others that come before it are kept for their turn."""
        while slot not in self._answers:
            with _ended_told():
                told: _Answer | _Failed = self._pipe.recv()
            self._answers[told.slot] = told
        return self._answers.pop(slot)


@dataclass(frozen=True, kw_only=True)
class _Failed:
    """An answer that is none."""

    slot: int
    error: Exception


@contextmanager
def _ended_told() -> Generator[None]:
    """Raise StoreError where the other process is gone."""
    ended = False
    try:
        yield
    except (EOFError, ConnectionError):
        ended = True
    if ended:  # not within: what was being sent would live on in the error's frames
        raise StoreError(
            "the process that encodes has ended, as one does that is killed for its memory; what "
            "was committed is kept, the same command goes on from there"
        )


@contextmanager
def shared_memory(n_bytes: int) -> Generator[int]:
    """A descriptor of memory that another process can map; it is gone with the last mapping."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("actstore")
    else:
        with tempfile.TemporaryFile() as file:  # its name is gone already
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, n_bytes)
        yield fd
    finally:
        os.close(fd)


def _place(
    mapped: mmap.mmap, offset: int, shape: tuple[int, ...], dtype: np.dtype
) -> Shaped[np.ndarray, "..."]:
    return np.frombuffer(mapped, dtype, math.prod(shape), offset).reshape(shape)


def serve(pipe: int, memory: int, half: int, threads: int) -> None:
    """Encode what comes through a pipe until it is closed: the other process, from its start."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever asks
    with suppress(OSError):
        os.nice(_IDLE)
    mapped, lock = mmap.mmap(memory, 0), threading.Lock()

    def work(piece: _Piece) -> None:
        try:
            told: _Answer | _Failed = _worked(piece, mapped, half)
        except Exception as error:  # whoever asked raises it
            told = _Failed(slot=piece.slot, error=error)
        with lock, suppress(OSError):  # nobody may be there to hear
            connection.send(told)

    with (
        Connection(pipe) as connection,
        ThreadPoolExecutor(threads) as pool,
        suppress(EOFError, OSError),  # nobody asks any more
    ):
        while True:
            pool.submit(work, connection.recv())


def _worked(piece: _Piece, mapped: mmap.mmap, half: int) -> _Answer:
    start = 2 * piece.slot * half
    rows = _place(mapped, start, piece.shape, np.dtype(piece.dtype))
    sizes, crcs, moments, end = list[int](), list[bytes](), list[Moments](), start + half
    for some in _cut(rows, JOB_CHUNKS * piece.chunk):
        encoded = encode_chunks(some, piece.codec, piece.chunk)
        moments += encoded.moments
        for payload, crc in encoded.chunks:
            mapped[end : end + len(payload)] = payload
            end += len(payload)
            sizes.append(len(payload))
            crcs.append(crc)
    return _Answer(slot=piece.slot, sizes=sizes, crcs=b"".join(crcs), moments=moments)
