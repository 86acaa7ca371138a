"""Chunks of a complete store's shards, decoded straight from mapped files into a caller's memory.

A file cut short under its mapping would kill the process that touches it, so its size is looked at
before each chunk. A mapping holds a descriptor: an array keeps a few, so that 10,000 shards need no
more than a process has.
"""

import mmap
import os
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

import numpy as np
from jaxtyping import Shaped, UInt64

from actstore.codec import decode
from actstore.errors import StoreError
from actstore.manifest import StoreSpec
from actstore.metadata import codec_of, dtype_of, shape_of, shard_and_chunk, shard_key
from actstore.shardfile import index_bytes, parse_index

MAX_MAPPED = 64  # shards of one array; more are mapped again when their turn comes


class ShardReader:
    """The shards of one array; safe to use from many threads."""

    def __init__(
        self, root: Path, spec: StoreSpec, name: str, *, n_rows: int, sizes: list[int]
    ) -> None:
        self._root = os.fspath(root)
        self._spec = spec
        self._name = name
        self._layout = spec.layout(n_rows)
        self._sizes = sizes
        self._codec = codec_of(spec, name)
        self._dtype = dtype_of(spec, name)
        self._slot = shard_and_chunk(spec, name)
        self._indices: dict[int, UInt64[np.ndarray, "chunks 2"]] = {}
        self._mapped: dict[int, mmap.mmap] = {}
        self._kept: dict[int, mmap.mmap] = {}
        self._lock = threading.Lock()

    def path(self, shard: int) -> str:
        """The file of a shard."""
        return f"{self._root}/{shard_key(self._name, shard)}"

    def check_files(self) -> Iterator[StoreError]:
        """Every shard that is absent or of another size than the store says."""
        for shard, size in enumerate(self._sizes):
            try:
                found = os.stat(self.path(shard)).st_size  # noqa: PTH116 - thousands of them
            except OSError as error:
                yield self._error(shard, f"cannot be read: {error.strerror}")
            else:
                if found != size:
                    yield self._error(shard, f"has {found} bytes, not {size}")

    def keep_last(self) -> None:
        """Hold on to the last shard: an extension of the store may replace its file."""
        shard = len(self._sizes) - 1
        self._kept[shard] = self._map(shard)

    @property
    def chunk_entries(self) -> int:
        """Entries of a chunk along the first axis; the last one may have fewer."""
        return self._slot[1]

    @property
    def chunks_per_shard(self) -> int:
        """Chunks of every shard but the last."""
        return self._slot[0] // self._slot[1]

    def empty(self, entries: int) -> Shaped[np.ndarray, "..."]:
        """Memory for that many entries."""
        _, *tail = shape_of(self._spec, self._name, self._layout.n_rows)
        return np.empty((entries, *tail), self._dtype)

    def entries_in(self, shard: int) -> int:
        """Entries of a shard along the first axis."""
        return shape_of(self._spec, self._name, self._layout.rows_in(shard))[0]

    def chunks_in(self, shard: int) -> int:
        """Chunks of a shard."""
        return -(-self.entries_in(shard) // self._slot[1])

    def read(self, shard: int) -> Shaped[np.ndarray, "..."]:
        """All values of one shard."""
        out = self.empty(self.entries_in(shard))
        for chunk in range(self.chunks_in(shard)):
            start = chunk * self._slot[1]
            self.read_chunk(shard, chunk, out[start : start + self._slot[1]])
        return out

    def read_chunk(
        self, shard: int, chunk: int, out: Shaped[np.ndarray, "n ..."], *, skip: int = 0
    ) -> None:
        """Read, check and decode one chunk: its entries from `skip` on, into contiguous `out`.

        Raises:
            StoreError: If the file is absent, shorter than it was, or altered; names it.
        """
        with self._stored(shard, chunk) as data:
            self._decode(data, out, skip)

    def want(self, shard: int, chunk: int) -> None:
        """Tell the system that a chunk will be read soon."""
        if hasattr(mmap, "MADV_WILLNEED"):
            mapped = self._map(shard)
            offset, size = self._index(shard, mapped)[chunk].tolist()
            start = offset - offset % mmap.PAGESIZE
            mapped.madvise(mmap.MADV_WILLNEED, start, offset + size - start)

    def _decode(self, data: memoryview, out: Shaped[np.ndarray, "n ..."], skip: int) -> None:
        if len(out) == self._slot[1]:
            decode(data, self._codec, out)
        else:
            full = np.empty((self._slot[1], *out.shape[1:]), out.dtype)
            decode(data, self._codec, full)
            out[:] = full[skip : skip + len(out)]

    @contextmanager
    def _stored(self, shard: int, chunk: int) -> Generator[memoryview]:
        """A chunk as it is stored; whatever is wrong with it is told with its place."""
        mapped = self._map(shard)
        try:
            offset, size = self._index(shard, mapped)[chunk].tolist()
            yield memoryview(mapped)[offset : offset + size]
        except StoreError as error:
            raise self._error(shard, f"is damaged in chunk {chunk}: {error}") from error

    def _map(self, shard: int) -> mmap.mmap:
        """The shard's file, at least as long as the store says at this moment."""
        mapped = self._kept.get(shard) or self._mapped.get(shard)
        try:
            if mapped is None:
                mapped = self._mapped_anew(shard)
            long_enough = mapped.size() >= self._sizes[shard]
        except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
            what = getattr(error, "strerror", None) or "it is shorter than it was"
            raise self._error(shard, f"cannot be read: {what}") from error
        if not long_enough:
            raise self._error(shard, "is shorter than it was")
        return mapped

    def _mapped_anew(self, shard: int) -> mmap.mmap:
        fd = os.open(self.path(shard), os.O_RDONLY)
        try:
            mapped = mmap.mmap(fd, self._sizes[shard], access=mmap.ACCESS_READ)
        finally:
            os.close(fd)
        with self._lock:
            while len(self._mapped) >= MAX_MAPPED:  # whoever reads it holds on to it
                self._mapped.pop(next(iter(self._mapped)))
            self._mapped[shard] = mapped
        return mapped

    def _index(self, shard: int, mapped: mmap.mmap) -> UInt64[np.ndarray, "chunks 2"]:
        """Where the chunks of a shard lie; read once."""
        index = self._indices.get(shard)
        if index is None:
            size, length = self._sizes[shard], index_bytes(self._slot[0] // self._slot[1])
            index = parse_index(
                memoryview(mapped[size - length : size]),
                n_chunks=self.chunks_in(shard),
                file_size=size,
            )
            self._indices[shard] = index
        return index

    def _error(self, shard: int, what: str) -> StoreError:
        store = quote(os.path.dirname(self._root))  # noqa: PTH120 - kept as text for its speed
        return StoreError(
            f"{self._name}, shard {shard}: {self.path(shard)} {what}; "
            f"get it back: saepipe store verify {store} --repair"
        )
