"""Tell the files of a model or a text from others, without reading gigabytes.

A fingerprint names its scheme by how it begins; one that was stored is compared with one made the
same way (`fingerprint_like` of models and texts). `sha256-2:` covers, beside names and sizes,

    weights   of each safetensors file the header, whole, and of each tensor 4 KiB at its start,
              its middle and its end; of a file without such a header, these parts of the file
    texts     everything, up to 64 MiB over all files; beyond, about 1,024 blocks of 64 KiB, which
              files share by their sizes: evenly spaced, both ends of every file among them

`sha256:`, of stores and runs of before, covers 64 KiB at both ends of each file and no more. Times
of files are in neither: models and stores are copied.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

FIRST, NOW = "sha256:", "sha256-2:"

_ENDS = 1 << 16  # bytes at each end of a file, in the first scheme
_OF_TENSOR = (3, 1 << 12)
_OF_TEXT = (1 << 10, 1 << 16)
_LONGEST_HEADER = 100_000_000  # that safetensors reads


def scheme_of(stored: str) -> str:
    """The scheme to compare with a stored fingerprint in."""
    return FIRST if stored.startswith(FIRST) else NOW


def ends_of(path: Path) -> bytes:
    """What the first scheme covers of a file."""
    with path.open("rb") as file:
        start = file.read(_ENDS)
        file.seek(max(0, path.stat().st_size - _ENDS))
        return start + file.read(_ENDS)


def parts_of_weights(path: Path) -> Iterator[bytes]:
    """What is covered of a safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = file.read(start - 8) if start <= min(size, _LONGEST_HEADER) else b""
        yield header
        tensors = _offsets(header, size - start)
        # What is no safetensors file may be one that nobody loads; whoever does is told.
        spans = [(start + a, start + b) for a, b in tensors] or [(0, size)]
        for first, end in spans:
            yield from _blocks(file, first, end, *_OF_TENSOR)


def parts_of_text(path: Path, *, total: int) -> Iterator[bytes]:
    """What is covered of one file of a text whose files have `total` bytes together."""
    size, (n, length) = path.stat().st_size, _OF_TEXT
    share = -(-n * size // max(1, total))  # rounded up, a file of a text of 64 MiB is read whole
    with path.open("rb") as file:
        yield from _blocks(file, 0, size, max(2, share), length)


def _blocks(file: BinaryIO, start: int, end: int, n: int, length: int) -> Iterator[bytes]:
    """`n` blocks spread evenly from `start` to `end`, which the outer ones touch; or all of it."""
    if end - start <= n * length:
        positions = range(start, end, length)
    else:
        last = end - start - length
        positions = (start + i * last // (n - 1) for i in range(n))
    for position in positions:
        file.seek(position)
        yield file.read(min(length, end - position))


def _offsets(header: bytes, size: int) -> list[tuple[int, int]]:
    """Where tensors begin and end in the `size` bytes behind a header; none where it is damaged."""
    try:
        told = json.loads(header)
        told.pop("__metadata__", None)
        found = [(int(a), int(b)) for a, b in (tensor["data_offsets"] for tensor in told.values())]
    except (ValueError, OverflowError, RecursionError, AttributeError, KeyError, TypeError):
        return []
    return found if all(0 <= a <= b <= size for a, b in found) else []
