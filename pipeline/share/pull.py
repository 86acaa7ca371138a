"""pull(repo, out): a run, a sweep of runs or a store of the hub, here again, whole or not at all.

Files arrive in `OUT.partial`, where a pull that was stopped goes on; once all are there, and are
what run.json or the store say that they are, the folder gets its name.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from actstore.files import make_folder, partial_of, remove, sync_folder
from actstore.summary import GROUP
from actstore.verify import verify
from pipeline.disk import require_room, writing
from pipeline.errors import CheckpointError, ConfigError, HubError
from pipeline.features.files import FACTS, FOLDER
from pipeline.hub.repository import Address, Snapshot, fetch, look
from pipeline.progress import OnProgress, counter
from pipeline.runs.belongs import BEGUN, RUN
from pipeline.runs.folder import LOCK, training_in
from pipeline.runs.sweep import SWEEP, members_of
from pipeline.share.contents import is_of_run, is_of_sweep, require_features, require_whole

ROOT = f"{GROUP}/zarr.json"


@dataclass(frozen=True, kw_only=True)
class PullReport:
    """What was pulled, and where it is."""

    repo: str
    """As it was named."""
    commit: str
    out: Path
    what: str
    """A run, a sweep, or a store."""
    n_files: int
    n_bytes: int
    reused: bool = False
    """It was there already, whole and the same."""


OnPull = Callable[[PullReport], None]
"""Told what is going to be fetched, before any of it is."""


def pull(
    repo: str,
    out: Path,
    *,
    on_plan: OnPull | None = None,
    on_progress: OnProgress | None = None,
) -> PullReport:
    """Bring a run, a sweep or a store from the hub.

    Raises:
        ConfigError: `out` holds something else, or the disk has no room.
        CheckpointError: it is damaged there; or the disk fails.
        HubError: the hub cannot be reached, or the repository holds nothing of saepipe.
    """
    there = look(Address.of(repo))
    what, files = _wanted(there)
    total = sum(there.files[name].n_bytes for name in files)
    report = PullReport(
        repo=repo, commit=there.commit, out=out, what=what, n_files=len(files), n_bytes=total
    )
    if _is_there(out, there, files):
        return replace(report, reused=True)
    if on_plan is not None:
        on_plan(report)
    partial = partial_of(out)
    with writing(out), training_in(partial):
        if _is_there(out, there, files):  # by now, another process may have ended
            return replace(report, reused=True)
        _require_ours(partial, out)
        require_room(out, sum(there.files[n].n_bytes for n in files if not (partial / n).exists()))
        _clear(partial, files)
        fetch(
            there, files, partial,
            on_bytes=counter(on_progress, stage="pull", total=total, unit="B"),
        )  # fmt: skip
        _require_whole(partial, what, there.address, on_progress)
        if out.exists():
            out.rmdir()
        partial.rename(out)
        sync_folder(out.absolute().parent)
        remove(out / LOCK)
    return report


def _wanted(there: Snapshot) -> tuple[str, list[str]]:
    """What it is, and its files."""
    names = there.files
    if RUN in names:
        return "run", [name for name in names if is_of_run(name)]
    if SWEEP in names:
        return "sweep", [name for name in names if is_of_sweep(name)]
    if ROOT in names:
        return "store", [name for name in names if name.startswith(f"{GROUP}/")]
    where = there.address
    if {"cfg.json", "sae.safetensors"} <= names.keys():
        raise HubError(
            f"{where} is an SAE without its run (no {RUN}): "
            f'saepipe.SAE.from_pretrained("{where}") reads it'
        )
    found = ", ".join([*sorted(names)][:5]) or "nothing"
    raise HubError(
        f"{where} is no run or store of saepipe: it has no {RUN} and no {ROOT}, but {found}"
    )


def _is_there(out: Path, there: Snapshot, files: list[str]) -> bool:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if out.is_dir() and all(there.files[name].is_(out / name) for name in files):
        return True
    raise ConfigError(f"{out} exists and is not what {there.address} holds: choose another --out")


def _require_ours(partial: Path, out: Path) -> None:
    """Refuse what another command is not done with."""
    if (partial / BEGUN).exists():
        raise ConfigError(
            f"{partial} is an unfinished fine-tuning, which goes on into {out}: choose another "
            "--out"
        )


def _clear(partial: Path, files: list[str]) -> None:
    """Remove what an earlier pull left that is not wanted now, as of another commit."""
    wanted = {partial / name for name in files} | {partial / LOCK}
    make_folder(partial)
    for path in [*partial.rglob("*")]:
        if path.is_file() and path not in wanted:
            remove(path)


def _require_whole(
    folder: Path, what: str, address: Address, on_progress: OnProgress | None
) -> None:
    if what == "store":

        def tell(done: int, total: int) -> None:
            counter(on_progress, stage="verify", total=total, unit="B")(done)

        if findings := verify(folder, on_progress=tell):
            first = findings[0]
            raise CheckpointError(
                f"the store is damaged on the hub, too ({first.what}): push it again"
            )
        return
    try:
        for name in members_of(folder) if what == "sweep" else ["."]:
            _require_run_whole(folder, name)
    except CheckpointError as error:
        raise CheckpointError(_of_hub(str(error), folder, address)) from error


def _require_run_whole(folder: Path, name: str) -> None:
    if "/" in name or name == "..":
        raise CheckpointError(f"{folder} names a run {name!r}, which is refused")
    require_whole(folder / name)
    if (folder / name / FOLDER / FACTS).exists():
        require_features(folder / name)


_ADVICE = re.compile(r"[;:] (?:put|make|find|finish|train|import|name|wait) .*")
"""What a line about a run of one's own ends with; nothing of it can be done to one on the hub."""


def _of_hub(told: str, folder: Path, address: Address) -> str:
    """A line about what has arrived in a folder, as one about where it is from."""
    found = _ADVICE.sub("", told).replace(f"{folder}/", "").replace(str(folder), "it")
    return (
        f"{address} is damaged on the hub ({found}): whoever pushed it must push it again, or name "
        "an earlier state: ORG/NAME@REVISION"
    )
