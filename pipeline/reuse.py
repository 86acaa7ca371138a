"""Find a store that already holds what a harvest would compute, and stand in for it by a link.

Torch-free, and one small file is read of each store that is met.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from actstore.catalog import find_stores
from actstore.codec import kept_bits
from actstore.errors import StoreError
from actstore.manifest import Manifest, StoreSpec
from actstore.reader import peek
from actstore.settle import settled
from pipeline.errors import ConfigError

STORES = "SAEPIPE_STORES"
"""Environment variable: folders below which stores are looked for, as in PATH."""
SOURCE = ("model_fingerprint", "tokenizer_fingerprint", "text_fingerprint", "text_column")
"""What of a source decides its rows; names of models and texts do not."""


def find_equal(out: Path, wanted: StoreSpec, *, n_rows: int) -> tuple[Path, Manifest] | None:
    """A complete store that holds every row that is wanted, value by value; None if there is none.

    It may lie beside `out`, or anywhere below the folders that SAEPIPE_STORES names. What is met
    and cannot be read is somebody else's, and passed over.
    """
    for path, there in (*_beside(out), *_below_known_folders()):
        if _holds(there, wanted, n_rows):
            return path, settled(path) or there
    return None


def link(found: Path, out: Path) -> None:
    """Make `out` a link to a store that was found, relative to the folder that it lies in.

    Raises:
        ConfigError: Something is there already, or the disk knows no links.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    target = os.path.relpath(found.resolve(), out.parent.resolve())
    try:
        out.symlink_to(target, target_is_directory=True)
    except FileExistsError:
        raise ConfigError(f"{out} is there already: choose another --out") from None
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be made a link ({error.strerror}): use the store itself, --out {found}"
        ) from error


def known_folders() -> list[Path]:
    """Those that SAEPIPE_STORES names."""
    return [Path(name) for name in os.environ.get(STORES, "").split(os.pathsep) if name]


def _beside(out: Path) -> Iterator[tuple[Path, Manifest]]:
    try:
        folders = sorted(out.parent.iterdir())
    except OSError:
        return
    for path in folders:
        try:
            there = peek(path)
        except StoreError:
            continue
        if there is not None:
            yield path, there


def _below_known_folders() -> Iterator[tuple[Path, Manifest]]:
    for folder in known_folders():
        try:
            found = find_stores(folder)
        except StoreError:
            continue
        yield from ((path, told) for path, told in found if isinstance(told, Manifest))


def _holds(there: Manifest, wanted: StoreSpec, n_rows: int) -> bool:
    spec = there.spec
    return (
        there.state == "complete"
        and (there.n_rows >= n_rows or there.source_exhausted)
        and set(spec.sites) >= set(wanted.sites)
        and _values_of(spec) == _values_of(wanted)
        and all(spec.source.get(key) == wanted.source[key] for key in SOURCE)
        and wanted.source["model_precision"] in ("auto", spec.source.get("model_precision"))
    )


def _values_of(spec: StoreSpec) -> tuple[object, ...]:
    """What decides the stored values; exact codecs all give the same."""
    return spec.ctx_len, spec.dtype, spec.seed, kept_bits(spec.codec)
