"""What of a store is committed, how a shard joins it, and how a generation becomes complete.

The journal is the writer's memory: one line a committed shard; the line is what commits it.

Everything here runs on one thread at a time and under the writer's lock. The order of the steps is
the point: after a crash between any two of them, `open_ledger` finds a state it can go on from.
What a full or failing disk says, OSError, passes through.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from actstore.codec import checksum
from actstore.errors import StoreError
from actstore.files import (
    PARTIAL,
    canonical_json,
    make_folder,
    readable_json,
    remove,
    size_of,
    sync_file,
    sync_folder,
    write_all,
    write_file,
    write_many,
)
from actstore.layout import Layout
from actstore.manifest import FORMAT_VERSION, TOKEN_ARRAYS, Manifest, StoreSpec
from actstore.metadata import array_document, shard_key
from actstore.moments import Moments, unpacked
from actstore.reader import load_summary
from actstore.shardfile import ShardReader
from actstore.shardwriter import Written
from actstore.summary import (
    GROUP,
    Summary,
    read_summary,
    require_root,
    summary_name,
    write_root,
    write_summary,
)

JOURNAL = "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One committed shard."""

    shard: int
    rows: int
    generation: int
    """Which completion of the store it was written for."""
    files: Mapping[str, Sequence[int]]
    """Of each array: the bytes of its file, and their crc32c."""
    moments: int
    """crc32c of the file of running moments after this shard."""
    cursor: Mapping[str, object]
    """Where the source stands after this shard."""

    def as_line(self) -> bytes:
        """The entry as it stands in the journal, its own checksum last."""
        told = asdict(self)
        return canonical_json({**told, "crc32c": checksum(canonical_json(told))}) + b"\n"

    @staticmethod
    def from_line(line: bytes) -> "Entry | None":
        """Inverse of `as_line`; None if the line is torn or altered."""
        try:
            told: dict[str, Any] = json.loads(line)
            crc = told.pop("crc32c")
            return Entry(**told) if crc == checksum(canonical_json(told)) else None
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            return None


def read_journal(folder: Path) -> list[Entry]:
    """The committed shards, 0, 1, 2 and so on, up to the first line that is torn or missing.

    A shard that was written again by a later generation is told by its last line.
    """
    path = folder / JOURNAL
    entries: list[Entry] = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        entry = Entry.from_line(line)
        if entry is None or entry.shard > len(entries):
            break
        entries[entry.shard :] = [entry]
    return entries


def journal_lines(folder: Path) -> tuple[list[bytes], bytes]:
    """The lines of the journal that have an end, and what follows the last of them."""
    path = folder / JOURNAL
    *lines, rest = path.read_bytes().split(b"\n") if path.exists() else (b"",)
    return lines, rest


def journal_is_whole(folder: Path) -> bool:
    """Whether each line of the journal is as it was written; of the last, a beginning will do."""
    lines, rest = journal_lines(folder)
    return None not in map(Entry.from_line, lines) and rest[:1] in (b"", b"{")


def holds_rows(folder: Path) -> bool:
    """Whether a shard was ever committed there, be what was told of it damaged or not."""
    journal = folder / JOURNAL
    return journal.exists() and journal.stat().st_size > 0


