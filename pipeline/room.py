"""What a store is going to take on disk, before a row of it is written."""

import shutil
from pathlib import Path

from actstore.codec import kept_bits
from actstore.manifest import StoreSpec
from pipeline.errors import ConfigError

# Bytes on disk for each byte of activations, measured on a small trained Pythia: an estimate.
RATIO = {"raw": 1.0, "lz4": 0.75, "zstd": 0.70}
SIGN_AND_EXPONENT_BITS = 4.5  # compressed, beside the mantissa's: measured on rounded bfloat16
METADATA_BYTES = 8  # a row's token, context, position and document, compressed, about
HEADROOM = 1.02


def estimated_bytes(spec: StoreSpec, *, n_rows: int) -> int:
    """About what the shards of `n_rows` rows take."""
    width = sum(site.width for site in spec.sites)
    return round(n_rows * (width * _bytes_per_value(spec) + METADATA_BYTES))


def _bytes_per_value(spec: StoreSpec) -> float:
    kept, itemsize = kept_bits(spec.codec), spec.storage.itemsize
    if kept is None:
        return itemsize * RATIO[spec.codec]
    # What is left of a rounded mantissa is noise, and the zeros behind it take no room.
    return min((SIGN_AND_EXPONENT_BITS + kept) / 8, itemsize * RATIO["lz4"])


def bytes_free(path: Path) -> int:
    """On the disk where `path` is, or would be."""
    path = path.absolute()
    return shutil.disk_usage(next(p for p in (path, *path.parents) if p.exists())).free


def require_room(path: Path, *, n_bytes: int, free: int) -> None:
    """Hold what is to be written to what the disk has free.

    Raises:
        ConfigError: If it does not fit.
    """
    needed = n_bytes * HEADROOM
    if needed > free:
        raise ConfigError(
            f"{path} needs about {needed / 1e9:.2f} GB and its disk has "
            f"{free / 1e9:.2f} GB free: lower --tokens, or choose another --out"
        )
