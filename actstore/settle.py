"""What earlier processes left of a store: finished where its end was certain, otherwise removed.

Whoever writes a store does this first, to create, resume or extend it; so does whoever says that
one is complete.
"""

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from actstore.errors import StoreError
from actstore.files import LOCK, PARTIAL, canonical_json, make_folder, partial_of, remove, writing
from actstore.ledger import (
    JOURNAL,
    MOMENTS,
    STAGING,
    Entry,
    Ledger,
    Twin,
    cut_torn_line,
    journal_is_whole,
    read_journal,
    rewrite_journal,
)
from actstore.manifest import CONTEXT_TOKENS, Manifest, StoreSpec, differences
from actstore.merge import ADDING, complete_addition, merge
from actstore.metadata import shard_key
from actstore.removal import OWN, SUMMARIES, clear, half_removed
from actstore.summary import GROUP, being_extended, peek, read_summary, summary_name, write_root


def settled(path: Path) -> Manifest | None:
    """What a store says of itself once nothing is left of earlier processes; None if there is none.

    Where another process writes it, or its disk can only be read, it stays as it is; and a whole
    one is not even locked.

    Raises:
        StoreError: If there is something else, another version, or a damaged root.
    """
    with suppress(OSError, StoreError):  # told by whoever writes to it
        there = peek(path)
        if there is not None and there.state == "complete":
            midway = being_extended(path, there) or complete_addition(path, there)
            if midway or any(True for _ in _leftovers(path, there)):
                with writing(path):
                    settle(path)
    return peek(path)


def settle(path: Path) -> Manifest | None:
    """Finish and remove, under the writer's lock, what is left of earlier processes.

    Returns:
        What the store says of itself then; None if there is none.
    """
    there = peek(path)
    if there is None:
        if half_removed(path):
            clear(path)
        return None
    added = complete_addition(path, there)
    there = _rolled_forward(path, there) if added is None else merge(path, there, added)
    sweep(path, there)
    return there


def sweep(path: Path, there: Manifest) -> None:
    """Remove, under the writer's lock, what nobody can go on from; nothing else changes."""
    for leftover in list(_leftovers(path, there)):
        remove(leftover)
    if _is_told(path, there):
        cut_torn_line(path)


def _rolled_forward(path: Path, there: Manifest) -> Manifest:
    """Complete a generation whose writer died after its summary stood."""
    if being_extended(path, there) is None:
        return there
    ledger = Ledger.of(path, there)
    ledger.publish(read_summary(ledger.root / summary_name(there.generation + 1), there.spec))
    return ledger.manifest


def _leftovers(path: Path, there: Manifest) -> Iterator[Path]:
    """Of a store: files half written, shards never committed, and what is over or never began."""
    for name in (GROUP, MOMENTS, STAGING):
        for folder, _, files in os.walk(path / name):
            yield from (Path(folder, file) for file in files if file.endswith(PARTIAL))
    yield from filter(os.path.lexists, (partial_of(path / name) for name in OWN))
    for summary in (path / GROUP).glob(SUMMARIES):
        number = summary.name.removeprefix(summary_name(0)[:-1])
        stands = number == str(there.generation + 1) and (summary / "zarr.json").exists()
        if number != str(there.generation) and not stands:
            yield summary
    if _is_told(path, there):
        yield from _uncommitted(path, there)
    if (path / ADDING).is_dir():
        try:
            added = peek(path / ADDING)
        except StoreError:  # whoever goes on with it tells
            return
        yield from [path / ADDING] if added is None else _leftovers(path / ADDING, added)


def _uncommitted(path: Path, there: Manifest) -> Iterator[Path]:
    """What stands for shards that are neither complete nor told by the journal."""
    ledger = Ledger.of(path, there)
    entries = _committed(ledger)
    n_shards = max(ledger.n_kept, len(entries))
    for name in there.spec.arrays:
        for file in (ledger.root / name).glob("c/*"):
            if not (file.name.isdecimal() and int(file.name) < n_shards):
                yield file
    staged = {str(entry.shard) for entry in entries if ledger.staged(entry)}
    if staged:
        yield from (f for f in (path / STAGING).glob("*/c/*") if f.name not in staged)
    elif (path / STAGING).exists():
        yield path / STAGING
    kept = {str(entry.shard) for entry in entries[-2:]}
    yield from (file for file in (path / MOMENTS).glob("*") if file.name not in kept)


