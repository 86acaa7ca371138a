"""Models and texts that lie in files, found again from other folders than they were named in."""

import os
from pathlib import Path

_EMBEDDED = "builtin"


def place_of(name: str) -> Path | None:
    """Where the file or folder that a name means is now; None for what is embedded or on a hub.

    A part behind an `@`, as `TEXT@split` has, stays.
    """
    if not name or name.partition(":")[0].partition("@")[0] == _EMBEDDED:
        return None
    there = _exists(name) or ("@" in name and _exists(name.rpartition("@")[0]))
    return Path(os.path.abspath(_home(name))) if there else None  # noqa: PTH100 - links stay


def name_from_here(name: str, at: Path | None) -> str:
    """A name that leads to the same from this folder, where the given one leads nowhere.

    `at` is where what it means was. Where nothing is there either, the name stays as it is.
    """
    if not name or at is None or place_of(name) is not None or place_of(str(at)) is None:
        return name
    return os.path.relpath(at)


def _exists(name: str) -> bool:
    """A name may be anything: nobody's home, too long, in a folder that cannot be read."""
    return os.path.exists(_home(name))  # noqa: PTH110 - it never raises


def _home(name: str) -> str:
    return os.path.expanduser(name)  # noqa: PTH111 - it never raises