def append_entry(folder: Path, entry: Entry) -> None:
    """Commit one more shard; a line that was torn by a full disk is cut off again."""
    fd = os.open(folder / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        size = os.fstat(fd).st_size
        try:
            write_all(fd, [entry.as_line()])
            sync_file(fd)
        except OSError:
            os.ftruncate(fd, size)
            raise
    finally:
        os.close(fd)


def cut_torn_line(folder: Path) -> None:
    """Take away the beginning of a line whose writer died; it committed nothing."""
    path = folder / JOURNAL
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        write_file(path, [whole])


def rewrite_journal(folder: Path, entries: Iterable[Entry]) -> None:
    """Replace the journal by these entries, in one step."""
    write_file(folder / JOURNAL, [entry.as_line() for entry in entries])


@dataclass(frozen=True, kw_only=True, eq=False)
class Twin:
    """A complete store that another is written beside: row `i` of both is of the same token."""

    path: Path
    manifest: Manifest
    summary: Summary

    @staticmethod
    def load(path: Path) -> "Twin":
        """Read what a complete store says of its shards."""
        document, manifest = require_root(path)
        summary = load_summary(path, manifest, document)
        return Twin(path=path, manifest=manifest, summary=summary)

    def require_same(
        self, shard: int, *, rows: int, files: Mapping[str, Sequence[int]], group: Path
    ) -> None:
        """Hold a shard of the other store, whose files are in `group`, to the tokens of this."""
        if not (shard < len(self.summary.shard_rows) and rows == self.summary.shard_rows[shard]):
            raise self.differs(shard)
        own_files = self.summary.files(self.manifest.spec, shard)
        for name in TOKEN_ARRAYS:
            if tuple(files[name]) == own_files[name]:
                continue
            # Another release of the compressor packs the same tokens differently.
            own = self._read(self.path / GROUP, name, shard, rows=rows, size=own_files[name][0])
            other = self._read(group, name, shard, rows=rows, size=files[name][0])
            if not np.array_equal(own, other):
                raise self.differs(shard)

    def differs(self, shard: int) -> StoreError:
        """What it means that the other store has another shard."""
        return StoreError(
            f"{self.path} cannot take more sites: its source no longer gives the tokens it gave "
            f"for shard {shard}; it stays as it was, write another store"
        )

    def _read(
        self, group: Path, name: str, shard: int, *, rows: int, size: int
    ) -> Shaped[np.ndarray, "..."]:
        spec = self.manifest.spec
        sizes = [0] * shard + [size]
        n_rows = shard * spec.shard_rows + rows
        return ShardReader(group, spec, name, n_rows=n_rows, sizes=sizes).read(shard)


STAGING = "staging"
MOMENTS = "moments"


@dataclass(kw_only=True, eq=False)
class Ledger:
    """A store under its writer: what the root says, and the shards committed since."""

    path: Path
    manifest: Manifest
    layout: Layout
    """Of the rows that are wanted."""
    entries: list[Entry] = field(default_factory=list[Entry])
    beside: Twin | None = None
    """The store whose tokens these rows must stand for too."""

    @staticmethod
    def of(path: Path, manifest: Manifest) -> "Ledger":
        """Of a store that is wanted as it is told to be, none of whose shards is looked at."""
        return Ledger(path=path, manifest=manifest, layout=manifest.spec.layout(manifest.n_rows))

    @property
    def spec(self) -> StoreSpec:
        """The store's."""
        return self.manifest.spec

    @property
    def root(self) -> Path:
        """The Zarr group."""
        return self.path / GROUP

    @property
    def complete(self) -> bool:
        """Whether the rows that are wanted are there, and nothing is left to do."""
        return self.manifest.state == "complete" and self.layout.n_rows <= self.manifest.n_rows

    @property
    def n_rows(self) -> int:
        """Rows that are committed."""
        return sum(entry.rows for entry in self.entries)

    @property
    def n_kept(self) -> int:
        """Shards of the complete generation, which readers may hold: only ever replaced at once."""
        if self.manifest.state == "writing":
            return 0
        return self.spec.layout(self.manifest.n_rows).n_shards

    def place(self, array: str, shard: int) -> Path:
        """Where the file of a shard is written."""
        return self._group(shard) / shard_key(array, shard)

    def _group(self, shard: int) -> Path:
        return self.path / STAGING if shard < self.n_kept else self.root

    def write_documents(self, n_rows: int) -> None:
        """Write the zarr.json of every array, as of a store of `n_rows` rows."""
        documents = {name: array_document(self.spec, name, n_rows) for name in self.spec.arrays}
        write_many(
            {self.root / name / "zarr.json": [readable_json(d)] for name, d in documents.items()}
        )

    def staged(self, entry: Entry) -> bool:
        """Whether the files of a committed shard wait to replace those that readers may hold."""
        return entry.shard < self.n_kept and entry.generation > self.manifest.generation

    def holds(self, entry: Entry) -> bool:
        """Whether the files of a committed shard are there, as long as the journal says."""
        folder = self.path / STAGING if self.staged(entry) else self.root
        return set(entry.files) == set(self.spec.arrays) and all(
            size_of(folder / shard_key(name, entry.shard)) == size
            for name, (size, _) in entry.files.items()
        )

    def kept(self, name: str, shard: int) -> Shaped[np.ndarray, "n width"]:
        """An array of a shard of the complete generation, every byte checked."""
        rows = self.manifest.n_rows
        sizes = [size_of(self.root / shard_key(name, k)) or 0 for k in range(self.n_kept)]
        return ShardReader(self.root, self.spec, name, n_rows=rows, sizes=sizes).read(shard)

    def moments(self) -> dict[str, Moments]:
        """The running moments of every site after the committed shards."""
        widths, lossy = {s.name: s.width for s in self.spec.sites}, self.spec.lossy
        if not self.entries:
            return {site: Moments.empty(width, lossy=lossy) for site, width in widths.items()}
        last = self.entries[-1]
        path = self.path / MOMENTS / str(last.shard)
        data = path.read_bytes() if path.exists() else b""
        if checksum(data) != last.moments:
            raise StoreError(f"{path} is lost or damaged, so the store cannot go on; write it anew")
        return unpacked(data, widths, lossy=lossy)

    def commit(self, written: Written, moments: Mapping[str, Moments]) -> None:
        """Make one more shard, whose files are in place, part of the store."""
        shard, rows, files = written.shard.index, written.shard.n_rows, written.files
        if self.beside is not None:
            self.beside.require_same(shard, rows=rows, files=files, group=self._group(shard))
        data = b"".join(moments[site.name].to_bytes() for site in self.spec.sites)
        make_folder(self.path / MOMENTS)
        write_file(self.path / MOMENTS / str(shard), [data])
        entry = Entry(
            shard=shard,
            rows=rows,
            generation=self.manifest.generation + 1,
            files={name: list(numbers) for name, numbers in files.items()},
            moments=checksum(data),
            cursor=written.shard.cursor,
        )
        append_entry(self.path, entry)
        self.entries.append(entry)
        (self.path / MOMENTS / str(shard - 2)).unlink(missing_ok=True)

    def finish(self, *, source_exhausted: bool) -> Manifest:
        """Complete the generation with what is committed."""
        old = self.manifest
        if old.state == "complete" and self.n_rows < old.n_rows:  # the old last shard stays
            if old.source_exhausted or not source_exhausted:
                return old
            summary = read_summary(self.root / summary_name(old.generation), self.spec)
            summary = replace(summary, source_exhausted=True)  # told: nobody need ask again
        else:
            summary = self.summary(source_exhausted=source_exhausted)
        self.announce(summary)
        self.publish(summary)
        return self.manifest

    def summary(self, *, source_exhausted: bool) -> Summary:
        """What the committed shards come to."""
        moments = self.moments()
        arrays = self.spec.arrays
        numbers = np.array([[entry.files[name] for name in arrays] for entry in self.entries])
        return Summary(
            source_exhausted=source_exhausted,
            shard_rows=np.array([entry.rows for entry in self.entries], "<i8"),
            shard_bytes=numbers[:, :, 0].astype("<i8"),
            shard_crc32c=numbers[:, :, 1].astype("<u4"),
            mean={name: m.mean for name, m in moments.items()},
            var={name: m.var for name, m in moments.items()},
            rounding={n: m.rounding for n, m in moments.items() if m.rounding is not None},
        )

    def announce(self, summary: Summary) -> None:
        """Write the summary of the next generation: from here on it will be completed."""
        folder = self.root / summary_name(self.manifest.generation + 1)
        remove(folder)
        write_summary(folder, summary)

    def publish(self, summary: Summary) -> None:
        """All that comes after the summary of a new generation; may be repeated after a crash."""
        old = self.manifest
        manifest = replace(
            old,
            n_rows=summary.n_rows,
            state="complete",
            generation=old.generation + 1,
            source_exhausted=summary.source_exhausted,
            fingerprint=summary.fingerprint(self.spec),
            format_version=FORMAT_VERSION,
        )
        self._move_staged()
        self.write_documents(manifest.n_rows)
        write_root(self.path, manifest, summary)
        self.manifest = manifest
        remove(self.root / summary_name(old.generation))
        if not any(self._staged_files()):  # of an extension that is to go on
            remove(self.path / STAGING)

    def _move_staged(self) -> None:
        """Replace the short last shard of the old generation by its longer self."""
        for file in list(self._staged_files()):
            target = self.root / file.relative_to(self.path / STAGING)
            file.replace(target)
            sync_folder(target.parent)

    def _staged_files(self) -> Iterator[Path]:
        for file in (self.path / STAGING).rglob("*"):
            if file.is_file() and not file.name.endswith(PARTIAL):
                yield file
