"""Repositories of the hub: how they are named, what they hold, and their files in a folder here.

A repository is looked at once, at one commit; what is fetched is held to what the hub says of each
file: the SHA-256 of large ones, git's own checksum of small ones.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.errors import ConfigError, HubError
from pipeline.hub.explained import explained, network_error, transfer_explained

Kind = Literal["model", "dataset"]
Content = Path | bytes
"""Of a file: where it lies, or what is in it."""

MAIN = "main"
_TIMEOUT = 10.0  # seconds until the hub counts as unreachable
_THREADS = 8
_ADDRESS = re.compile(
    r"(?:hf://)?(?:(?P<kind>dataset|model)s/)?"
    r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?P<folder>(?:/[^/@\\]+)*)/?"
    r"(?:@(?P<revision>[^\s@]+))?",
    re.ASCII,
)


@dataclass(frozen=True, kw_only=True)
class Address:
    """`org/name[/sub/folder][@revision]`; a dataset has `datasets/` before that."""

    repo: str
    folder: str = ""
    """With a slash at its end; empty for all of the repository."""
    revision: str = MAIN
    kind: Kind | None = None
    """None where that is not said."""

    @staticmethod
    def of(name: str) -> "Address":
        """What people type.

        Raises:
            ConfigError: it names no repository.
        """
        found = _ADDRESS.fullmatch(name)
        folder = found["folder"].strip("/") if found else ".."
        if found is None or {".", ".."} & set(folder.split("/")):
            raise ConfigError(
                f"{name!r} names no repository of the hub: type ORG/NAME, or "
                "ORG/NAME/FOLDER@REVISION, and datasets/ before it for a dataset"
            )
        return Address(
            repo=found["repo"],
            folder=f"{folder}/" if folder else "",
            revision=found["revision"] or MAIN,
            kind=next((kind for kind in get_args(Kind) if kind == found["kind"]), None),
        )

    def __str__(self) -> str:
        """As it is typed."""
        kind = "datasets/" if self.kind == "dataset" else ""
        revision = "" if self.revision == MAIN else f"@{self.revision}"
        return f"{kind}{self.repo}/{self.folder}".rstrip("/") + revision

    @property
    def what(self) -> str:
        """What it is called in messages."""
        revision = "" if self.revision == MAIN else f" (revision {self.revision})"
        return f"{self.kind or 'repository'} {self.repo}{revision}"


def may_be_on_hub(name: str) -> bool:
    """Whether a name that leads to nothing here can be that of a repository."""
    return not name.startswith((".", "/", "~")) and _ADDRESS.fullmatch(name) is not None


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file, as the hub tells of it."""

    n_bytes: int
    digest: str
    """SHA-256 of a large file; of others what git calls them."""
    large: bool

    def is_(self, content: Content) -> bool:
        """Whether that is its content, every byte of it."""
        if isinstance(content, Path) and not content.is_file():
            return False
        if size_of(content) != self.n_bytes:
            return False
        if not self.large:
            data = content if isinstance(content, bytes) else content.read_bytes()
            return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() == self.digest
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest() == self.digest
        with content.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest() == self.digest


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A repository at a commit, or a folder of it."""

    address: Address
    """Its kind is known."""
    commit: str
    private: bool
    files: Mapping[str, RemoteFile]
    """By their path from the folder."""


def size_of(content: Content) -> int:
    """Bytes of a file."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def look(address: Address) -> Snapshot:
    """What is there now; a name without a kind is a model's, or else a dataset's.

    Raises:
        HubError: there is no such repository, revision or folder, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi, errors

    kinds: Sequence[Kind] = [address.kind] if address.kind else get_args(Kind)
    for kind in kinds:
        there = replace(address, kind=kind)
        try:
            with explained(there.what, raises=HubError, only_there=True):
                info = HfApi().repo_info(
                    address.repo, revision=address.revision, repo_type=kind, timeout=_TIMEOUT
                )
                return Snapshot(
                    address=there,
                    commit=str(info.sha or ""),
                    private=bool(info.private),
                    files=_files_of(there, str(info.sha or "")),
                )
        except HubError as error:
            match error.__cause__:
                case errors.GatedRepoError():
                    raise
                case errors.RepositoryNotFoundError() if kind != kinds[-1]:
                    continue
                case errors.RepositoryNotFoundError() as absent:  # of no kind
                    with explained(address.what, raises=HubError):
                        raise absent from error
                case _:
                    raise
    raise AssertionError("one of the kinds was found, or all were refused")


def _files_of(address: Address, commit: str) -> dict[str, RemoteFile]:
    from huggingface_hub import HfApi, errors

    folder = address.folder.rstrip("/")
    try:
        tree = list(
            HfApi().list_repo_tree(
                address.repo,
                path_in_repo=folder or None,
                recursive=True,
                revision=commit or address.revision,
                repo_type=address.kind,
            )
        )
    except errors.EntryNotFoundError as error:
        raise HubError(f"the hub has no folder {folder} in {address.what}") from error
    found: dict[str, RemoteFile] = {}
    for entry in tree:
        if not hasattr(entry, "blob_id"):
            continue
        name = entry.path.removeprefix(address.folder)
        if _leads_away(name):
            raise HubError(f"{address.what} has a file named {entry.path!r}, which is refused")
        lfs = getattr(entry, "lfs", None)
        digest = lfs.sha256 if lfs else getattr(entry, "blob_id", "")
        size = int(getattr(entry, "size", 0))
        found[name] = RemoteFile(n_bytes=size, digest=digest, large=lfs is not None)
    return found


def _leads_away(name: str) -> bool:
    """Whether a path from a stranger leads out of the folder that it is put into."""
    return name.startswith("/") or "\\" in name or bool({"", ".", ".."} & set(name.split("/")))


def fetch(
    snapshot: Snapshot,
    names: Iterable[str],
    folder: Path,
    *,
    on_bytes: Callable[[int], None] | None = None,
) -> None:
    """Have files of a repository in a folder; what is there already and whole is kept.

    Args:
        snapshot: The repository, or a folder of it.
        names: Of its `files`.
        folder: Each lies there under its name; made if it is absent.
        on_bytes: Told how many have arrived.

    Raises:
        HubError: one cannot be had, or is not what the hub says that it is.
        OSError: the disk is full or fails.
    """
    wanted = list(names)
    done = 0
    with quiet():
        pool = ThreadPoolExecutor(_THREADS, "hub")
        try:
            for name in pool.map(partial(_fetch_one, snapshot, folder), wanted):
                done += snapshot.files[name].n_bytes
                if on_bytes is not None:
                    on_bytes(done)
        finally:
            pool.shutdown(cancel_futures=True)
    shutil.rmtree(folder / ARRIVING, ignore_errors=True)


def names_of(address: Address) -> frozenset[str]:
    """Paths of all files of a repository; of those in the cache, where the hub is out of reach.

    Raises:
        HubError: there is no such repository, or it cannot be reached, and nothing of it is here.
    """
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    where: dict[str, Any] = {"revision": address.revision, "repo_type": address.kind or "model"}
    with explained(address.what, raises=HubError):
        if not constants.HF_HUB_OFFLINE:
            try:
                told: Any = HfApi().repo_info(address.repo, timeout=_TIMEOUT, **where)
                return frozenset(one.rfilename for one in told.siblings or ())
            except errors.HfHubHTTPError:
                raise
            except (network_error(), ConnectionError, TimeoutError):
                pass
        folder = Path(snapshot_download(address.repo, local_files_only=True, **where))
    return frozenset(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def cached(address: Address, name: str, *others: str) -> Path:
    """The folder of the hub's own cache that has a file of a repository, and these, if it has them.

    Raises:
        HubError: there is no such repository or file, or the hub cannot be reached and the file is
            not in the cache.
    """
    from huggingface_hub import errors, hf_hub_download

    address = replace(address, kind=address.kind or "model")
    where: dict[str, Any] = {"revision": address.revision, "repo_type": address.kind}
    with quiet(), transfer_explained(address.what, raises=HubError):
        try:
            found = hf_hub_download(address.repo, address.folder + name, **where)
        except errors.LocalEntryNotFoundError:
            raise
        except errors.EntryNotFoundError as error:
            raise HubError(f"{address.what} has no {address.folder}{name}") from error
        for other in others:
            with suppress(errors.EntryNotFoundError):
                hf_hub_download(address.repo, address.folder + other, **where)
    return Path(found).parent


ARRIVING = ".arriving"
"""In the folder that files are fetched into, those that are still on their way."""


def _fetch_one(snapshot: Snapshot, folder: Path, name: str) -> str:
    from huggingface_hub import hf_hub_download

    file, remote, address = folder / name, snapshot.files[name], snapshot.address
    if remote.is_(file):
        return name
    way = folder / ARRIVING
    with transfer_explained(f"{address.what}: {name}", raises=HubError, only_there=True):
        arrived = hf_hub_download(
            address.repo,
            address.folder + name,
            revision=snapshot.commit,
            repo_type=address.kind,
            local_dir=way,
            force_download=True,
        )
    if not remote.is_(Path(arrived)):
        raise HubError(
            f"{name} is not what {address.what} says that it is: give the command again, which "
            "fetches it again"
        )
    file.parent.mkdir(parents=True, exist_ok=True)
    Path(arrived).replace(file)
    return name


@contextmanager
def quiet() -> Generator[None]:
    """Without the bars of the hub's client."""
    from huggingface_hub.utils import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    were_off = are_progress_bars_disabled()
    if not were_off:
        disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()
