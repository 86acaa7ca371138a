"""A folder for others: whole or absent, and reused where the same is there already."""

import filecmp
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from actstore.files import in_turn, make_folder, partial_of, remove, sync_folder
from pipeline.disk import writing
from pipeline.errors import ConfigError

_TAKEN = "{out} exists and holds something else: choose another {option}"


class Folder:
    """What is being written, until it has its name."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.partial = partial_of(out)
        self.reused = False
        """The very same files were there already; they were left as they are."""


@contextmanager
def whole_folder(out: Path, *, option: str) -> Generator[Folder, None, None]:
    """Within the block `partial` is filled; after it `out` holds that, or what was there is equal.

    Args:
        out: The folder.
        option: What chooses another one, for the message.

    Raises:
        ConfigError: `out` holds something else, which is left as it is.
        CheckpointError: the disk is full or fails.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ConfigError(_TAKEN.format(out=out, option=option))
    folder = Folder(out)
    with writing(out):
        make_folder(out.parent)
        with in_turn(out.with_name(f".{out.name}.lock")):
            remove(folder.partial)  # what a kill left
            make_folder(folder.partial)
            try:
                yield folder
                _put(folder, option)
            finally:
                remove(folder.partial)


def _put(folder: Folder, option: str) -> None:
    out = folder.out
    if out.exists() and any(out.iterdir()):
        if not _equal(folder.partial, out):
            raise ConfigError(_TAKEN.format(out=out, option=option))
        folder.reused = True
        return
    if out.exists():
        out.rmdir()
    folder.partial.rename(out)
    sync_folder(out.parent)


def _equal(one: Path, other: Path) -> bool:
    """Whether two folders hold the same files, byte for byte."""
    names = [sorted(p.relative_to(top) for p in top.rglob("*")) for top in (one, other)]
    return names[0] == names[1] and all(
        (one / name).is_dir() or filecmp.cmp(one / name, other / name, shallow=False)
        for name in names[0]
    )
