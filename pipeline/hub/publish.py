"""Files into a repository of the hub: told before, sent once, what is there already left alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from warnings import catch_warnings

from pipeline.errors import ConfigError, HubError
from pipeline.hub.explained import explained, is_out_of_reach, transfer_explained
from pipeline.hub.repository import (
    MAIN,
    Address,
    Content,
    Kind,
    RemoteFile,
    Snapshot,
    look,
    quiet,
    size_of,
)
from pipeline.progress import OnProgress, counter

State = Literal["new", "changed", "same", "removed"]

_PART_BYTES, _PART_FILES = 2**26, 32
"""Of what is sent between two reports of progress."""
_COMMIT_BYTES, _COMMIT_FILES = 2**30, 256
"""Of a commit, where there may be several."""


@dataclass(frozen=True, kw_only=True)
class PushedFile:
    """A file of what is pushed."""

    path: str
    """In the repository."""
    n_bytes: int
    state: State
    """Beside what the repository has; only what is new or changed is sent."""


@dataclass(frozen=True, kw_only=True)
class PushReport:
    """What was pushed, or is going to be."""

    source: Path
    """The run, or the store."""
    repo: str
    kind: Kind
    revision: str
    private: bool
    files: tuple[PushedFile, ...]
    card: str
    """The README.md."""
    commit: str = ""
    """That the repository is at now; empty for what is only planned."""
    url: str = ""
    notes: tuple[str, ...] = ()
    """What whoever pushes must know, one sentence each."""

    @property
    def n_sent(self) -> int:
        """Files that are sent."""
        return sum(file.state in ("new", "changed") for file in self.files)

    @property
    def bytes_sent(self) -> int:
        """Their bytes."""
        return sum(file.n_bytes for file in self.files if file.state in ("new", "changed"))


OnPlan = Callable[[PushReport], None]
"""Told what is going to be sent, before any of it is."""


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What is to stand in a repository, or in a folder of it."""

    source: Path
    address: Address
    kind: Kind
    private: bool
    contents: Mapping[str, Content]
    """By their paths from the folder; `README.md` is the card."""
    owns: Callable[[str], bool]
    """Whether a file there, by its path, was pushed like these: without one here it goes."""
    last: Callable[[str], bool] | None = None
    """What only the last commit may hold, as it makes the rest whole; None makes one commit of all.
    """
    notes: tuple[str, ...] = ()


def publish(
    what: Publication,
    *,
    dry_run: bool = False,
    on_plan: OnPlan | None = None,
    on_progress: OnProgress | None = None,
) -> PushReport:
    """Send what the repository does not have; it is made if it is not there.

    Raises:
        ConfigError: nobody is logged in, or the repository is public and shall be private.
        HubError: the hub cannot be reached, which `dry_run` does without, or refuses it; the same
            command goes on.
    """
    what = replace(what, address=replace(what.address, kind=what.kind))
    if not dry_run:
        _require_token()
    try:
        there, has_branch = _there(what.address)
    except HubError as error:
        if not (dry_run and is_out_of_reach(error)):
            raise
        there, has_branch = None, False
        what = replace(what, notes=(*what.notes, NOT_SEEN))
    if there is not None and what.private and not there.private:
        raise ConfigError(
            f"{what.address.what} is there and public: make it private on the hub, or leave out "
            "--private"
        )
    plan = _planned(what, there)
    if on_plan is not None:
        on_plan(plan)
    if dry_run:
        return plan
    if there is None or not has_branch:
        _make(what, repository=there is None)
    commit = _send(what, plan, there if has_branch else None, on_progress)
    return replace(plan, commit=commit, url=_url(what.address))


NOT_SEEN = (
    "the hub could not be reached: what it has already is not known, and all files are told as new"
)


def _require_token() -> None:
    from huggingface_hub import get_token

    if not get_token():
        raise ConfigError(
            "nobody is logged in to the hub here: type hf auth login, or put a token into HF_TOKEN"
        )


def _there(address: Address) -> tuple[Snapshot | None, bool]:
    """The repository, if it is there, and whether it has the branch."""
    from huggingface_hub import errors

    try:
        return look(address), True
    except HubError as error:
        match error.__cause__:
            case errors.RevisionNotFoundError() if address.revision != MAIN:
                return _there(replace(address, revision=MAIN))[0], False
            case errors.EntryNotFoundError():  # no such folder, as yet
                there = look(replace(address, folder=""))
                return replace(there, address=address, files={}), True
            case errors.GatedRepoError():
                raise
            case errors.RepositoryNotFoundError():
                return None, False
            case _:
                raise


