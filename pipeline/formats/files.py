"""The files of an SAE: of a folder, beside a file, or of a repository of the hub, as needed."""

import hashlib
import re
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath

from pipeline.errors import CheckpointError
from pipeline.hub.explained import explained, network_error

_HUB = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+)((?:/[^/@]+)*)/?(?:@([^@]+))?")
_LISTED = 8
_TIMEOUT = 10.0  # seconds until the hub counts as unreachable
_BELOW = ("checkpoints",)
"""Folders inside of one whose files count as its own."""


@dataclass(kw_only=True, eq=False)
class Files:
    """Files by name; a name may be `checkpoints/final.safetensors`."""

    source: str
    """What was named."""
    only: str = ""
    """The one file that was named, beside which others may lie."""
    read: set[str] = field(default_factory=set[str])
    """Names of those that were asked for."""

    @cached_property
    def names(self) -> frozenset[str]:
        """All that are there."""
        raise NotImplementedError

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the folders that lead to them, and of the file if one was named."""
        raise NotImplementedError

    def path(self, name: str) -> Path:
        """Where a file lies."""
        self.read.add(name)
        return self._path(name)

    def _path(self, name: str) -> Path:
        raise NotImplementedError

    def digest(self) -> str:
        """Of all that was read."""
        digest = hashlib.sha256()
        for name in sorted(self.read):
            with self._path(name).open("rb") as opened:
                sha256 = hashlib.file_digest(opened, "sha256").hexdigest()
            digest.update(f"{name} {sha256}\n".encode())
        return digest.hexdigest()

    @property
    def listed(self) -> str:
        """Some of the names, for a message."""
        some = sorted(self.names)
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
            found = {path.name for path in self.folder.iterdir() if path.is_file()}
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
    def parts(self) -> tuple[str, ...]:
        """Names of folders, and of the file."""
        return (*self.folder.absolute().parts, *([self.only] if self.only else []))

    def _path(self, name: str) -> Path:
        return self.folder / name


@dataclass(kw_only=True, eq=False)
class HubFiles(Files):
    """Of a folder of a repository, downloaded one by one into the hub's own cache."""

    repo: str
    below: str
    """The folder inside it; empty for its root."""
    revision: str

    @cached_property
    def _all(self) -> frozenset[str]:
        """Names of all files of the repository; of those in the cache, where it is out of reach."""
        from huggingface_hub import HfApi, constants, errors, snapshot_download

        with explained(self._what, raises=CheckpointError):
            if not constants.HF_HUB_OFFLINE:
                try:
                    told = HfApi().model_info(self.repo, revision=self.revision, timeout=_TIMEOUT)
                    return frozenset(one.rfilename for one in told.siblings or ())
                except errors.HfHubHTTPError:
                    raise
                except (network_error(), ConnectionError, TimeoutError):
                    pass
            folder = Path(
                snapshot_download(self.repo, revision=self.revision, local_files_only=True)
            )
        return frozenset(
            path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
        )

    @property
    def _what(self) -> str:
        return f"repository {self.repo} (revision {self.revision})"

    @cached_property
    def names(self) -> frozenset[str]:
        """Those in the folder."""
        start = f"{self.below}/" if self.below else ""
        inside = {name[len(start) :] for name in self._all if name.startswith(start)}
        found = {
            name for name in inside if "/" not in name or str(PurePosixPath(name).parent) in _BELOW
        }
        if not found:
            folders = sorted({str(PurePosixPath(name).parent) for name in self._all} - {"."})
            some = ", ".join(folders[:_LISTED]) or "none"
            raise CheckpointError(
                f"{self._what} has no folder {self.below or '.'!r} with files in it: its folders "
                f"are {some}{' and more' if len(folders) > _LISTED else ''}"
            )
        return frozenset(found)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the repository, of folders, and of the file."""
        below = self.below.split("/") if self.below else []
        return (*self.repo.split("/"), *below, *([self.only] if self.only else []))

    def _path(self, name: str) -> Path:
        from huggingface_hub import constants, errors, hf_hub_download

        filename = f"{self.below}/{name}" if self.below else name
        with explained(f"{filename} of {self._what}", raises=CheckpointError):
            try:
                offline = constants.HF_HUB_OFFLINE
                found = hf_hub_download(
                    self.repo, filename, revision=self.revision, local_files_only=offline
                )
            except errors.EntryNotFoundError as error:
                raise CheckpointError(f"{self._what} has no {filename}") from error
        return Path(found)

    def settled(self) -> "HubFiles":
        """The same, where a file of the repository was named, with that file in its folder."""
        if self.below in self._all:
            *above, name = self.below.split("/")
            self.below, self.only = "/".join(above), name
        return self


def is_hub_id(source: str) -> bool:
    """Whether a source that is not on this disk can be one of the hub.

    What begins with a folder that is here was meant to be on this disk.
    """
    return _HUB.fullmatch(source) is not None and not Path(source.partition("/")[0]).exists()


def files_of(source: str) -> Files:
    """The files that a source names: a folder, a file, or `org/repo[/sub/folder][@revision]`.

    Raises:
        CheckpointError: nothing is there.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return LocalFiles(source=source, folder=path)
    if path.is_file():
        return LocalFiles(source=source, folder=path.parent, only=path.name)
    found = _HUB.fullmatch(source)
    if found is None or not is_hub_id(source):
        raise CheckpointError(
            f"nothing is at {source}: name a folder, a file, or org/repo[/folder][@revision] of "
            "the hub"
        )
    return HubFiles(
        source=source, repo=found[1], below=found[2].strip("/"), revision=found[3] or "main"
    ).settled()
