"""One shard of one array as a file: chunks one after another, then where each begins and ends."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped, UInt64

from actstore.codec import CRC_BYTES, checksum
from actstore.errors import StoreError

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
    chunks: Iterable[list[Parts]], *, slots: int, tally: Tally
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
    """Offset and size of each chunk, from the end of a shard file.

    Raises:
        StoreError: If the index was altered, lacks a chunk, or points outside of the file.
    """
    entries, stored = data[:-CRC_BYTES], data[-CRC_BYTES:]
    if checksum(entries) != int.from_bytes(stored, "little"):
        raise StoreError("its index does not match its checksum")
    index = np.frombuffer(entries, "<u8").astype(np.uint64).reshape(-1, 2)[:n_chunks]
    ends = index.sum(axis=1).tolist()
    if index[:, 0].tolist() != [0, *ends[:-1]] or ends[-1] != file_size - len(data):
        raise StoreError("its index does not fit the file")
    return index
