"""Check every byte of a store, at the speed of the disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from actstore.codec import checksum
from actstore.errors import StoreError
from actstore.manifest import Manifest
from actstore.reader import load_summary
from actstore.root import GROUP, manifest_of, read_root
from actstore.shardreader import ShardReader
from actstore.summary import Summary

READ_BYTES = 2**22


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong with a store."""

    path: Path
    what: str
    array: str | None = None
    """None if it is not in a shard."""
    shard: int | None = None
    chunk: int | None = None
    """None if the file as a whole is wrong, or what is wrong lies outside of its chunks."""


def verify(path: Path, *, on_progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Hold every file of a complete store to its checksum, and each chunk of those that differ.

    Args:
        path: The store.
        on_progress: Told bytes checked and bytes there are, after each file.

    Returns:
        What is wrong, in the order it was found; empty if nothing is.
    """
    try:
        manifest, summary = _load(path)
    except StoreError as error:
        return [Finding(path=path, what=str(error))]
    total, done = int(summary.shard_bytes.sum()), 0
    findings: list[Finding] = []
    for column, name in enumerate(manifest.spec.arrays):
        sizes = summary.shard_bytes[:, column].tolist()
        reader = ShardReader(path / GROUP, manifest.spec, name, n_rows=manifest.n_rows, sizes=sizes)
        for shard, size in enumerate(sizes):
            crc = int(summary.shard_crc32c[shard, column])
            findings += _check_shard(reader, name, shard, size=size, crc=crc)
            done += size
            if on_progress is not None:
                on_progress(done, total)
    return findings


def _load(path: Path) -> tuple[Manifest, Summary]:
    document = read_root(path)
    if document is None:
        raise StoreError(f"there is no activation store at {path}")
    manifest = manifest_of(path, document)
    if manifest.state != "complete":
        raise StoreError(f"{path} is not finished: there is nothing to hold it to")
    return manifest, load_summary(path, manifest, document)


def _check_shard(
    reader: ShardReader, name: str, shard: int, *, size: int, crc: int
) -> Iterator[Finding]:
    file = Path(reader.path(shard))

    def found(what: str, chunk: int | None = None) -> Finding:
        return Finding(path=file, what=what, array=name, shard=shard, chunk=chunk)

    try:
        got_size, got_crc = _read_through(file)
    except OSError as error:
        yield found(f"it cannot be read: {error.strerror}")
        return
    if (got_size, got_crc) == (size, crc):
        return
    if got_size != size:
        yield found(f"it has {got_size} bytes, not {size}")
        return
    bad = [i for i in range(reader.chunks_in(shard)) if not _reads(reader, shard, i)]
    yield from (found("the chunk does not match its checksum", i) for i in bad)
    if not bad:
        yield found("the file does not match its checksum, though each chunk does")


def _reads(reader: ShardReader, shard: int, chunk: int) -> bool:
    try:
        reader.read_chunk(shard, chunk, reader.empty_chunk(shard, chunk))
    except StoreError:
        return False
    return True


def _read_through(file: Path) -> tuple[int, int]:
    """Size and crc32c of a file."""
    size = crc = 0
    buffer = np.empty(READ_BYTES, np.uint8).data
    with file.open("rb", buffering=0) as stream:
        while n := stream.readinto(buffer):
            size += n
            crc = checksum(buffer[:n], crc)
    return size, crc
