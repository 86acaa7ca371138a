"""Add sites to a complete store: only they are written, row by row beside those that are there."""

from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

from actstore.errors import StoreError
from actstore.files import remove, writing
from actstore.ledger import STAGING, Twin, read_journal
from actstore.manifest import Manifest, SiteSpec, require_sites
from actstore.merge import ADDING, complete_addition, merge
from actstore.settle import open_ledger, settle, sweep
from actstore.summary import peek, require_root
from actstore.writer import ActWriter, disk_errors_told


@contextmanager
def adding(
    path: Path,
    sites: Mapping[str, int],
    *,
    threads: int | None = None,
    queue: int = 2,
    own_process: bool = False,
) -> Generator[ActWriter]:
    """Write more sites of the rows that a complete store holds.

    The writer is of the new sites alone and takes every row of the store, from the first; what was
    committed before an interruption is kept. Readers see the old store until, on leaving with the
    writer finished, the sites join it. An extension that was left unfinished ends with the shards
    it has.

    Args:
        path: The store's folder.
        sites: Width by name of the new sites.
        threads: As of `ActWriter.create_or_resume`.
        queue: As of `ActWriter.create_or_resume`.
        own_process: As of `ActWriter.create_or_resume`.

    Raises:
        StoreError: If the store is absent, unfinished or damaged, has a site already, is given
            others just now, or another writer is at it; or if the rows are of other tokens.
    """
    new = tuple(SiteSpec(name=name, width=width) for name, width in sites.items())
    require_root(path)
    with ExitStack() as stack:
        stack.enter_context(writing(path))
        with disk_errors_told(path):
            there = _made_ready(path, set(sites))
        twin = Twin.load(path)
        spec = replace(there.spec, sites=new)
        with ActWriter.create_or_resume(
            path / ADDING,
            spec,
            n_rows=there.n_rows,
            threads=threads,
            queue=queue,
            own_process=own_process,
            beside=twin,
        ) as writer:
            yield writer
        added = peek(path / ADDING)
        if added is None or added.state != "complete":
            return
        if added.n_rows != there.n_rows:  # the source ended before it gave them all
            raise twin.differs(added.n_rows // spec.shard_rows)
        with disk_errors_told(path):
            merge(path, there, added)


def under_way(path: Path) -> Manifest | None:
    """The addition to the store at `path` that is not over; None if there is none.

    Raises:
        StoreError: If it is damaged.
    """
    there, added = peek(path), peek(path / ADDING)
    over = there is not None and added is not None and there.spec.holds(added.spec)
    return None if over else added


def _made_ready(path: Path, sites: set[str]) -> Manifest:
    """The manifest of a store to which these sites can be added."""
    there = peek(path)
    assert there is not None  # it was there before the lock was taken
    if there.state != "complete":
        raise StoreError(
            f"{path} is not finished: go on with the saepipe harvest that began it, "
            "then add sites to it"
        )
    added = complete_addition(path, there)
    if added is not None and set(added.spec.names) == sites:
        sweep(path, there)
        return there  # its last steps are repeated on leaving
    there = settle(path) or there
    for name in sites & set(there.spec.names):
        raise StoreError(f"{path} has the site {name} already: add only what it does not have")
    require_sites([*there.spec.names, *sites])
    begun = under_way(path)
    if begun is not None and set(begun.spec.names) != sites:
        names = begun.spec.names
        raise StoreError(
            f"{path} is just being given {', '.join(names)}: go on with that first "
            f"(--site {' --site '.join(names)}), or remove {path / ADDING}"
        )
    return _without_extension(path, there)


def _without_extension(path: Path, there: Manifest) -> Manifest:
    """End an unfinished extension with what it has: its shards lack the sites that come now."""
    ledger = open_ledger(path, there.spec, n_rows=there.n_rows)
    n_rows = sum(entry.rows for entry in takewhile(ledger.holds, read_journal(path)))
    if n_rows > ledger.manifest.n_rows:
        return open_ledger(path, there.spec, n_rows=n_rows).finish(source_exhausted=False)
    remove(path / STAGING)
    return ledger.manifest
