"""Whether what lies in a run's folder is that run's, by checksums; known without torch.

What holds no checksum was written before any did, and is taken as it is.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any

from actstore.files import canonical_json

RUN = "run.json"
BEGUN = "begun.json"
"""In the place of run.json, in the folder `OUT.partial` of what is begun there."""


def told_by(run: Path) -> dict[str, Any]:
    """What the run.json of a folder says; nothing where there is none that can be read."""
    try:
        told = json.loads((run / RUN).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return told if isinstance(told, dict) else {}


def is_of(run: Path, sha256: str) -> bool:
    """Whether what was made of weights of this checksum was made of the run's."""
    return not sha256 or sha256 == told_by(run).get("sha256", sha256)


def is_file_of(file: Path, sha256: str) -> bool:
    """Whether a file still is the one of this checksum."""
    return not sha256 or checksum_of(file) == sha256


def checksum_of(file: Path) -> str:
    """The SHA-256 of a file; empty where there is none."""
    try:
        with file.open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError:
        return ""


def digest_of(config: Mapping[str, Any], *, free: Set[str], origins: Iterable[str]) -> str:
    """Of what two trainings must share for one to go on from the other's checkpoint.

    Args:
        config: As the training's own file holds it: a later version may know more settings, and
            paths lead on from wherever that file is.
        free: Its settings that may differ.
        origins: Checksums of what is learned from.
    """
    same = {name: value for name, value in config.items() if name not in free}
    return hashlib.sha256(canonical_json([same, *origins])).hexdigest()
