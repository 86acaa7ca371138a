"""Sites that were written beside a store become part of it, in one generation.

Every step may be repeated: a crash between any two is made good by the next writer, from the store
as it stands.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np

from actstore.codec import checksum
from actstore.files import partial_of, remove, sync_folder, write_file
from actstore.ledger import MOMENTS, Entry, Ledger, Twin, read_journal, rewrite_journal
from actstore.manifest import TOKEN_ARRAYS, Manifest, StoreSpec
from actstore.summary import GROUP, Summary, peek, read_summary, summary_name

ADDING = "adding"


def complete_addition(path: Path, there: Manifest) -> Manifest | None:
    """The addition that waits to be merged, or whose merging is not over; None if there is none."""
    added = peek(path / ADDING)
    if added is None or added.state != "complete" or there.state != added.state:
        return None
    return added if added.n_rows == there.n_rows or there.spec.holds(added.spec) else None


def merge(path: Path, there: Manifest, added: Manifest) -> Manifest:
    """Make the sites of a complete addition part of the store."""
    if not there.spec.holds(added.spec):
        spec = replace(there.spec, sites=(*there.spec.sites, *added.spec.sites))
        ledger = Ledger.of(path, replace(there, spec=spec))
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
    """Of an addition whose sites are part of the store: its journal joins, the rest goes."""
    added = complete_addition(path, there)
    if added is not None and there.spec.holds(added.spec):
        # A later extension goes on with all sites: each line names the files of all of them.
        both = zip(read_journal(path), read_journal(path / ADDING), strict=False)
        entries = [_joined(path, old, new) for old, new in both if old.rows == new.rows]
        rewrite_journal(path, entries)
        _discard(path)


def _united(path: Path) -> Summary:
    """The summary of the store with the columns of the sites that are added.

    Their rows are of the same tokens: each of their shards was held to that when it was committed.
    """
    old, new = Twin.load(path).summary, Twin.load(path / ADDING).summary
    first = len(TOKEN_ARRAYS)
    return replace(
        old,
        shard_bytes=np.hstack((old.shard_bytes, new.shard_bytes[:, first:])),
        shard_crc32c=np.hstack((old.shard_crc32c, new.shard_crc32c[:, first:])),
        mean={**old.mean, **new.mean},
        var={**old.var, **new.var},
        rounding={**old.rounding, **new.rounding},
    )


def _move_sites(path: Path, added: StoreSpec) -> None:
    group = path / ADDING / GROUP
    for site in added.sites:
        if (group / site.name).exists():
            (group / site.name).replace(path / GROUP / site.name)
    for folder in (path / GROUP, group):
        sync_folder(folder)


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
