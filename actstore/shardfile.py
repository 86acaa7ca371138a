"""One shard of one array as a file: chunks one after another, then where each begins and ends.

Chunks are decoded straight from mapped files into a caller's memory; to be held to its checksums, a
file is read from end to end without decoding it.

A file cut short under its mapping would kill the process that touches it, so its size is looked at
before each chunk. A mapping holds a descriptor: an array keeps a few, so that 10,000 shards need no
more than a process has.
"""

import mmap
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from shlex import quote

import numpy as np
from jaxtyping import Shaped, UInt64

from actstore.codec import CRC_BYTES, checked, checksum, decode
from actstore.errors import StoreError
from actstore.manifest import StoreSpec
from actstore.metadata import codec_of, dtype_of, shape_of, shard_and_chunk, shard_key
from actstore.moments import Moments

ABSENT = np.iinfo(np.uint64).max
ENTRY_BYTES = 16

Parts = tuple[bytes | memoryview, bytes]


def padded(values: Shaped[np.ndarray, "n ..."], chunk: int) -> Shaped[np.ndarray, "{chunk} ..."]:
    """A contiguous chunk: filled up with zeros if there are fewer values, as Zarr wants it."""
    if len(values) == chunk:
        return np.ascontiguousarray(values)
    full = np.zeros((chunk, *values.shape[1:]), values.dtype)
    full[: len(values)] = values
    return full


@dataclass
class Tally:
    """Size of a file, and crc32c of its chunks' crc32c, once `shard_parts` is through.

    The crc32c of the file itself would say nothing: what is followed by its own crc32c leaves the
    same remainder whatever it is, so equal sizes would give equal checksums.
    """

    size: int = 0
    crc: int = 0


def shard_parts(
    chunks: Iterable[Sequence[Parts]], *, slots: int, tally: Tally
) -> Iterator[list[bytes | memoryview]]:
    """The bytes of a shard: encoded chunks as they come, then an index of `slots` entries."""
    index = np.full((slots, 2), ABSENT, "<u8")
    offset = i = 0
    for some in chunks:
        for payload, crc in some:
            index[i] = offset, len(payload) + len(crc)
            offset += len(payload) + len(crc)
            tally.crc = checksum(crc, tally.crc)
            i += 1
        yield [part for parts in some for part in parts]
    data = index.tobytes()
    tally.size = offset + index_bytes(slots)
    yield [data, checksum(data).to_bytes(CRC_BYTES, "little")]


def index_bytes(slots: int) -> int:
    """Size of the index at the end of a shard."""
    return slots * ENTRY_BYTES + CRC_BYTES


def parse_index(
    data: bytes | memoryview, *, n_chunks: int, file_size: int
) -> UInt64[np.ndarray, "{n_chunks} 2"]:
    """Offset and size of each chunk, from the end of a shard file."""
    entries, stored = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if checksum(entries) != int.from_bytes(stored, "little"):
        raise StoreError("its index does not match its checksum")
    index = np.frombuffer(entries, "<u8").astype(np.uint64).reshape(-1, 2)[:n_chunks]
    ends = index.sum(axis=1).tolist()
    if index[:, 0].tolist() != [0, *ends[:-1]] or ends[-1] != file_size - len(data):
        raise StoreError("its index does not fit the file")
    return index


MAX_MAPPED = 64  # shards of one array; more are mapped again when their turn comes


