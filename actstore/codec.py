"""How values become bytes: one table from name to codec chain, and from dtype to storage.

The lossy step of `bitround:N` leaves fewer distinct values, which compress better, in an ordinary
array that any reader opens; what it lost is measured where it is lost. The idea is BitRound's
(Kloewer et al. 2021, doi:10.1038/s43588-021-00156-2).
"""

import re
import warnings
from collections.abc import Mapping
from typing import Final

import numpy as np
from crc32c import crc32c as checksum
from jaxtyping import Shaped

from actstore.errors import StoreError

with warnings.catch_warnings(record=True):  # whose crc32c numcodecs likes is nothing to its users
    from numcodecs.blosc import BITSHUFFLE, Blosc


def mantissa_bits(storage: np.dtype) -> int:
    """Bits of mantissa that a stored dtype has; uint16 are bits of bfloat16."""
    return 7 if storage == np.uint16 else np.finfo(storage).nmant


def rounded(values: Shaped[np.ndarray, "*shape"], *, keep: int) -> Shaped[np.ndarray, "*shape"]:
    """Finite values with `keep` bits of mantissa: the nearest, to even where two are as near.

    A value that would round up to infinity becomes the largest that is finite.
    """
    word = np.dtype(f"u{values.itemsize}").type
    bits = values.view(word)
    mantissa = mantissa_bits(values.dtype)
    drop = mantissa - keep
    sign, tail = word(1 << (8 * values.itemsize - 1)), word((1 << drop) - 1)
    largest = word(int(sign) - (1 << mantissa) - 1)
    size = bits & ~sign
    size += (tail >> word(1)) + ((size >> word(drop)) & word(1))
    np.minimum(size, largest, out=size)
    size &= ~tail
    return (size | (bits & sign)).view(values.dtype)


CODECS: Final[Mapping[str, Blosc | None]] = {
    "lz4": Blosc(cname="lz4", clevel=5, shuffle=BITSHUFFLE),
    "zstd": Blosc(cname="zstd", clevel=5, shuffle=BITSHUFFLE),
    "raw": None,
}
"""All exact. Bit shuffling gathers what exponents have in common; mantissas are noise."""

STORAGE: Final[Mapping[str, np.dtype]] = {
    "bfloat16": np.dtype("<u2"),  # its bits: Zarr has no bfloat16 that every reader knows
    "float16": np.dtype("<f2"),
    "float32": np.dtype("<f4"),
}

ROUNDING = "bitround:"
"""`bitround:N` keeps N bits of mantissa, then goes on as `lz4`."""

CRC_BYTES = 4


def check_codec(codec: str, dtype: str) -> None:
    """Hold a codec to those there are for a dtype."""
    most = mantissa_bits(STORAGE[dtype]) - 1
    if codec in CODECS:
        return
    if not re.fullmatch(rf"{ROUNDING}[1-9]\d?", codec) or int(codec[len(ROUNDING) :]) > most:
        raise StoreError(
            f"unknown codec {codec!r} of {dtype}; "
            f"known are {', '.join(CODECS)} and, lossy, {ROUNDING}1 to {ROUNDING}{most}"
        )


def kept_bits(codec: str) -> int | None:
    """Bits of mantissa that a lossy codec keeps; None if it is exact."""
    return int(codec[len(ROUNDING) :]) if codec.startswith(ROUNDING) else None


def _compressor(codec: str) -> Blosc | None:  # pyright: ignore[reportUnknownParameterType]
    return CODECS["lz4" if kept_bits(codec) else codec]


def encode(values: Shaped[np.ndarray, "..."], codec: str) -> tuple[bytes | memoryview, bytes]:
    """One chunk as it is stored: its payload, and the payload's crc32c.

    Releases the GIL for nearly all of its time, so it scales over threads.
    """
    compressor = _compressor(codec)
    payload = values.data.cast("B") if compressor is None else compressor.encode(values)
    return payload, checksum(payload).to_bytes(CRC_BYTES, "little")


def checked(data: memoryview) -> bytes:
    """The crc32c that a stored chunk ends with."""
    stored = bytes(data[-CRC_BYTES:])
    if checksum(data[:-CRC_BYTES]).to_bytes(CRC_BYTES, "little") != stored:
        raise StoreError("its bytes do not match their checksum")
    return stored


def decode(data: memoryview, codec: str, out: Shaped[np.ndarray, "..."]) -> None:
    """Check a stored chunk against its crc32c and decode it into contiguous `out`."""
    checked(data)
    payload = data[:-CRC_BYTES]
    compressor = _compressor(codec)
    size = len(payload) if compressor is None else int.from_bytes(payload[4:8], "little")
    if size != out.nbytes:
        raise StoreError(f"it holds {size} bytes, not {out.nbytes}")
    if compressor is None:
        out.reshape(-1).view(np.uint8)[:] = np.frombuffer(payload, np.uint8)
    else:
        compressor.decode(payload, out=out)


def zarr_codecs(codec: str, dtype: np.dtype) -> list[dict[str, object]]:
    """The chain that `encode` follows, as Zarr metadata spells it."""
    chain: list[dict[str, object]] = [{"name": "bytes", "configuration": {"endian": "little"}}]
    compressor = _compressor(codec)
    if compressor is not None:
        settings: dict[str, object] = {
            "typesize": dtype.itemsize,
            "cname": compressor.cname,
            "clevel": compressor.clevel,
            "shuffle": "bitshuffle",
            "blocksize": 0,
        }
        chain.append({"name": "blosc", "configuration": settings})
    return [*chain, {"name": "crc32c"}]
