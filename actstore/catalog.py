"""Find stores by where they lie."""

from pathlib import Path

from actstore.errors import StoreError
from actstore.manifest import Manifest
from actstore.root import GROUP, peek


def find_stores(folder: Path) -> list[tuple[Path, Manifest | str]]:
    """Every store in `folder` and below it, sorted by path, the shallow first.

    Each comes with what it says of itself, or with the reason why it cannot.

    Raises:
        StoreError: If `folder` is not one.
    """
    if not folder.is_dir():
        raise StoreError(f"{folder} is not a folder")
    found: list[tuple[Path, Manifest | str]] = []
    waiting = [folder]
    for path in waiting:
        if (path / GROUP).is_dir():
            found.append((path, _told(path)))
        else:
            waiting += sorted(p for p in path.iterdir() if p.is_dir() and not p.is_symlink())
    return found


def _told(path: Path) -> Manifest | str:
    try:
        return peek(path) or "it was not begun"
    except StoreError as error:
        return str(error)
