"""Where stores may lie, where the one that something was made from lies now; what one lacks."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from actstore.errors import StoreError
from actstore.manifest import Manifest, StoreSpec
from actstore.reader import peek

STORES = "SAEPIPE_STORES"
"""Environment variable: folders where stores are looked for, as in PATH."""

TOKENS, NO_TOKENS = "tokens", "none"
"""What the source of a store says that was imported without token ids."""


def has_tokens(spec: StoreSpec) -> bool:
    """Whether the rows of a store are known to stand for tokens."""
    return spec.source.get(TOKENS) != NO_TOKENS


def known_folders() -> list[Path]:
    """Those that SAEPIPE_STORES names."""
    return [Path(name) for name in os.environ.get(STORES, "").split(os.pathsep) if name]


def locate(
    path: Path, fingerprint: str, *, run: Path, grown: Callable[[Manifest], bool]
) -> Path | None:
    """Where the store is that a run was made from; None where it is nowhere.

    It is at `path`; or else beside the run, or in a folder that SAEPIPE_STORES names, where its
    fingerprint tells it. What is at `path` may also be the same store after it was given rows or
    sites, as `grown` tells from what it says of itself.
    """
    for place in _places(path, run):
        there = _peek(place)
        if there is not None and there.fingerprint == fingerprint:
            return place
    there = _peek(path)
    return path if there is not None and there.state == "complete" and grown(there) else None


def looked_for(path: Path, fingerprint: str) -> str:
    """What was looked for by `locate`, and where, in words."""
    what = "another is at" if path.exists() else "nothing is at"
    return (
        f"{what} {path} now, and the one of fingerprint {fingerprint[:12]} is neither beside the "
        f"run nor in a folder of ${STORES}"
    )


def _places(path: Path, run: Path) -> Iterator[Path]:
    yield path
    for folder in (run.resolve().parent, *known_folders()):
        yield folder
        try:
            yield from sorted(folder.iterdir())
        except OSError:  # it is none, or not to be looked into
            continue


def _peek(path: Path) -> Manifest | None:
    try:
        return peek(path)
    except StoreError:
        return None
