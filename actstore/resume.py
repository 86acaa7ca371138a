"""From whatever a store's folder holds to a ledger that can go on: create, resume or extend."""

import json
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from actstore.errors import StoreError
from actstore.files import LOCK, PARTIAL, canonical_json, make_folder, remove
from actstore.ledger import JOURNAL, Ledger, Twin, read_journal, rewrite_journal
from actstore.manifest import Manifest, StoreSpec, differences
from actstore.settle import settle, sweep
from actstore.summary import GROUP, peek, write_root


def open_ledger(path: Path, spec: StoreSpec, *, n_rows: int, beside: Twin | None = None) -> Ledger:
    """Find out where a store stands, settle what was left of it, and say what is next."""
    n_rows = -(-n_rows // spec.ctx_len) * spec.ctx_len
    there = settle(path)
    if there is None:
        _refuse_foreign(path)
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


def _refuse_foreign(path: Path) -> None:
    """A folder that holds something else is not begun as a store, nor anything in it removed."""
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
    committed = sum(entry.rows for entry in entries)
    ledger.layout = replace(ledger.layout, n_rows=max(ledger.layout.n_rows, committed))
    last = len(entries) - 1
    short = bool(entries) and entries[last].rows < ledger.layout.rows_in(last)
    ledger.entries = entries[:last] if short else entries
    rewrite_journal(ledger.path, ledger.entries)
    if short:
        sweep(ledger.path, ledger.manifest)


def _announce(ledger: Ledger) -> None:
    """Say in the group what is being written, before the first row of it is."""
    manifest = replace(ledger.manifest, n_rows=ledger.layout.n_rows)
    if peek(ledger.path) != manifest:
        make_folder(ledger.root)
        write_root(ledger.path, manifest)
    ledger.manifest = manifest
    ledger.write_documents(manifest.n_rows)
