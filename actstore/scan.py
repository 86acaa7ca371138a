"""One shard's file read from end to end and held to its checksums, without decoding it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt64

from actstore.codec import checked, checksum
from actstore.errors import StoreError
from actstore.shardfile import index_bytes, parse_index

READ_BYTES = 2**19  # at a time, in whole chunks: what was read is still in the core's cache
AHEAD_BYTES = 2**23  # asked of the disk before they are read

WHOLE = "it is not the file that was written, though each of its chunks is whole"


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A file as the store's summary describes it."""

    path: Path
    array: str
    shard: int
    size: int
    crc: int
    """crc32c of the crc32c of its chunks."""
    n_chunks: int
    slots: int
    """Of its index; a short shard fills fewer."""

    def problems(self) -> list[tuple[int | None, str]]:
        """What is wrong with it, by chunk; None is the file as a whole."""
        try:
            with self.path.open("rb", buffering=0) as file:
                return list(self._problems(file))
        except FileNotFoundError:
            return [(None, "it is missing")]
        except OSError as error:
            return [(None, f"it cannot be read: {error.strerror}")]
        except StoreError as error:
            return [(None, str(error))]

    def _problems(self, file: FileIO) -> Iterator[tuple[int | None, str]]:
        size = os.fstat(file.fileno()).st_size
        if size != self.size:
            yield None, f"it has {size} bytes, not {self.size}"
            return
        length = index_bytes(self.slots)
        file.seek(size - length)
        tail = _read(file, memoryview(bytearray(length)))
        index = parse_index(tail, n_chunks=self.n_chunks, file_size=size)
        file.seek(0)
        told, whole = 0, True
        for chunk, data in _chunks(file, index):
            try:
                told = checksum(checked(data), told)
            except StoreError as error:
                whole = False
                yield chunk, str(error)
        if whole and told != self.crc:
            yield None, WHOLE


def _chunks(
    file: FileIO, index: UInt64[np.ndarray, "chunks 2"]
) -> Iterator[tuple[int, memoryview]]:
    """Each chunk as it is stored, valid until the next; the disk is asked ahead."""
    starts, sizes = index.T.tolist()
    groups = list(_groups(sizes))
    memory = memoryview(bytearray(max(sum(sizes[first:stop]) for first, stop in groups)))
    asked = 0
    for first, stop in groups:
        while asked < starts[first] + AHEAD_BYTES and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), asked, AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
            asked += AHEAD_BYTES
        data = _read(file, memory[: sum(sizes[first:stop])])
        for chunk in range(first, stop):
            begin = starts[chunk] - starts[first]
            yield chunk, data[begin : begin + sizes[chunk]]


def _groups(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """Runs of chunks that are read at once: first, one past last."""
    start, waiting = 0, 0
    for chunk, size in enumerate(sizes):
        waiting += size
        if waiting >= READ_BYTES or chunk == len(sizes) - 1:
            yield start, chunk + 1
            start, waiting = chunk + 1, 0


def _read(file: FileIO, out: memoryview) -> memoryview:
    """Fill `out` from where the file stands."""
    done = 0
    while done < len(out):
        n = file.readinto(out[done:])
        if not n:
            raise StoreError("it is shorter than it was")
        done += n
    return out
