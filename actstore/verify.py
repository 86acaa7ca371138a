"""Check every byte of a store, at the speed of the disk."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from actstore.codec import checksum
from actstore.errors import StoreError
from actstore.files import size_of
from actstore.manifest import Manifest
from actstore.reader import load_summary
from actstore.root import GROUP, manifest_of, read_root
from actstore.shardreader import ShardReader
from actstore.summary import Summary


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

    got = size_of(file)
    if got != size:
        yield found("it is missing" if got is None else f"it has {got} bytes, not {size}")
        return
    told, whole = 0, True
    for chunk in range(reader.chunks_in(shard)):
        try:
            told = checksum(reader.check_chunk(shard, chunk), told)
        except StoreError as error:
            whole = False
            yield found(str(error), chunk)
    if whole and told != crc:
        yield found("it is not the file that was written, though each of its chunks is whole")
