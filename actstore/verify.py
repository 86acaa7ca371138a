"""Check every byte of a store, and its statistics against its rows.

The writer's own files, journal and moments, are held to the summary; and where that was lost, they
tell it again.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from actstore.codec import checksum
from actstore.errors import StoreError
from actstore.ledger import JOURNAL, MOMENTS, STAGING, Entry, Ledger, journal_lines
from actstore.manifest import TOKEN_ARRAYS, Manifest
from actstore.merge import ADDING
from actstore.metadata import array_document, root_document
from actstore.moments import Moments
from actstore.reader import shard_readers
from actstore.shardfile import ShardReader
from actstore.summary import (
    GROUP,
    Summary,
    being_extended,
    check_document,
    documents_of,
    manifest_of,
    peek,
    read_root,
    read_summary,
    summary_name,
)

CLOSE = 1e-9
CONSEQUENCE = "the store reads on, but cannot be extended"


def told_shards(path: Path, *, generation: int) -> dict[int, Entry]:
    """The last whole line of each shard that was committed up to a generation."""
    told: dict[int, Entry] = {}
    for entry in map(Entry.from_line, journal_lines(path)[0]):
        if entry is not None and entry.generation <= generation:
            while told and next(reversed(told)) >= entry.shard:  # it replaces all from there on
                told.popitem()
            told[entry.shard] = entry
    return told


def rebuilt_summary(path: Path, manifest: Manifest) -> Summary | None:
    """The summary of a store out of journal and moments; None if they do not tell all of it."""
    ledger = Ledger.of(path, manifest)
    try:
        told = told_shards(path, generation=manifest.generation)
        ledger.entries = [told[shard] for shard in range(ledger.layout.n_shards)]
        summary = ledger.summary(source_exhausted=manifest.source_exhausted)
    except (OSError, StoreError, KeyError):  # KeyError: of a shard, or of a site just added
        return None
    return summary if summary.is_of(manifest) else None


def known_summary(path: Path, manifest: Manifest) -> tuple[Summary | None, str | None]:
    """The summary as it stands, or as journal and moments tell it, and what is wrong with it."""
    folder = path / GROUP / summary_name(manifest.generation)
    try:
        summary = read_summary(folder, manifest.spec)
    except StoreError as error:
        return rebuilt_summary(path, manifest), str(error)
    if summary.is_of(manifest):
        return summary, None
    return rebuilt_summary(path, manifest), f"{folder} is not that of this store"


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
    return added is not None and manifest.spec.holds(added.spec)


def _check_lines(path: Path, manifest: Manifest, summary: Summary) -> Iterator[str]:
    lines, rest = journal_lines(path)
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
            continue
        files = {name: tuple(numbers) for name, numbers in told[shard].files.items()}
        same_files = files == summary.files(manifest.spec, shard)
        if not same_files or told[shard].rows != summary.shard_rows[shard]:
            yield f"its line for shard {shard} does not agree with the summary"


def _check_moments(path: Path, shard_rows: int) -> Iterator[tuple[Path, str]]:
    """Those there are, and those without which nothing can follow the last full shard."""
    latest = told_shards(path, generation=2**63)
    if not latest:  # an extension took back the line of the only shard
        return
    last = max(latest)
    needed = {last, last - 1} if latest[last].rows < shard_rows else {last}
    for shard, entry in latest.items():
        file = path / MOMENTS / str(shard)
        found = checksum(file.read_bytes()) if file.exists() else None
        if found is None and shard in needed:
            yield file, "it is missing"
        elif found not in (None, entry.moments):
            yield file, "it does not match its checksum in the journal"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a store."""

    path: Path
    """The file; of the summary its folder; the store itself if it is not there or not finished."""
    what: str
    array: str | None = None
    """None if it belongs to no array."""
    shard: int | None = None
    """None if it is not in a shard."""
    chunk: int | None = None
    """None if the file as a whole is wrong, or what is wrong lies outside of its chunks."""
    rows: tuple[int, int] | None = None
    """Rows of the store that cannot be read, first and one past last; None if all can."""