def _planned(what: Publication, there: Snapshot | None) -> PushReport:
    known = {} if there is None else there.files
    files = [
        PushedFile(
            path=what.address.folder + name, n_bytes=size_of(content),
            state=_state(content, known.get(name)),
        )
        for name, content in what.contents.items()
    ]  # fmt: skip
    files += [
        PushedFile(path=what.address.folder + name, n_bytes=remote.n_bytes, state="removed")
        for name, remote in known.items()
        if name not in what.contents and what.owns(name)
    ]
    card = what.contents.get("README.md", b"")
    return PushReport(
        source=what.source,
        repo=what.address.repo,
        kind=what.kind,
        revision=what.address.revision,
        private=what.private or (there is not None and there.private),
        files=tuple(files),
        card=card.decode() if isinstance(card, bytes) else "",
        notes=what.notes,
    )


def _state(content: Content, remote: RemoteFile | None) -> State:
    if remote is None:
        return "new"
    return "same" if remote.is_(content) else "changed"


def _make(what: Publication, *, repository: bool) -> None:
    from huggingface_hub import HfApi

    api, address = HfApi(), what.address
    with explained(address.what, raises=HubError, only_there=True):
        if repository:
            api.create_repo(
                address.repo, repo_type=what.kind, private=what.private or None, exist_ok=True
            )
        if address.revision != MAIN:
            api.create_branch(
                address.repo, branch=address.revision, repo_type=what.kind, exist_ok=True
            )


def _send(
    what: Publication, plan: PushReport, there: Snapshot | None, on_progress: OnProgress | None
) -> str:
    """Send it, in one commit or several; gives the last one."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api, address = HfApi(), what.address
    where: dict[str, Any] = {
        "repo_id": address.repo,
        "repo_type": what.kind,
        "revision": address.revision,
    }
    commit, done = "" if there is None else there.commit, 0
    tell = counter(on_progress, stage="push", total=plan.bytes_sent, unit="B")
    gone = [file.path for file in plan.files if file.state == "removed"]
    steps = _steps(what, plan)
    for number, step in enumerate(steps, start=1):
        operations: list[CommitOperationAdd | CommitOperationDelete] = []
        with (
            quiet(),
            catch_warnings(action="ignore"),  # of its client: Parquet, and its own calls
            transfer_explained(address.what, raises=HubError, only_there=True),
        ):
            for part in _parts(step, n_bytes=_PART_BYTES, n_files=_PART_FILES):
                added = [
                    CommitOperationAdd(
                        path_in_repo=file.path,
                        path_or_fileobj=what.contents[file.path.removeprefix(address.folder)],
                    )
                    for file in part
                ]
                api.preupload_lfs_files(additions=added, **where)
                operations += added
                done += sum(file.n_bytes for file in part)
                tell(done)
            if number == len(steps):
                operations += [CommitOperationDelete(path_in_repo=path) for path in gone]
            of = f" ({number} of {len(steps)})" if len(steps) > 1 else ""
            message = f"saepipe push{of}"
            made = api.create_commit(
                operations=operations, commit_message=message, parent_commit=commit or None, **where
            )
            commit = made.oid
    return commit


def _steps(what: Publication, plan: PushReport) -> list[list[PushedFile]]:
    """What each commit adds; empty where there is nothing to commit."""
    added = [file for file in plan.files if file.state in ("new", "changed")]
    gone = any(file.state == "removed" for file in plan.files)
    if what.last is None:
        return [added] if added or gone else []
    last = [
        file
        for file in added
        if file.state == "changed" or what.last(file.path.removeprefix(what.address.folder))
    ]
    first = [file for file in added if file not in last]
    steps = [*_parts(first, n_bytes=_COMMIT_BYTES, n_files=_COMMIT_FILES)]
    return [*steps, last] if last or gone else steps


def _parts(
    files: Sequence[PushedFile], *, n_bytes: int, n_files: int
) -> Iterator[list[PushedFile]]:
    """Some at a time: so many at most, and no more bytes unless one alone has them."""
    part: list[PushedFile] = []
    held = 0
    for file in files:
        if part and (len(part) == n_files or held + file.n_bytes > n_bytes):
            yield part
            part, held = [], 0
        part.append(file)
        held += file.n_bytes
    if part:
        yield part


def _url(address: Address) -> str:
    from huggingface_hub import constants

    kind = "datasets/" if address.kind == "dataset" else ""
    folder = f"/{address.folder}".rstrip("/")
    return f"{constants.ENDPOINT}/{kind}{address.repo}/tree/{address.revision}{folder}"
