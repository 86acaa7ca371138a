"""Find stores by where they lie; remove one.

All of it goes and nothing else, and never so that half of it reads as a whole.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from actstore.errors import StoreError
from actstore.files import LOCK, PARTIAL, partial_of, remove, sync_folder, writing
from actstore.ledger import JOURNAL, MOMENTS, STAGING, holds_rows, read_journal
from actstore.manifest import TOKEN_ARRAYS, Manifest
from actstore.merge import ADDING
from actstore.summary import GROUP, peek, summary_name

OWN = (GROUP, MOMENTS, STAGING, ADDING, JOURNAL, LOCK)
"""What a store's folder may hold."""
SUMMARIES = f"{summary_name(0)[:-1]}*"


@dataclass(frozen=True, kw_only=True)
class Removable:
    """A store that can be removed, and what would go."""

    path: Path
    target: Path | None
    """Where `path` leads if it is a link: then the link goes, and the store stays."""
    manifest: Manifest | None
    """None if its root is damaged, or gone already."""
    n_bytes: int
    """Of all files."""


def removable(path: Path) -> Removable:
    """Recognise what may be removed: a store, whole, unfinished, damaged or half removed.

    Raises:
        StoreError: If it is none, or holds a file that no store has.
    """
    names = _names(path)
    foreign = sorted(name for name in names if name.removesuffix(PARTIAL) not in OWN)
    if foreign:
        raise StoreError(f"{path} holds {foreign[0]}, which no store does: nothing was removed")
    try:
        manifest, problem = peek(path), "there is nothing of one"
    except StoreError as error:
        manifest, problem = None, str(error)
    arrays = _arrays(path, manifest)
    if not (arrays or half_removed(path) or _just_begun(path)):
        raise StoreError(f"{path} is no activation store ({problem}): nothing was removed")
    for name in sorted(_names(path / GROUP)):
        if not (name in arrays or name == "zarr.json" or name.endswith(PARTIAL)):
            raise StoreError(
                f"{path / GROUP} holds {name}, which is not the store's: move it away first; "
                "nothing was removed"
            )
    return Removable(
        path=path,
        target=path.readlink() if path.is_symlink() else None,
        manifest=manifest,
        n_bytes=0 if path.is_symlink() else sum(map(_size, _files(path))),
    )


def require_unlinked(path: Path, known: Iterable[Path] = ()) -> None:
    """Refuse a store that links lead to, in its own folder or below those that are known.

    Raises:
        StoreError: If there are any; names them.
    """
    if path.is_symlink() or (path / GROUP).is_symlink():
        return  # only that link will go
    real = os.path.realpath
    near = {*_folders_in(path.absolute().parent)}
    for folder in known:
        with suppress(StoreError):  # it is none, or none any more
            near |= {found.absolute() for found, _ in find_stores(folder)}
    links = sorted(
        str(other)
        for other in near
        if real(other / GROUP) == real(path / GROUP)
        and (other.is_symlink() or real(other) != real(path))
    )
    if links:
        raise StoreError(
            f"{path} is where {', '.join(links)} lead{'s' if len(links) == 1 else ''}: remove "
            f"that first, as saepipe store rm {links[0]}; nothing was removed"
        )


def remove_store(path: Path, known: Iterable[Path] = ()) -> None:
    """Remove a store; or, where `path` is a link to one, the link alone.

    Whoever has the store open goes on reading it. Stopped half way, the next call goes on.

    Args:
        path: The store's folder.
        known: Folders below which links to it may lie, beside its own.

    Raises:
        StoreError: If it is no store, links lead to it, or a writer is at work on it.
        OSError: If the system refuses.
    """
    path = path.absolute()  # a folder cannot be removed as "."
    if removable(path).target is not None:
        path.unlink()
        return
    require_unlinked(path, known)
    with writing(path):
        removable(path)
        _remove(path)


def remove_rowless(path: Path) -> bool:
    """Remove a store that no shard was ever committed to; whether it is gone.

    Raises:
        StoreError: If it is no store, or a writer is at work on it.
        OSError: If the system refuses.
    """
    removable(path)
    with writing(path):
        if holds_rows(path):  # it may have come to some since it was last looked at
            return False
        _remove(path)
    return True


def _remove(path: Path) -> None:
    clear(path)
    remove(path / LOCK)
    path.rmdir()
    sync_folder(path.parent)


def clear(path: Path) -> None:
    """Remove, under its lock, all of a store but the lock.

    The group gets another name first and goes last, so that at no time half of one is met, and
    that what else is left is known for what it is.
    """
    group, gone = path / GROUP, partial_of(path / GROUP)
    if os.path.lexists(group):
        remove(gone)
        group.replace(gone)
        sync_folder(path)
    for name in OWN[1:-1]:
        remove(partial_of(path / name))
        remove(path / name)
    remove(gone)


def half_removed(path: Path) -> bool:
    """Whether someone began to remove a store, and died."""
    return os.path.lexists(partial_of(path / GROUP))


def _arrays(path: Path, manifest: Manifest | None) -> set[str]:
    """The arrays that a store owns up to, by its root, its journal or its summaries; or none."""
    roots = [manifest, _root(path / ADDING)]
    told = {name for root in roots if root is not None for name in root.spec.arrays}
    for entry in read_journal(path):
        told.update(entry.files)
    for summary in (path / GROUP).glob(SUMMARIES):
        told.add(summary.name)
        told.update(file.name.removeprefix("mean.") for file in summary.glob("mean.*"))
    return told | {*TOKEN_ARRAYS} if told else told


def _root(path: Path) -> Manifest | None:
    try:
        return peek(path)
    except StoreError:
        return None


def _names(folder: Path) -> list[str]:
    return [file.name for file in folder.iterdir()] if folder.is_dir() else []


def _files(path: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(path):
        yield from (Path(folder, name) for name in names)


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except FileNotFoundError:  # a writer is at work
        return 0


def _just_begun(path: Path) -> bool:
    """Whether there is no more than what a writer makes before the root: nothing of value."""
    begun = {path / LOCK, *map(partial_of, (path / JOURNAL, path / GROUP / "zarr.json"))}
    files = {file for file in _files(path) if file != path / JOURNAL or _size(file)}
    return (path / LOCK).exists() and files <= begun


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
