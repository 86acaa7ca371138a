"""What the writer's own files, journal and moments, tell of a complete store.

They are held to its summary; and where the summary was lost, they tell it again.
"""

from collections.abc import Iterator
from pathlib import Path

from actstore.codec import checksum
from actstore.errors import StoreError
from actstore.journal import JOURNAL, Entry
from actstore.ledger import MOMENTS, STAGING, Ledger
from actstore.manifest import Manifest
from actstore.merge import ADDING
from actstore.root import peek
from actstore.summary import Summary

CONSEQUENCE = "the store reads on, but cannot be extended"


def told_shards(path: Path, *, generation: int) -> dict[int, Entry]:
    """The last whole line of each shard that was committed up to a generation."""
    told: dict[int, Entry] = {}
    for entry in map(Entry.from_line, _lines(path)[0]):
        if entry is not None and entry.generation <= generation:
            while told and next(reversed(told)) >= entry.shard:  # it replaces all from there on
                told.popitem()
            told[entry.shard] = entry
    return told


def rebuilt_summary(path: Path, manifest: Manifest) -> Summary | None:
    """The summary of a store out of journal and moments; None if they do not tell all of it."""
    layout = manifest.spec.layout(manifest.n_rows)
    try:
        told = told_shards(path, generation=manifest.generation)
        entries = [told[shard] for shard in range(layout.n_shards)]
        ledger = Ledger(path=path, manifest=manifest, layout=layout, entries=entries)
        summary = ledger.summary(source_exhausted=manifest.source_exhausted)
    except (OSError, StoreError, KeyError):  # KeyError: of a shard, or of a site just added
        return None
    return summary if summary.fingerprint(manifest.spec) == manifest.fingerprint else None


def check_evidence(path: Path, manifest: Manifest, summary: Summary) -> Iterator[tuple[Path, str]]:
    """What is wrong with the journal or the moments: the file, and what.

    A copy of the group alone has neither. Lines of an extension that is not complete yet are held
    to their own checksums only; such an extension may have taken back the line of a short last
    shard, and may have torn the one it was about to write. Sites whose addition is in its last
    steps are yet to be told of.
    """
    if _being_merged(path, manifest):
        return
    journal = path / JOURNAL
    if not journal.exists():
        if (path / MOMENTS).exists():
            yield journal, f"it is missing: {CONSEQUENCE}"
        return
    try:
        problems = [(journal, what) for what in _check_lines(path, manifest, summary)]
        problems = problems or list(_check_moments(path, manifest.spec.shard_rows))
    except OSError as error:
        problems = [(Path(error.filename), f"it cannot be read: {error.strerror}")]
    for file, what in problems:
        yield file, f"{what}: {CONSEQUENCE}"


def _being_merged(path: Path, manifest: Manifest) -> bool:
    try:
        added = peek(path / ADDING)
    except StoreError:
        return False
    return added is not None and set(added.spec.sites) <= set(manifest.spec.sites)


def _lines(path: Path) -> tuple[list[bytes], bytes]:
    """The lines of the journal that have an end, and what follows the last of them."""
    journal = path / JOURNAL
    *lines, rest = journal.read_bytes().split(b"\n") if journal.exists() else (b"",)
    return lines, rest


def _check_lines(path: Path, manifest: Manifest, summary: Summary) -> Iterator[str]:
    lines, rest = _lines(path)
    torn = [i + 1 for i, line in enumerate(lines) if Entry.from_line(line) is None]
    for number in torn:
        yield f"its line {number} was altered"
    told = told_shards(path, generation=manifest.generation)
    n_shards = len(summary.shard_rows)
    if rest and len(told) < n_shards and not (path / STAGING).exists():
        torn.append(len(lines) + 1)
        yield "its last line is torn"
    n_full = manifest.n_rows // manifest.spec.shard_rows
    for shard in range(n_shards):
        if shard not in told:
            if shard < n_full and not torn:
                yield f"it has no line for shard {shard}"
        elif not _agree(told[shard], shard, manifest, summary):
            yield f"its line for shard {shard} does not agree with the summary"


def _agree(entry: Entry, shard: int, manifest: Manifest, summary: Summary) -> bool:
    columns = zip(summary.shard_bytes[shard], summary.shard_crc32c[shard], strict=True)
    files = {
        name: [int(size), int(crc)]
        for name, (size, crc) in zip(manifest.spec.arrays, columns, strict=True)
    }
    return entry.rows == int(summary.shard_rows[shard]) and entry.files == files


def _check_moments(path: Path, shard_rows: int) -> Iterator[tuple[Path, str]]:
    """Those there are, and those without which nothing can follow the last full shard."""
    latest = told_shards(path, generation=2**63)
    last = max(latest)
    needed = {last, last - 1} if latest[last].rows < shard_rows else {last}
    for shard, entry in latest.items():
        file = path / MOMENTS / str(shard)
        found = _crc_of(file)
        if found is None and shard in needed:
            yield file, "it is missing"
        elif found not in (None, entry.moments):
            yield file, "it does not match its checksum in the journal"


def _crc_of(file: Path) -> int | None:
    return checksum(file.read_bytes()) if file.exists() else None
