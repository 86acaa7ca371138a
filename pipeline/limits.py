"""What the machine has too little of, disk or memory, as one line."""

from collections.abc import Generator
from contextlib import contextmanager

from pipeline.disk import full_disk_told
from pipeline.errors import ConfigError

_SAID = (
    "allocate memory", "out of memory", "allowed dimension", "array is too big", "overflow",
)  # fmt: skip
"""Parts of what torch and numpy say, which have no exceptions of their own for it."""


@contextmanager
def full_memory_told() -> Generator[None, None, None]:
    """Within the block, or the function that is decorated, too little memory is one line.

    Raises:
        ConfigError: in place of what numpy and torch raise.
    """
    try:
        yield
    except (MemoryError, RuntimeError, TypeError, ValueError) as error:
        said = (str(error).splitlines() or [""])[0].strip()  # torch goes on with its frames
        if not (isinstance(error, MemoryError) or any(part in said.lower() for part in _SAID)):
            raise
        raise ConfigError(
            f"the machine has too little memory ({said[:200] or 'it does not say for what'}): "
            "lower `batch_size`, of a training also `expansion` or `window_rows`"
        ) from error


@contextmanager
def limits_told() -> Generator[None, None, None]:
    """The same, and a full disk, too.

    Raises:
        ConfigError: there is too little memory.
        CheckpointError: the disk is full.
    """
    with full_disk_told(), full_memory_told():
        yield