def _committed(ledger: Ledger) -> list[Entry]:
    """What the journal tells; of shards that are not complete yet, while their files are there."""

    def counts(entry: Entry) -> bool:
        return (entry.shard < ledger.n_kept and not ledger.staged(entry)) or ledger.holds(entry)

    return list(takewhile(counts, read_journal(ledger.path)))


def _is_told(path: Path, there: Manifest) -> bool:
    """Whether the journal tells of all that is complete: if not, it may yet come from a backup."""
    if there.state == "writing":
        return True
    if not ((path / JOURNAL).exists() and journal_is_whole(path)):
        return False
    return len(read_journal(path)) >= there.n_rows // there.spec.shard_rows


def open_ledger(path: Path, spec: StoreSpec, *, n_rows: int, beside: Twin | None = None) -> Ledger:
    """Find out where a store stands, settle what was left of it, and say what is next."""
    n_rows = -(-n_rows // spec.ctx_len) * spec.ctx_len
    there = settle(path)
    if there is None:
        refuse_foreign(path)
        remove(path / GROUP)
        there = Manifest(spec=spec, n_rows=n_rows, state="writing")
    _require_same(path, there.spec, spec)
    ledger = Ledger(path=path, manifest=there, layout=spec.layout(n_rows), beside=beside)
    if ledger.complete:
        return ledger
    _replay(ledger)
    if ledger.manifest.state == "writing":
        _announce(ledger)
    return ledger


def refuse_foreign(path: Path) -> None:
    """A folder that holds something else is not begun as a store, nor anything in it removed.

    Raises:
        StoreError: If `path` is one.
    """
    if not path.is_dir() or half_removed(path):
        return
    names = {file.name.removesuffix(PARTIAL) for file in path.iterdir()}
    foreign = sorted(names - {GROUP, JOURNAL, LOCK})
    if foreign:
        raise StoreError(
            f"{path} is a folder with {foreign[0]} in it, and no store: choose another"
        )


def _require_same(path: Path, there: StoreSpec, now: StoreSpec) -> None:
    old, new = (json.loads(canonical_json(spec.as_json())) for spec in (there, now))
    if old != new:
        told = "; ".join(differences(old, new))
        raise StoreError(f"{path} holds another store ({told}); choose another path, or remove it")


def _replay(ledger: Ledger) -> None:
    """Take up the committed shards, less a last one that is shorter than is now wanted."""
    entries = list(takewhile(ledger.holds, read_journal(ledger.path)))
    if ledger.manifest.state == "complete":
        full = ledger.manifest.n_rows // ledger.spec.shard_rows
        if len(entries) < full:
            raise StoreError(
                f"{ledger.path} cannot be extended: shard {len(entries)} or its line in "
                "the journal is damaged; choose another path, or remove it"
            )
        _require_replaceable(ledger)
    committed = sum(entry.rows for entry in entries)
    ledger.layout = replace(ledger.layout, n_rows=max(ledger.layout.n_rows, committed))
    last = len(entries) - 1
    short = bool(entries) and entries[last].rows < ledger.layout.rows_in(last)
    ledger.entries = entries[:last] if short else entries
    rewrite_journal(ledger.path, ledger.entries)
    if short:
        sweep(ledger.path, ledger.manifest)


def _require_replaceable(ledger: Ledger) -> None:
    """Refuse an extension that would fail only where it takes the place of what is complete."""
    group, last = ledger.root, ledger.n_kept - 1
    files = [group / name / "zarr.json" for name in ledger.spec.arrays]
    if ledger.manifest.n_rows % ledger.spec.shard_rows:
        files += [group / shard_key(name, last) for name in ledger.spec.arrays]
        for name in (CONTEXT_TOKENS, *ledger.spec.names):  # what comes is held to these
            ledger.kept(name, last)
    for file in files:
        if os.path.lexists(file) and not file.is_file():
            raise StoreError(
                f"{file} is no file, so the store cannot be extended; get it back: "
                f"saepipe store verify {ledger.path} --repair"
            )


def _announce(ledger: Ledger) -> None:
    """Say in the group what is being written, before the first row of it is."""
    manifest = replace(ledger.manifest, n_rows=ledger.layout.n_rows)
    if peek(ledger.path) != manifest:
        make_folder(ledger.root)
        write_root(ledger.path, manifest)
    ledger.manifest = manifest
    ledger.write_documents(manifest.n_rows)
