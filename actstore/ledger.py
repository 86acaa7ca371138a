"""What of a store is committed, how a shard joins it, and how a generation becomes complete.

Everything here runs on one thread at a time and under the writer's lock. The order of the steps is
the point: after a crash between any two of them, `Ledger.open` finds a state it can go on from.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from actstore.codec import checksum
from actstore.errors import StoreError
from actstore.files import (
    PARTIAL,
    make_folder,
    readable_json,
    remove,
    size_of,
    sync_folder,
    write_file,
    write_many,
)
from actstore.journal import Entry, append_entry
from actstore.layout import Layout
from actstore.manifest import Manifest, StoreSpec
from actstore.metadata import array_document, shard_key
from actstore.moments import Moments, unpacked
from actstore.root import GROUP, write_root
from actstore.summary import Summary, read_summary, summary_name, write_summary
from actstore.twin import Twin

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
        """Write the zarr.json of every array, as of a store of `n_rows` rows.

        Raises:
            OSError: If the disk is full or fails.
        """
        write_many(
            {
                self.root / name / "zarr.json": [
                    readable_json(array_document(self.spec, name, n_rows))
                ]
                for name in self.spec.arrays
            }
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

    def moments(self) -> dict[str, Moments]:
        """The running moments of every site after the committed shards.

        Raises:
            StoreError: If their file was lost.
        """
        widths, lossy = {s.name: s.width for s in self.spec.sites}, self.spec.lossy
        if not self.entries:
            return {site: Moments.empty(width, lossy=lossy) for site, width in widths.items()}
        last = self.entries[-1]
        path = self.path / MOMENTS / str(last.shard)
        data = path.read_bytes() if path.exists() else b""
        if checksum(data) != last.moments:
            raise StoreError(f"{path} is lost or damaged, so the store cannot go on; write it anew")
        return unpacked(data, widths, lossy=lossy)

    def commit(
        self,
        *,
        shard: int,
        rows: int,
        files: Mapping[str, Sequence[int]],
        moments: Mapping[str, Moments],
        cursor: Mapping[str, object],
    ) -> None:
        """Make one more shard, whose files are in place, part of the store.

        Raises:
            StoreError: If it holds other tokens than the store that this one stands beside.
            OSError: If the disk is full or fails; the shard is then not part of it.
        """
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
            cursor=cursor,
        )
        append_entry(self.path, entry)
        self.entries.append(entry)
        (self.path / MOMENTS / str(shard - 2)).unlink(missing_ok=True)

    def finish(self, *, source_exhausted: bool) -> Manifest:
        """Complete the generation with what is committed.

        Raises:
            OSError: If the disk is full or fails; the store can be resumed.
        """
        if self.manifest.state == "complete" and self.n_rows < self.manifest.n_rows:
            return self._found_nothing_new(source_exhausted=source_exhausted)
        summary = self.summary(source_exhausted=source_exhausted)
        self.announce(summary)
        self.publish(summary)
        return self.manifest

    def summary(self, *, source_exhausted: bool) -> Summary:
        """What the committed shards come to.

        Raises:
            StoreError: If the file of their moments was lost.
        """
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

    def _found_nothing_new(self, *, source_exhausted: bool) -> Manifest:
        """The old last shard stays; that the source has ended is told: nobody need ask again."""
        old = self.manifest
        if source_exhausted and not old.source_exhausted:
            summary = read_summary(self.root / summary_name(old.generation), self.spec)
            summary = replace(summary, source_exhausted=True)
            self.announce(summary)
            self.publish(summary)
        return self.manifest

    def announce(self, summary: Summary) -> None:
        """Write the summary of the next generation: from here on it will be completed.

        Raises:
            OSError: If the disk is full or fails; the store can be resumed.
        """
        folder = self.root / summary_name(self.manifest.generation + 1)
        remove(folder)
        write_summary(folder, summary)

    def publish(self, summary: Summary) -> None:
        """Everything after the summary of a new generation stands; may be repeated after a crash.

        Raises:
            OSError: If the disk is full or fails.
        """
        old = self.manifest
        manifest = replace(
            old,
            n_rows=summary.n_rows,
            state="complete",
            generation=old.generation + 1,
            source_exhausted=summary.source_exhausted,
            fingerprint=summary.fingerprint(self.spec),
        )
        self._move_staged()
        self.write_documents(manifest.n_rows)
        write_root(self.path, manifest, summary)
        self.manifest = manifest
        self.remove_old()

    def remove_old(self) -> None:
        """Remove what the generation before this one leaves behind; may be repeated."""
        remove(self.root / summary_name(self.manifest.generation - 1))
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
