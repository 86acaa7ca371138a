"""The lock that a file is."""

import errno
import fcntl
import os

import pytest

from actstore.files import locked


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
