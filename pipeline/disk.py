"""What a full or failing disk says, as one line that tells how to go on."""

import errno
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import CheckpointError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a system says that has no room for a file."""


def disk_words(error: OSError) -> str:
    """Which path, what was wrong with it, and of a full disk how to go on."""
    what = error.strerror or str(error)
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
        raise CheckpointError(
            f"cannot write to {error.filename or path} ({error.strerror or error}): "
            f"{'make room' if error.errno in FULL else 'see to that'}, "
            "then the same command goes on; what was written before is whole and kept"
        ) from error
