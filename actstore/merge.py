"""Sites that were written beside a store become part of it, in one generation.

Every step may be repeated: a crash between any two is made good by the next writer, from the store
as it stands.
"""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from actstore.codec import checksum
from actstore.files import partial_of, remove, sync_folder, write_file
from actstore.ledger import MOMENTS, Entry, Ledger, Twin, read_journal, rewrite_journal
from actstore.manifest import TOKEN_ARRAYS, Manifest, StoreSpec
from actstore.summary import GROUP, Summary, peek, read_summary, summary_name

ADDING = "adding"


def complete_addition(path: Path, there: Manifest) -> Manifest | None:
    """The addition that waits to be merged, or whose merging is not over; None if there is none.

    Raises:
        StoreError: If it is damaged.
    """
    added = peek(path / ADDING)
    if added is None or added.state != "complete" or there.state != added.state:
        return None
    whole = added.n_rows == there.n_rows or _names(added.spec) <= _names(there.spec)
    return added if whole else None


def merge(path: Path, there: Manifest, added: Manifest) -> Manifest:
    """Make the sites of a complete addition part of the store.

    Raises:
        StoreError: If the addition is of other tokens, or damaged; the store stays as it was.
        OSError: If the disk is full or fails; the next writer goes on.
    """
    if not _names(added.spec) <= _names(there.spec):
        spec = replace(there.spec, sites=(*there.spec.sites, *added.spec.sites))
        ledger = Ledger(
            path=path, manifest=replace(there, spec=spec), layout=spec.layout(there.n_rows)
        )
        folder = ledger.root / summary_name(there.generation + 1)
        if (folder / "zarr.json").exists():  # from then on the generation is to be completed
            summary = read_summary(folder, spec)
        else:
            summary = _united(path)
            ledger.announce(summary)
        _move_sites(path, added.spec)
        ledger.publish(summary)
        there = ledger.manifest
    end_joined(path, there)
    return there


def end_joined(path: Path, there: Manifest) -> None:
    """Of an addition whose sites are part of the store: its journal joins, the rest goes.

    Raises:
        StoreError: If it is damaged.
        OSError: If the disk is full or fails; the next writer goes on.
    """
    added = complete_addition(path, there)
    if added is not None and _names(added.spec) <= _names(there.spec):
        _merge_journal(path)
        _discard(path)


def _names(spec: StoreSpec) -> set[str]:
    return {site.name for site in spec.sites}


def _united(path: Path) -> Summary:
    """The summary of the store with the columns of the sites that are added."""
    old, new = Twin.load(path), Twin.load(path / ADDING)
    for shard, rows in enumerate(new.summary.shard_rows.tolist()):
        files = new.summary.files(new.manifest.spec, shard)
        old.require_same(shard, rows=rows, files=files, group=new.path / GROUP)
    first = len(TOKEN_ARRAYS)
    columns = {
        name: np.hstack((getattr(old.summary, name), getattr(new.summary, name)[:, first:]))
        for name in ("shard_bytes", "shard_crc32c")
    }
    return replace(old.summary, **columns, **_by_site(old.summary, new.summary))


def _by_site(old: Summary, new: Summary) -> dict[str, Any]:
    """Every statistic that is told by site, of both."""
    names = [f.name for f in fields(Summary) if isinstance(getattr(old, f.name), Mapping)]
    return {name: {**getattr(old, name), **getattr(new, name)} for name in names}


def _move_sites(path: Path, added: StoreSpec) -> None:
    group = path / ADDING / GROUP
    for site in added.sites:
        if (group / site.name).exists():
            (group / site.name).replace(path / GROUP / site.name)
    for folder in (path / GROUP, group):
        sync_folder(folder)


def _merge_journal(path: Path) -> None:
    """Let a later extension go on with all sites: each line names the files of all of them."""
    both = zip(read_journal(path), read_journal(path / ADDING), strict=False)
    entries = [_joined(path, entry, added) for entry, added in both if entry.rows == added.rows]
    rewrite_journal(path, entries)


def _joined(path: Path, entry: Entry, added: Entry) -> Entry:
    if set(added.files) <= set(entry.files):
        return entry  # a crash came after this
    new = {name: numbers for name, numbers in added.files.items() if name not in TOKEN_ARRAYS}
    moments = _joined_moments(path, entry, added)
    return replace(entry, files={**entry.files, **new}, moments=moments)


def _joined_moments(path: Path, entry: Entry, added: Entry) -> int:
    """Append the moments of the added sites to those that are kept; the crc32c of all."""
    name = str(entry.shard)
    here, there = path / MOMENTS / name, path / ADDING / MOMENTS / name
    if not (here.exists() and there.exists()):  # only those of the last shards are kept
        return entry.moments
    old, new = here.read_bytes(), there.read_bytes()
    if checksum(old) != entry.moments:  # a crash came after they were appended
        old = old[: -len(new)]
    if checksum(old) != entry.moments or checksum(new) != added.moments:
        return entry.moments  # damaged: whoever needs them will find them so
    write_file(here, [old, new])
    return checksum(old + new)


def _discard(path: Path) -> None:
    """Remove the emptied addition: under another name first, so that half of it is never met."""
    gone = partial_of(path / ADDING)
    remove(gone)
    (path / ADDING).replace(gone)
    sync_folder(path)
    remove(gone)
