"""The files of an SAE: of a folder, beside a file, or of a repository of the hub, as needed."""

import errno
import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike, fspath
from pathlib import Path, PurePosixPath

from pipeline.errors import CheckpointError, HubError
from pipeline.hub.repository import Address, cached, may_be_on_hub, names_of

PLACES = "name a folder, a file, or org/repo[/folder][@revision] of the hub"
_LISTED = 8
_SHOWN = 40
"""Characters of a name that is too long."""
_BELOW = ("checkpoints",)
"""Folders inside of one whose files count as its own."""


@dataclass(kw_only=True, eq=False)
class Files(ABC):
    """Files by name; a name may be `checkpoints/final.safetensors`."""

    source: str
    """What was named."""
    only: str = ""
    """The one file that was named, beside which others may lie."""
    read: set[str] = field(default_factory=set[str])
    """Names of those that were asked for."""

    @cached_property
    @abstractmethod
    def names(self) -> frozenset[str]:
        """All that are there."""

    @property
    @abstractmethod
    def parts(self) -> tuple[str, ...]:
        """Names of the folders that lead to them, and of the file if one was named."""

    def path(self, name: str) -> Path:
        """Where a file lies."""
        self.read.add(name)
        return self._path(name)

    @abstractmethod
    def _path(self, name: str) -> Path: ...

    def digest(self) -> str:
        """Of all that was read."""
        digest = hashlib.sha256()
        for name in sorted(self.read):
            with self._path(name).open("rb") as opened:
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            digest.update(f"{name} {sha256}\n".encode())
        return digest.hexdigest()

    @property
    def folders(self) -> frozenset[str]:
        """Those beside the files, with a slash at their end, as far as that is known."""
        return frozenset()

    @property
    def listed(self) -> str:
        """Some of the names, for a message."""
        some = sorted(self.names | self.folders)
        more = f" and {len(some) - _LISTED} more" if len(some) > _LISTED else ""
        return (", ".join(some[:_LISTED]) or "nothing") + more


@dataclass(kw_only=True, eq=False)
class LocalFiles(Files):
    """Of a folder."""

    folder: Path

    @cached_property
    def names(self) -> frozenset[str]:
        """All that are there."""
        try:
            found = {
                path.name  # of a link that leads nowhere, too: reading it says so
                for path in self.folder.iterdir()
                if path.is_file() or (path.is_symlink() and not path.exists())
            }
            for below in _BELOW:
                if (self.folder / below).is_dir():
                    found |= {
                        f"{below}/{path.name}"
                        for path in (self.folder / below).iterdir()
                        if path.is_file()
                    }
        except OSError as error:
            raise CheckpointError(
                f"cannot read {self.folder}: {error.strerror or error}"
            ) from error
        return frozenset(found)

    @property
    def folders(self) -> frozenset[str]:
        """Those in the folder."""
        return frozenset(f"{path.name}/" for path in self.folder.iterdir() if path.is_dir())

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of folders, and of the file."""
        return (*self.folder.absolute().parts, *([self.only] if self.only else []))

    def _path(self, name: str) -> Path:
        return self.folder / name


@dataclass(kw_only=True, eq=False)
class HubFiles(Files):
    """Of a folder of a repository, downloaded one by one into the hub's own cache."""

    address: Address

    @cached_property
    def _all(self) -> frozenset[str]:
        return names_of(self.address)

    @cached_property
    def names(self) -> frozenset[str]:
        """Those in the folder."""
        start = self.address.folder
        inside = {name[len(start) :] for name in self._all if name.startswith(start)}
        found = {
            name for name in inside if "/" not in name or str(PurePosixPath(name).parent) in _BELOW
        }
        if not found:
            folders = sorted({str(PurePosixPath(name).parent) for name in self._all} - {"."})
            some = ", ".join(folders[:_LISTED]) or "none"
            raise HubError(
                f"{self.address.what} has no folder {start.rstrip('/') or '.'!r} with files in it: "
                f"its folders are {some}{' and more' if len(folders) > _LISTED else ''}"
            )
        return frozenset(found)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the repository, of folders, and of the file."""
        return PurePosixPath(self.address.repo, self.address.folder, self.only).parts

    def _path(self, name: str) -> Path:
        return cached(self.address, name) / PurePosixPath(name).name

    def settled(self) -> "HubFiles":
        """The same, where a file of the repository was named, with that file in its folder."""
        named = PurePosixPath(self.address.folder)
        if str(named) in self._all:
            above = "" if str(named.parent) == "." else f"{named.parent}/"
            self.address, self.only = replace(self.address, folder=above), named.name
        return self


def named(source: object) -> str:
    """A source as it was given, sure to be a name that a file or a folder can have.

    Raises:
        CheckpointError: it is no text or path, or the system can look for nothing of that name.
    """
    given = fspath(source) if isinstance(source, PathLike) else source
    if not isinstance(given, str):
        raise CheckpointError(f"an SAE is named by a text or a path, got {source!r}: {PLACES}")
    try:
        Path(given).expanduser().lstat()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            short = f"{given[:_SHOWN]}..."
            raise CheckpointError(
                f"nothing can be at {short!r}, a name of {len(given):,} characters: {PLACES}"
            ) from error
    except (ValueError, RuntimeError) as error:  # a null byte; a ~user whom nobody knows
        raise CheckpointError(f"nothing can be at {given!r} ({error}): {PLACES}") from error
    return given


def is_hub_id(source: str) -> bool:
    """Whether a source that is not on this disk can be one of the hub.

    What begins with a folder that is here was meant to be on this disk.
    """
    return may_be_on_hub(source) and not Path(source.partition("/")[0]).exists()


def files_of(source: str) -> Files:
    """The files that a source names: a folder, a file, or `org/repo[/sub/folder][@revision]`.

    Raises:
        CheckpointError: nothing is there.
        HubError: the hub has no such repository, or cannot be reached.
    """
    path = Path(source).expanduser()
    if source.strip() and path.is_dir():
        return LocalFiles(source=source, folder=path)
    if path.is_file():
        return LocalFiles(source=source, folder=path.parent, only=path.name)
    if not is_hub_id(source):
        raise CheckpointError(f"nothing is at {source!r}: {PLACES}")
    return HubFiles(source=source, address=Address.of(source)).settled()
