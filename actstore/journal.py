"""The writer's memory: one line a committed shard; the line is what commits it."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actstore.codec import checksum
from actstore.files import canonical_json, sync_file, write_all, write_file

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
        except (ValueError, KeyError, TypeError, AttributeError):
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


def append_entry(folder: Path, entry: Entry) -> None:
    """Commit one more shard.

    Raises:
        OSError: If the disk is full or fails; a torn line is cut off again.
    """
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
    """Take away the beginning of a line whose writer died; it committed nothing.

    Raises:
        OSError: If the disk is full or fails; the journal is as it was.
    """
    path = folder / JOURNAL
    data = path.read_bytes() if path.exists() else b""
    whole = data[: data.rfind(b"\n") + 1]
    if whole != data:
        write_file(path, [whole])


def rewrite_journal(folder: Path, entries: Iterable[Entry]) -> None:
    """Replace the journal by these entries, in one step."""
    write_file(folder / JOURNAL, [entry.as_line() for entry in entries])
