"""Encoding beside the caller: by threads and by a process, to the same bytes."""

import os
import signal
from contextlib import closing

import numpy as np
import pytest

from actstore import encoding
from actstore.encoding import JOB_CHUNKS, SLOTS, ProcessEncoder, ThreadEncoder
from actstore.errors import StoreError
from actstore.writer import ActWriter
from tests.helpers.stores import files_of, fill, make_spec

CHUNK, WIDTH = 16, 24


@pytest.fixture
def rows() -> np.ndarray:
    """More than all slots hold at once, with a last chunk and a last piece that are cut short."""
    rng = np.random.default_rng(0)
    n = 40 * JOB_CHUNKS * CHUNK + CHUNK // 2
    return (rng.standard_normal((n, WIDTH), np.float32).view(np.uint32) >> 16).astype(np.uint16)


@pytest.fixture
def by_process(monkeypatch):
    """One whose slots are small."""
    monkeypatch.setattr(encoding, "SLOT_BYTES", 1)
    with closing(ProcessEncoder(chunk_bytes=CHUNK * WIDTH * 2, threads=2)) as encoder:
        yield encoder


def made(encoder, values, codec):
    """All chunks and moments, copied while they are valid."""
    chunks, moments = [], []
    for some in encoder.encode(values, codec=codec, chunk=CHUNK):
        chunks += [(bytes(payload), crc) for payload, crc in some.chunks]
        moments += some.moments
    return chunks, [m.to_bytes() for m in moments]


@pytest.mark.parametrize("codec", ["lz4", "zstd", "raw", "bitround:3"])
def test_a_process_gives_what_threads_give(rows, by_process, codec):
    with closing(ThreadEncoder(2)) as by_threads:
        chunks, moments = made(by_threads, rows, codec)
    assert len(chunks) == -(-len(rows) // CHUNK) > SLOTS * JOB_CHUNKS
    assert len(moments) == -(-len(chunks) // JOB_CHUNKS)
    assert made(by_process, rows, codec) == (chunks, moments)


def test_columns_have_no_moments(by_process):
    tokens = np.arange(10 * CHUNK * 12, dtype=np.int32).reshape(-1, 12)
    chunks, moments = made(by_process, tokens, "zstd")
    assert len(chunks) == 10
    assert not moments


def test_two_arrays_in_turn_are_not_mixed_up(rows, by_process):
    whole = [made(by_process, values, "lz4")[0] for values in (rows, rows[::-1].copy())]
    both = [
        by_process.encode(values, codec="lz4", chunk=CHUNK) for values in (rows, rows[::-1].copy())
    ]
    first = bytes(next(both[0]).chunks[0][0])
    both[0].close()  # with pieces of it on their way
    assert first == whole[0][0][0]
    got = [(bytes(p), crc) for some in both[1] for p, crc in some.chunks]
    assert got == whole[1]


def test_what_fails_in_the_process_is_raised_here(rows, by_process):
    with pytest.raises(KeyError, match="no such codec"):
        made(by_process, rows, "no such codec")
    assert made(by_process, rows, "lz4")[0], "and it goes on"


def test_a_process_that_was_killed_is_told_of(rows, by_process):
    os.kill(by_process._process.pid, signal.SIGKILL)
    with pytest.raises(StoreError, match="the process that encodes has ended"):
        made(by_process, rows, "lz4")


def test_a_process_may_end_while_somebody_holds_a_chunk(rows, by_process):
    held = next(by_process.encode(rows, codec="lz4", chunk=CHUNK)).chunks[0][0]
    before = bytes(held)
    by_process.close()
    assert bytes(held) == before


def test_a_store_is_the_same_by_a_process(tmp_path):
    written = {}
    for own_process in (False, True):
        path = tmp_path / f"{own_process}.actstore"
        with ActWriter.create_or_resume(
            path, make_spec(), n_rows=64, own_process=own_process
        ) as writer:
            assert isinstance(writer._conveyor._encoder, ProcessEncoder) is own_process
            fill(writer)
        written[own_process] = files_of(path)
    assert written[True] == written[False]


def test_where_no_process_can_be_had_threads_encode(tmp_path, monkeypatch):
    def refused(*_args, **_settings):
        raise BlockingIOError("no more processes")

    monkeypatch.setattr(encoding.subprocess, "Popen", refused)
    with ActWriter.create_or_resume(
        tmp_path / "a.actstore", make_spec(), n_rows=64, own_process=True
    ) as writer:
        assert isinstance(writer._conveyor._encoder, ThreadEncoder)
