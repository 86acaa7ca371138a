"""What a full or failing disk says, as one line that tells how to go on.

And whether a folder can be written to, for who would otherwise learn it after the work.
"""

import errno
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from pipeline.errors import CheckpointError, ConfigError
from pipeline.progress import size

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says that has no room for a file."""


def disk_words(error: OSError) -> str:
    """Which path, what was wrong with it, and of a full disk how to go on."""
    what = error.strerror or str(error)
    if error.errno == errno.ENOTDIR and error.filename:
        return _not_a_folder(Path(error.filename))
    where = f"{error.filename}: " if error.filename else ""
    if error.errno not in FULL:
        return f"{where}{what}"
    return (
        f"{where}{what}: make room there, then the same command goes on; what was written before "
        "is whole and kept"
    )


@contextmanager
def full_disk_told() -> Generator[None, None, None]:
    """Within the block, or the function that is decorated, a full disk is one line.

    Raises:
        CheckpointError: in place of what the system raises.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL:
            raise
        raise CheckpointError(disk_words(error)) from error


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Within the block, a disk that fails is one line; of `path`, unless it says more exactly."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOTDIR:
            raise CheckpointError(_not_a_folder(Path(error.filename or path))) from error
        raise CheckpointError(
            f"cannot write to {error.filename or path} ({error.strerror or error}): "
            f"{'make room' if error.errno in FULL else 'see to that'}, "
            "then the same command goes on; what was written before is whole and kept"
        ) from error


def _not_a_folder(path: Path) -> str:
    return f"{nearest_there(path)} is a file where a folder is needed: name another path"


def nearest_there(path: Path) -> Path:
    """The path, or what there is above it."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def why_unwritable(folder: Path) -> str:
    """Why no file can be put into a folder, there or still to be made; empty where one can.

    Raises:
        CheckpointError: its disk is full, which can be put right where it is.
    """
    try:
        with TemporaryFile(dir=nearest_there(folder)):  # rights and mounts say it no other way
            pass
    except OSError as error:
        if error.errno in FULL:
            told = disk_words(OSError(error.errno, error.strerror, str(folder)))
            raise CheckpointError(told) from error
        return error.strerror or str(error)
    return ""


def require_room(out: Path, n_bytes: int) -> None:
    """Refuse, before any work, what the disk of `out` has no room for.

    Raises:
        ConfigError: it has not.
    """
    free = shutil.disk_usage(nearest_there(out)).free
    if n_bytes > free:
        raise ConfigError(
            f"{out} needs {size(n_bytes)}, {size(n_bytes - free)} more than the {size(free)} that "
            "its disk has free: make room, or choose another --out"
        )


def require_run_writable(run: Path, *, what: str) -> None:
    """Refuse, before any work, a run that cannot keep `what` is to be found; none is not refused.

    Raises:
        ConfigError: its folder may only be read.
    """
    if run.is_dir() and (why := why_unwritable(run)):
        raise ConfigError(
            f"{run} cannot be written to ({why}), where its {what} would be kept: type cp -r "
            f"{run} COPY, and name COPY in its place"
        )
