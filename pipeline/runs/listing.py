"""The runs below a folder, a few facts each: read from their JSON alone, without torch.

What is damaged is a run that says so.
"""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pipeline.errors import ConfigError
from pipeline.runs.belongs import BEGUN, RUN, is_file_of

_CURVES, _TAIL = "metrics.jsonl", 2**16
_REPORTS = ("eval.json", "connect_eval.json")
_LISTS = ("density", "maps")
"""In a report, where what has a value per latent begins; after what is told here."""


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """What a folder tells of a run at a glance. What is not known is None, or empty."""

    path: Path
    kind: str = ""
    """`sae`, `finetune`, `connector`."""
    arch: str = ""
    site: str = ""
    """Of a connector, both."""
    when: str
    """Its run.json was written: local time, with what that is ahead of UTC."""
    state: str
    """`finished`, `unfinished`, `diverged: ...`, or `damaged: ...` with the reason."""
    steps: int | None = None
    """Made so far: by its curves, or by the checkpoint of a fine-tuning that is under way."""
    l0: float | None = None
    """Of its evaluation, as what follows; without one, of the last line of its curves."""
    explained_variance: float | None = None
    loss_added: float | None = None
    loss_recovered: float | None = None
    """Against the site zeroed."""
    text: str = ""
    """That it was evaluated on."""


def list_runs(folder: Path) -> list[ListedRun]:
    """Every run in a folder and below it, and what an interrupted fine-tuning left; newest last.

    Raises:
        ConfigError: it is no folder.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder} is not a folder")
    dated = sorted((file.stat().st_mtime, file) for file in _found(folder))
    return [_listed(file, written) for written, file in dated]


def state_of(path: Path) -> str:
    """How the run in a folder stands, as `ListedRun` says it; `not there` without a run.json."""
    return _listed(path / RUN, 0.0).state if (path / RUN).exists() else "not there"


def _found(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        told = next((name for name in (RUN, BEGUN) if name in files), None)
        if told is not None:
            yield Path(place, told)
        folders[:] = [] if told is not None else [n for n in folders if not _passed_over(n)]


def _passed_over(name: str) -> bool:
    """A hidden folder, or the rows of a store."""
    return name.startswith(".") or name.endswith(".zarr")


def _listed(file: Path, written: float) -> ListedRun:
    path = file.parent
    when = datetime.fromtimestamp(written).astimezone().isoformat(timespec="seconds")
    try:
        told = json.loads(file.read_bytes())
        facts = _facts(told) if file.name == RUN else _facts_begun(path)
        numbers = _numbers(path, told)
    except (OSError, ValueError, RecursionError) as error:
        return ListedRun(path=path, when=when, state=f"damaged: {error}")
    except (KeyError, TypeError, AttributeError):
        return ListedRun(path=path, when=when, state=f"damaged: {file.name} is not that of a run")
    return ListedRun(path=path, when=when, **(numbers | facts))


def _facts(told: Mapping[str, Any]) -> dict[str, Any]:
    kind, failure = str(told.get("kind", "sae")), told.get("failure", "")
    config = told["coder"]["config"] if "coder" in told else told["config"]
    if "source" in told:
        site = f"{told['source']['site']} to {told['target']['site']}"
    else:
        site = (told["report"] if "coder" in told else told["store"])["site"]
    state = f"diverged: {failure}" if failure else "finished" if told["sha256"] else "unfinished"
    arch = config.get("arch", {}).get("kind", config.get("activation", ""))
    return {"kind": kind, "arch": str(arch), "site": str(site), "state": state}


def _facts_begun(path: Path) -> dict[str, Any]:
    """Of a fine-tuning that was interrupted, by the checkpoint that it goes on from."""
    names = [kept.name.removeprefix("step-") for kept in path.glob("checkpoints/step-*")]
    steps = max((int(name) for name in names if name.isdecimal()), default=None)
    return {"kind": "finetune", "state": "unfinished", "steps": steps}


def _numbers(path: Path, run: Mapping[str, Any]) -> dict[str, Any]:
    """From what lies in the folder and is of the run."""
    found: dict[str, Any] = {}
    if is_file_of(path / _CURVES, run.get("curves_sha256", "")):
        found |= _last_line(path / _CURVES)
    for told in (_head(path / name) for name in _REPORTS):
        if told.get("sha256", "") in ("", run.get("sha256")):
            found |= told
    wanted = {
        "l0": "l0", "explained_variance": "explained_variance",
        "loss_added": "ce_added", "loss_recovered": "loss_recovered",
    }  # fmt: skip
    numbers = {name: found.get(key) for name, key in wanted.items()}
    told: dict[str, Any] = {"text": str(found.get("text", ""))}
    told |= {name: x if isinstance(x, int | float) else None for name, x in numbers.items()}
    return told | ({"steps": found["step"]} if isinstance(found.get("step"), int) else {})


def _last_line(curves: Path) -> dict[str, Any]:
    """The last whole line; a writer may be at the next."""
    try:
        with curves.open("rb") as file:
            file.seek(-min(_TAIL, curves.stat().st_size), os.SEEK_END)
            *lines, _ = file.read().split(b"\n")
        line = json.loads(lines[-1])
    except (OSError, ValueError, RecursionError, IndexError):
        return {}
    return line if isinstance(line, dict) else {}


def _head(report: Path) -> dict[str, Any]:
    """What a report tells a key a line, up to its long lists; nothing where there is none."""
    found: dict[str, Any] = {}
    try:
        with report.open(encoding="utf-8") as file:
            for line in file:
                name = line.partition(":")[0].strip().strip('"')
                if name in _LISTS:
                    break
                if line.startswith('"'):
                    found |= json.loads("{" + line.rstrip().rstrip(",") + "}")
    except (OSError, ValueError, RecursionError):
        return {}
    return found
