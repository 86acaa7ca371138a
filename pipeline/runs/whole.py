"""A folder that is made whole or not at all: written under a temporary name, and renamed."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from actstore.files import partial_of, remove, sync_folder
from pipeline.disk import writing
from pipeline.errors import ConfigError
from pipeline.runs.belongs import BEGUN
from pipeline.runs.folder import LOCK, training_in

Made = TypeVar("Made")


def made_whole(
    out: Path, *, there: Callable[[], Made | None], make: Callable[[Path], Made]
) -> Made:
    """What is `there` already, or what `make` puts into a temporary folder that becomes `out`.

    Raises:
        ConfigError: another process works on it, or something else was begun there; and what
            `there` and `make` raise.
        CheckpointError: the disk fails.
    """
    if (done := there()) is not None:
        return done
    partial = partial_of(out)
    with writing(out), training_in(partial):
        if (done := there()) is not None:  # by now, another process may have ended
            return done
        if (partial / BEGUN).exists():
            raise ConfigError(
                f"{partial} is an unfinished fine-tuning, which goes on into {out}: choose another "
                "--out"
            )
        _clear(partial)
        try:
            made = make(partial)
            partial.rename(out)
        except BaseException:
            _clear(partial)
            raise
        sync_folder(out.parent)
        remove(out / LOCK)
        return made


def _clear(partial: Path) -> None:
    """Remove what a kill left, or what cannot be ended; nothing of what has its name already."""
    for leftover in [*partial.iterdir()] if partial.is_dir() else ():
        if leftover.name != LOCK:
            remove(leftover)


def is_taken(out: Path) -> bool:
    """Whether something is there, other than an empty folder."""
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))
