"""Find stores by where they lie."""

import os
from pathlib import Path

from actstore.errors import StoreError
from actstore.manifest import Manifest
from actstore.root import GROUP, peek


def find_stores(folder: Path) -> list[tuple[Path, Manifest | str]]:
    """Every store in `folder` and below it, sorted by path, the shallow first.

    Each comes with what it says of itself, or with the reason why it cannot. Folders that may not
    be looked into are passed over.

    Raises:
        StoreError: If `folder` is not one.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder")
    found: list[tuple[Path, Manifest | str]] = []
    waiting = [folder]
    for path in waiting:
        if os.path.isdir(path / GROUP):  # noqa: PTH112 - Path.is_dir may raise where one may not look
            found.append((path, _told(path)))
        else:
            waiting += _folders_in(path)
    return found


def _folders_in(path: Path) -> list[Path]:
    try:
        with os.scandir(path) as entries:
            return sorted(path / entry.name for entry in entries if _may_lead_to_one(entry))
    except OSError:
        return []


def _may_lead_to_one(entry: "os.DirEntry[str]") -> bool:
    """A folder; or a link to a store itself, since links to folders may go in circles."""
    return entry.is_dir(follow_symlinks=False) or (
        entry.is_symlink() and os.path.isdir(os.path.join(entry.path, GROUP))  # noqa: PTH112, PTH118
    )


def _told(path: Path) -> Manifest | str:
    try:
        return peek(path) or "it was not begun"
    except StoreError as error:
        return str(error)
