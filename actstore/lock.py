"""One writer at a time: an advisory lock that dies with its process."""

import fcntl
import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from actstore.errors import StoreError

LOCK = "LOCK"


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Hold the lock of the store at `path`; what a dead process left behind does not count.

    Raises:
        StoreError: If another writer holds it; names its process and host.
    """
    fd = os.open(path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{path} is being written by {_holder(fd)}; wait for it, or stop it"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(fd)


def _holder(fd: int) -> str:
    try:
        told = json.loads(os.pread(fd, 1024, 0))
        return f"process {told['pid']} on {told['host']}"
    except (ValueError, KeyError):  # it has the lock, and has not said so yet
        return "another process"