def verify(
    path: Path,
    *,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> list[Finding]:
    """Hold every file of a complete store to its checksum, each chunk, and statistics to the rows.

    Args:
        path: The store.
        threads: That read; None means one for each core, from 4 to 8: they wait for the disk.
        on_progress: Told bytes checked and bytes there are, after each shard file.

    Returns:
        What is wrong: zarr.json files, shards array by array, statistics that are not those of the
        rows, then the writer's own files; empty if nothing is. The order does not depend on the
        threads.
    """
    try:
        document, manifest = _load(path)
    except StoreError as error:
        there = (path / GROUP).is_dir()
        return [Finding(path=path / GROUP / "zarr.json" if there else path, what=str(error))]
    if manifest.state != "complete":
        what = f"{path} is not finished: there is nothing to hold it to"
        return [Finding(path=path, what=what)]
    summary, findings = _check_documents(path, manifest, document)
    if summary is not None:
        n_threads = threads or max(4, min(8, cpu_count() or 1))
        findings += _scanned(path, manifest, summary, n_threads, on_progress)
        findings += [
            Finding(path=file, what=what) for file, what in check_evidence(path, manifest, summary)
        ]
    if findings and read_root(path) != document:  # an extension was completed meanwhile
        return verify(path, threads=threads, on_progress=on_progress)
    midway = being_extended(path, manifest)
    if findings and midway is not None:
        return [Finding(path=path, what=str(midway))]
    return findings


def _load(path: Path) -> tuple[dict[str, Any], Manifest]:
    document = read_root(path)
    if document is None and (path / GROUP).is_dir():
        raise StoreError(f"{path / GROUP / 'zarr.json'} is missing, without which nothing is read")
    if document is None:
        raise StoreError(f"there is no activation store at {path}")
    return document, manifest_of(path, document)


def _check_documents(
    path: Path, manifest: Manifest, document: dict[str, Any]
) -> tuple[Summary | None, list[Finding]]:
    """The summary, or what the journal tells of it, and what is wrong with any zarr.json."""
    found: list[Finding] = []
    summary, wrong = known_summary(path, manifest)
    if wrong:
        folder = path / GROUP / summary_name(manifest.generation)
        found.append(Finding(path=folder, what=wrong))
    if summary and document != root_document(manifest, documents_of(manifest, summary)):
        what = "it was altered: it is not what a writer put there"
        found.append(Finding(path=path / GROUP / "zarr.json", what=what))
    for name in manifest.spec.arrays:
        try:
            expected = array_document(manifest.spec, name, manifest.n_rows)
            check_document(path / GROUP / name, expected)
        except StoreError as error:
            file = path / GROUP / name / "zarr.json"
            found.append(Finding(path=file, what=str(error), array=name))
    return summary, found


def _scanned(
    path: Path,
    manifest: Manifest,
    summary: Summary,
    threads: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[Finding]:
    """What is wrong with shards, array by array; then with statistics of sites that are whole."""
    arrays = shard_readers(path, manifest, summary).values()
    columns = zip(arrays, summary.shard_crc32c.T.tolist(), strict=True)
    files = [(array, shard, crc) for array, crcs in columns for shard, crc in enumerate(crcs)]
    total, done = int(summary.shard_bytes.sum()), 0
    findings: list[Finding] = []
    whole: dict[str, Moments] = {}
    pool = ThreadPoolExecutor(threads, "actstore-verify")
    try:
        found = pool.map(_looked_at, *zip(*files, strict=True))
        for (array, shard, _), (problems, moments) in zip(files, found, strict=True):
            if moments is not None and (shard == 0 or array.name in whole):
                whole[array.name] = moments + whole[array.name] if shard else moments
            else:
                whole.pop(array.name, None)
            findings += [
                Finding(
                    path=Path(array.path(shard)),
                    what=what,
                    array=array.name,
                    shard=shard,
                    chunk=chunk,
                    rows=_rows_lost(manifest, array.name, shard, chunk),
                )
                for chunk, what in problems
            ]
            done += array.sizes[shard]
            if on_progress is not None:
                on_progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    folder = path / GROUP / summary_name(manifest.generation)
    return findings + [
        Finding(path=folder, what=f"mean and variance of {site} are not those of its rows")
        for site, moments in whole.items()
        if not _same_statistics(moments, mean=summary.mean[site], var=summary.var[site])
    ]


def _looked_at(
    array: ShardReader, shard: int, crc: int
) -> tuple[list[tuple[int | None, str]], Moments | None]:
    """What is wrong with a file, and if nothing is and it is of a site, the moments of its rows."""
    problems = array.problems(shard, crc)
    is_site = array.name not in TOKEN_ARRAYS
    return problems, array.moments(shard) if is_site and not problems else None


def _same_statistics(
    rows: Moments, *, mean: Float64[np.ndarray, " width"], var: Float64[np.ndarray, " width"]
) -> bool:
    """Up to the order in which they were summed, which is another on another processor."""
    square = rows.var + np.square(rows.mean)
    return bool(
        (abs(mean - rows.mean) <= CLOSE * np.sqrt(square)).all()
        and (abs(var - rows.var) <= CLOSE * square).all()
    )


def _rows_lost(manifest: Manifest, array: str, shard: int, chunk: int | None) -> tuple[int, int]:
    """Rows of a chunk, or of the whole shard."""
    spec = manifest.spec
    start = shard * spec.shard_rows
    stop = min(start + spec.shard_rows, manifest.n_rows)
    if chunk is None or array in TOKEN_ARRAYS:
        return start, stop  # these have one chunk a shard
    start += chunk * spec.chunk_rows
    return start, min(start + spec.chunk_rows, stop)
