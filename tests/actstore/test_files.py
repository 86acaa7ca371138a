"""The lock that a file is, and files that several write at once."""

import errno
import fcntl
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from time import sleep

import pytest

from actstore.files import in_turn, locked, partial_of, write_file


def held(holder: str) -> Exception:
    return RuntimeError(holder)


def test_one_holds_it_at_a_time_though_the_file_stays(tmp_path):
    file = tmp_path / "lock"
    me = f"process {os.getpid()} on "
    with locked(file, held), pytest.raises(RuntimeError, match=me), locked(file, held):
        pass
    with locked(file, held):
        pass


def test_a_lock_that_was_removed_while_it_was_waited_for_is_not_taken_for_one(
    tmp_path, monkeypatch
):
    """Its holder removes it at the end; someone else may have made another by then."""
    file, flock = tmp_path / "lock", fcntl.flock
    removals = [file.unlink]

    def late(fd: int, operation: int) -> None:
        if removals:
            removals.pop()()
        flock(fd, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(file, held), pytest.raises(RuntimeError), locked(file, held):
        pass


def test_without_locks_a_warning_is_all_there_is(tmp_path, monkeypatch, caplog):
    def none(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(tmp_path / "lock", held):
        assert f"{tmp_path}: no locks here" in caplog.text


def test_of_several_that_write_one_file_each_leaves_it_whole(tmp_path):
    """Threads are to `flock` what processes are: each has opened the file for itself."""
    file = tmp_path / "eval.json"
    contents = [bytes([65 + i]) * (3 + i * 7919) for i in range(4)]
    write_file(file, [contents[0]])

    def write(content: bytes) -> None:
        for _ in range(60):
            write_file(file, [content])
            assert file.read_bytes() in contents

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, contents))
    assert [path.name for path in tmp_path.iterdir()] == ["eval.json"]


def test_what_a_kill_left_of_a_longer_file_is_not_written_after(tmp_path):
    file = tmp_path / "a"
    partial_of(file).write_bytes(b"longer than that")
    write_file(file, [b"short"])
    assert file.read_bytes() == b"short"


def test_turns_are_taken_and_leave_nothing(tmp_path):
    busy, seen = [], []

    def work(i: int) -> None:
        with in_turn(tmp_path / ".lock"):
            busy.append(i)
            sleep(0.001)
            seen.append(len(busy))
            busy.remove(i)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(100)))
    assert seen == [1] * 100
    assert [*tmp_path.iterdir()] == []


def test_nobody_waits_for_ever_for_who_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("actstore.files.PATIENCE", 0.02)
    file = tmp_path / "a"
    with locked(partial_of(file), held), pytest.raises(OSError, match=r"on .* has been"):
        write_file(file, [b"mine"])
    assert not file.exists()


def test_a_wait_that_is_noticed_says_at_once_for_whom(tmp_path, caplog):
    lock, order = tmp_path / ".out.lock", []

    def second() -> None:
        with in_turn(lock):
            order.append("second")

    with ThreadPoolExecutor(1) as pool:
        with in_turn(lock):
            waiting = pool.submit(second)
            sleep(1)
            assert [r.getMessage() for r in caplog.records] == [
                f"waiting for process {os.getpid()} on {socket.gethostname()}, which holds {lock}, "
                "for 60 s at most"
            ]
            order.append("first")
        waiting.result()
    assert order == ["first", "second"] and [*tmp_path.iterdir()] == []


def test_who_fills_a_file_is_not_taken_from_what_is_in_it(tmp_path, monkeypatch):
    monkeypatch.setattr("actstore.files.PATIENCE", 0.02)
    file = tmp_path / "a"
    with locked(partial_of(file), held):
        partial_of(file).write_bytes(b"[1]")
        with pytest.raises(OSError, match="another process has been"):
            write_file(file, [b"mine"])
