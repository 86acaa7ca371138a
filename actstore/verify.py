"""Check every byte of a store, as fast as its disk gives them."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path
from typing import Any

from actstore.errors import StoreError
from actstore.evidence import check_evidence, rebuilt_summary
from actstore.manifest import CONTEXT_TOKENS, ROW_ARRAYS, Manifest, StoreSpec
from actstore.metadata import array_document, root_document, shard_and_chunk, shard_key
from actstore.root import GROUP, being_extended, documents_of, manifest_of, read_root
from actstore.scan import ShardFile
from actstore.summary import Summary, check_document, read_summary, summary_name


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
    """Hold every file of a complete store to its checksum, and each chunk of every shard.

    Args:
        path: The store.
        threads: That read; None means one for each core, from 4 to 8: they wait for the disk.
        on_progress: Told bytes checked and bytes there are, after each shard file.

    Returns:
        What is wrong: zarr.json files, shards array by array, then the writer's own files; empty
        if nothing is. The order does not depend on the threads.
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
        files = list(_shard_files(path, manifest, summary))
        findings += _scanned(
            files, manifest, threads or max(4, min(8, cpu_count() or 1)), on_progress
        )
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
    folder = path / GROUP / summary_name(manifest.generation)
    summary = rebuilt = None
    try:
        summary = read_summary(folder, manifest.spec)
        if summary.fingerprint(manifest.spec) != manifest.fingerprint:
            summary = None
            found.append(Finding(path=folder, what=f"{folder} is not that of this store"))
    except StoreError as error:
        found.append(Finding(path=folder, what=str(error)))
    if summary is None:
        rebuilt = rebuilt_summary(path, manifest)
    known = summary or rebuilt
    if known is not None and document != root_document(manifest, documents_of(manifest, known)):
        what = "it was altered: it is not what a writer put there"
        found.append(Finding(path=path / GROUP / "zarr.json", what=what))
    for name in manifest.spec.arrays:
        try:
            expected = array_document(manifest.spec, name, manifest.n_rows)
            check_document(path / GROUP / name, expected)
        except StoreError as error:
            file = path / GROUP / name / "zarr.json"
            found.append(Finding(path=file, what=str(error), array=name))
    return known, found


def _shard_files(path: Path, manifest: Manifest, summary: Summary) -> Iterator[ShardFile]:
    for column, name in enumerate(manifest.spec.arrays):
        per_shard, per_chunk = shard_and_chunk(manifest.spec, name)
        for shard, rows in enumerate(summary.shard_rows.tolist()):
            entries = rows // manifest.spec.ctx_len if name == CONTEXT_TOKENS else rows
            yield ShardFile(
                path=path / GROUP / shard_key(name, shard),
                array=name,
                shard=shard,
                size=int(summary.shard_bytes[shard, column]),
                crc=int(summary.shard_crc32c[shard, column]),
                n_chunks=-(-entries // per_chunk),
                slots=per_shard // per_chunk,
            )


def _scanned(
    files: list[ShardFile],
    manifest: Manifest,
    threads: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[Finding]:
    """What is wrong with shards, in the order of `files`."""
    total, done = sum(file.size for file in files), 0
    findings: list[Finding] = []
    pool = ThreadPoolExecutor(threads, "actstore-verify")
    try:
        for file, problems in zip(files, pool.map(ShardFile.problems, files), strict=True):
            for chunk, what in problems:
                findings.append(_finding(file, chunk, what, manifest))
            done += file.size
            if on_progress is not None:
                on_progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
    return findings


def _finding(file: ShardFile, chunk: int | None, what: str, manifest: Manifest) -> Finding:
    return Finding(
        path=file.path,
        what=what,
        array=file.array,
        shard=file.shard,
        chunk=chunk,
        rows=_rows_lost(manifest.spec, file, chunk, n_rows=manifest.n_rows),
    )


def _rows_lost(
    spec: StoreSpec, file: ShardFile, chunk: int | None, *, n_rows: int
) -> tuple[int, int]:
    """Rows of a chunk, or of the whole shard."""
    start = file.shard * spec.shard_rows
    stop = min(start + spec.shard_rows, n_rows)
    if chunk is None or file.array in ROW_ARRAYS or file.array == CONTEXT_TOKENS:
        return start, stop  # these have one chunk a shard
    start += chunk * spec.chunk_rows
    return start, min(start + spec.chunk_rows, stop)
