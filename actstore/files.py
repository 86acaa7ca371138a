"""Files that are whole or absent, and one writer at a time.

A file is written under a temporary name, synced and renamed, and its folder synced. The lock is an
advisory one that dies with its process. What a full or failing disk says, OSError, passes through.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

from actstore.errors import StoreError

log = logging.getLogger(__name__)

PARTIAL = ".partial"
MAX_PARTS = 16  # of one call: every system allows as many
SIDE_BY_SIDE = 16  # files that are synced at once


def partial_of(path: Path) -> Path:
    """The temporary name under which `path` is written."""
    return path.with_name(path.name + PARTIAL)


def sync_folder(path: Path) -> None:
    """Make the names in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(fd: int) -> None:
    """Make the bytes of a file survive a power cut."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def write_all(fd: int, parts: Iterable[bytes | memoryview]) -> None:
    """Write every byte of `parts`: one call may write fewer than it is given."""
    waiting = [memoryview(part).cast("B") for part in parts if len(part)]
    while waiting:
        done = os.writev(fd, waiting[:MAX_PARTS])
        while waiting and done >= len(waiting[0]):
            done -= len(waiting.pop(0))
        if waiting:
            waiting[0] = waiting[0][done:]


def write_file(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Put `parts`, one after another, into `path`; whatever it held before stays until the end.

    Of several processes that write the same file at once, one waits for the other.

    Raises:
        OSError: If the disk is full or fails, with the file's name, and if there is no room for it,
            with its size; `path` is as it was and the temporary file is gone.
    """
    temporary, parts = partial_of(path), list(parts)
    try:
        with _in_turn(temporary) as fd:
            try:
                if os.fstat(fd).st_size:
                    os.ftruncate(fd, 0)  # what a kill left
                write_all(fd, parts)
                sync_file(fd)
                temporary.replace(path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise
    except OSError as error:
        if error.filename is None:  # what was open already: it could not be filled
            n_bytes = sum(memoryview(part).nbytes for part in parts)
            said = error.strerror or str(error)
            error.filename, error.strerror = str(path), f"{said} ({n_bytes:,} bytes)"
        raise
    sync_folder(path.parent)


def write_json(path: Path, document: object) -> None:
    """Put `document` into `path` as indented JSON."""
    write_file(path, [readable_json(document)])


def write_many(files: Mapping[Path, Iterable[bytes | memoryview]]) -> None:
    """Write several files, and their folders, side by side: a disk syncs many as fast as one."""

    def write(item: tuple[Path, Iterable[bytes | memoryview]]) -> None:
        make_folder(item[0].parent)
        write_file(*item)

    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for _ in pool.map(write, files.items()):
            pass


def readable_json(document: object) -> bytes:
    """`document` as it stands in a zarr.json."""
    return json.dumps(document, indent=2, allow_nan=False).encode()


def canonical_json(document: object) -> bytes:
    """The one spelling of `document` that checksums are taken of."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def make_folder(path: Path) -> None:
    """Create `path` and its parents, and make their names survive a power cut."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder with all it holds, if it is there; of a link, the link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def size_of(path: Path) -> int | None:
    """Bytes of a file; None if it is absent."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - asked for every file of a store
    except FileNotFoundError:
        return None


LOCK = "LOCK"
PATIENCE = 60.0
"""Seconds that one waits for a turn: who has it may have been stopped."""
UNTOLD = 0.2
"""Seconds of them that nobody would notice, and hears nothing of."""
UNLOCKABLE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)
"""What a file system says that has no locks."""


@contextmanager
def writing(path: Path) -> Generator[None]:
    """Hold the lock of the store at `path`; what a dead process left behind does not count.

    Raises:
        StoreError: If another writer holds it; names its process and host.
    """

    def held(holder: str) -> StoreError:
        return StoreError(f"{path} is being written by {holder}; wait for it, or stop it")

    with locked(path / LOCK, held):
        yield


@contextmanager
def locked(file: Path, held: Callable[[str], Exception]) -> Generator[None]:
    """Hold the lock that `file` is, which says who holds it; the folder must be there.

    The lock dies with its process, whatever ends that. Where the file system has none, a warning
    says so, and nothing is held.

    Args:
        file: Created if it is absent. While its lock is held, it may be moved or removed.
        held: What to raise if another has it, from words for that process and its host.
    """
    fd = _locked_fd(file, held)
    try:
        _say_holder(fd)
        yield
    finally:
        os.close(fd)


def _say_holder(fd: int) -> None:
    who = json.dumps({"pid": os.getpid(), "host": socket.gethostname()})
    with suppress(OSError):  # on a full disk nobody learns who holds it: it is held
        os.ftruncate(fd, 0)
        os.pwrite(fd, who.encode(), 0)


@contextmanager
def in_turn(file: Path) -> Generator[None]:
    """Wait for the lock that `file` is, and hold it; it is gone afterwards.

    A wait that one would notice is told in a warning: for which process, and up to when.
    """
    with _in_turn(file) as fd:
        _say_holder(fd)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


@contextmanager
def _in_turn(file: Path) -> Generator[int]:
    fd = _locked_fd(file, None)
    try:
        yield fd
    finally:
        os.close(fd)


def _locked_fd(file: Path, held: Callable[[str], Exception] | None) -> int:
    """The file, open and locked; None waits for whoever has the lock."""
    while True:
        fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(file, fd, held)
        except BaseException:
            os.close(fd)
            raise
        if _is_at(file, fd):  # or whoever held it removed it meanwhile
            return fd
        os.close(fd)


def _lock(file: Path, fd: int, held: Callable[[str], Exception] | None) -> None:
    start, told = time.monotonic(), False
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if held is not None:
                raise held(_holder(fd)) from None
            waited = time.monotonic() - start
            if waited > PATIENCE:
                said = f"{_holder(fd)} has been writing it for {PATIENCE:.0f} s"
                raise OSError(errno.EBUSY, said, str(file)) from None
            if waited > UNTOLD and not told:
                told = True
                log.warning(
                    "waiting for %s, which holds %s, for %.0f s at most",
                    _holder(fd), file, PATIENCE,
                )  # fmt: skip
            time.sleep(0.005)
        except OSError as error:
            if error.errno not in UNLOCKABLE:
                raise
            if held is not None:
                log.warning("%s: no locks here, so see to it that nobody else writes", file.parent)
            return
        else:
            return


def _is_at(file: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(fd))  # noqa: PTH116 - of a pair
    except FileNotFoundError:
        return False


def _holder(fd: int) -> str:
    try:
        told = json.loads(os.pread(fd, 1024, 0))
        return f"process {told['pid']} on {told['host']}"
    except (ValueError, KeyError, TypeError):  # it has not said so, or fills this very file
        return "another process"