class ShardReader:
    """The shards of one array; safe to use from many threads."""

    def __init__(
        self,
        root: Path,
        spec: StoreSpec,
        name: str,
        *,
        n_rows: int,
        sizes: list[int],
        crcs: list[int] | None = None,
    ) -> None:
        self._root = os.fspath(root)
        self._spec = spec
        self.name = name
        self._layout = spec.layout(n_rows)
        self.sizes = sizes
        self._crcs = crcs
        """`Tally.crc` of each shard; None holds no file to them."""
        self._codec = codec_of(spec, name)
        self._dtype = dtype_of(spec, name)
        shard, self.chunk_entries = shard_and_chunk(spec, name)
        """Entries of a chunk along the first axis; the last one may have fewer."""
        self.chunks_per_shard = shard // self.chunk_entries
        """Of every shard but the last."""
        self._indices: dict[int, UInt64[np.ndarray, "chunks 2"]] = {}
        self._mapped: dict[int, mmap.mmap] = {}
        self._kept: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()

    def path(self, shard: int) -> str:
        """The file of a shard."""
        return f"{self._root}/{shard_key(self.name, shard)}"

    def check_files(self) -> Iterator[StoreError]:
        """Every shard that is absent or of another size than the store says."""
        for shard, size in enumerate(self.sizes):
            try:
                found = os.stat(self.path(shard)).st_size  # noqa: PTH116 - thousands of them
            except OSError as error:
                yield self._error(shard, f"cannot be read: {error.strerror}")
            else:
                if found != size:
                    yield self._error(shard, f"has {found} bytes, not {size}")

    def keep_last(self) -> None:
        """Hold on to the last shard: an extension of the store may replace its file."""
        shard = len(self.sizes) - 1
        self._kept[shard] = self._map(shard)

    def empty(self, entries: int) -> Shaped[np.ndarray, "..."]:
        """Memory for that many entries."""
        _, *tail = shape_of(self._spec, self.name, self._layout.n_rows)
        return np.empty((entries, *tail), self._dtype)

    def entries_in(self, shard: int) -> int:
        """Entries of a shard along the first axis."""
        return shape_of(self._spec, self.name, self._layout.rows_in(shard))[0]

    def chunks_in(self, shard: int) -> int:
        """Chunks of a shard."""
        return -(-self.entries_in(shard) // self.chunk_entries)

    def read(self, shard: int) -> Shaped[np.ndarray, "..."]:
        """All values of one shard."""
        out = self.empty(self.entries_in(shard))
        for chunk in range(self.chunks_in(shard)):
            start = chunk * self.chunk_entries
            self.read_chunk(shard, chunk, out[start : start + self.chunk_entries])
        return out

    def read_chunk(
        self, shard: int, chunk: int, out: Shaped[np.ndarray, "n ..."], *, skip: int = 0
    ) -> None:
        """Read, check and decode one chunk: its entries from `skip` on, into contiguous `out`."""
        mapped = self._map(shard)
        offset, size = self._index(shard, mapped)[chunk].tolist()
        data = memoryview(mapped)[offset : offset + size]
        try:
            if len(out) == self.chunk_entries:
                decode(data, self._codec, out)
            else:
                full = np.empty((self.chunk_entries, *out.shape[1:]), out.dtype)
                decode(data, self._codec, full)
                out[:] = full[skip : skip + len(out)]
        except StoreError as error:
            raise self._error(shard, f"is damaged in chunk {chunk}: {error}") from error

    def moments(self, shard: int) -> Moments:
        """Those of a shard's rows, of a site."""
        found, entries = Moments.empty(self.empty(0).shape[1]), self.entries_in(shard)
        out = self.empty(min(entries, self.chunk_entries))
        for chunk, start in enumerate(range(0, entries, self.chunk_entries)):
            rows = out[: entries - start]
            self.read_chunk(shard, chunk, rows)
            found += Moments.of(rows)
        return found

    def want(self, shard: int, chunk: int) -> None:
        """Tell the system that a chunk will be read soon."""
        if hasattr(mmap, "MADV_WILLNEED"):
            mapped = self._map(shard)
            offset, size = self._index(shard, mapped)[chunk].tolist()
            start = offset - offset % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, start, offset + size - start)

    def _map(self, shard: int) -> mmap.mmap:
        """The shard's file, at least as long as the store says at this moment."""
        mapped = self._kept.get(shard) or self._mapped.get(shard)
        try:
            if mapped is None:
                mapped = self._mapped_anew(shard)
            long_enough = mapped.size() >= self.sizes[shard]
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            what = getattr(error, "strerror", None) or "it is shorter than it was"
            raise self._error(shard, f"cannot be read: {what}") from error
        if not long_enough:
            raise self._error(shard, "is shorter than it was")
        return mapped

    def _mapped_anew(self, shard: int) -> mmap.mmap:
        fd = os.open(self.path(shard), os.O_RDONLY)
        try:
            mapped = mmap.mmap(fd, self.sizes[shard], access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
        with self._lock:
            while len(self._mapped) >= MAX_MAPPED:  # whoever reads it holds on to it
                self._mapped.pop(next(iter(self._mapped)))
            self._mapped[shard] = mapped
        return mapped

    def _index(self, shard: int, mapped: mmap.mmap) -> UInt64[np.ndarray, "chunks 2"]:
        """Where the chunks of a shard lie; read once, and held to those it was written with."""
        index = self._indices.get(shard)
        if index is not None:
            return index
        size, length = self.sizes[shard], index_bytes(self.chunks_per_shard)
        end = memoryview(mapped[size - length : size])
        try:
            index = parse_index(end, n_chunks=self.chunks_in(shard), file_size=size)
        except StoreError as error:
            raise self._error(shard, f"is damaged: {error}") from error
        if self._crcs is not None and _crc_of_crcs(mapped, index) != self._crcs[shard]:
            raise self._error(shard, "is not the file that was written")
        self._indices[shard] = index
        return index

    def problems(self, shard: int, crc: int) -> list[tuple[int | None, str]]:
        """What is wrong with a file that has this `Tally.crc`, by chunk; None is all of it."""
        try:
            with open(self.path(shard), "rb", buffering=0) as file:  # noqa: PTH123 - a text
                return list(self._problems(file, shard, crc))
        except FileNotFoundError:
            return [(None, "it is missing")]
        except OSError as error:
            return [(None, f"it cannot be read: {error.strerror}")]
        except StoreError as error:
            return [(None, str(error))]

    def _problems(self, file: FileIO, shard: int, crc: int) -> Iterator[tuple[int | None, str]]:
        size = os.fstat(file.fileno()).st_size
        if size != self.sizes[shard]:
            yield None, f"it has {size} bytes, not {self.sizes[shard]}"
            return
        length = index_bytes(self.chunks_per_shard)
        file.seek(size - length)
        tail = _read(file, memoryview(bytearray(length)))
        index = parse_index(tail, n_chunks=self.chunks_in(shard), file_size=size)
        file.seek(0)
        told, whole = 0, True
        for chunk, data in _chunks(file, index):
            try:
                told = checksum(checked(data), told)
            except StoreError as error:
                whole = False
                yield chunk, str(error)
        if whole and told != crc:
            yield None, WHOLE

    def _error(self, shard: int, what: str) -> StoreError:
        store = quote(os.path.dirname(self._root))  # noqa: PTH120 - kept as text for its speed
        return StoreError(
            f"{self.name}, shard {shard}: {self.path(shard)} {what}; "
            f"get it back: saepipe store verify {store} --repair"
        )


READ_BYTES = 2**19  # at a time, in whole chunks: what was read is still in the core's cache
AHEAD_BYTES = 2**23  # asked of the disk before they are read

WHOLE = "it is not the file that was written, though each of its chunks is whole"


def _crc_of_crcs(data: mmap.mmap, index: UInt64[np.ndarray, "chunks 2"]) -> int:
    """`Tally.crc` of a file by what it says of its chunks, which are not looked at."""
    ends = index.sum(axis=1).tolist()
    return checksum(b"".join(data[end - CRC_BYTES : end] for end in ends))


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
