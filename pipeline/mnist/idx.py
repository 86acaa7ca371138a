"""IDX, the format that MNIST is distributed in.

Two zero bytes, a type (8 is unsigned bytes), the number of dimensions, the size of each as 32 bits
with the high byte first, then the values (LeCun, Cortes and Burges, "The MNIST database").
"""

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from pipeline.errors import ConfigError

_UNSIGNED_BYTES = 8


def read_idx(path: Path, *, n_dims: int) -> UInt8[np.ndarray, "..."]:
    """The array of bytes in an IDX file, gzipped if its name ends in .gz.

    Args:
        path: The file.
        n_dims: Dimensions it must have: 3 for images, 1 for labels.

    Raises:
        ConfigError: it cannot be read, or is something else or cut short.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    head = 4 + 4 * n_dims
    if len(data) < head or data[:4] != bytes((0, 0, _UNSIGNED_BYTES, n_dims)):
        raise ConfigError(
            f"{path} is no IDX file of bytes in {n_dims} dimensions: it begins with "
            f"{data[:4].hex(' ') or 'nothing'}, not with 00 00 08 {n_dims:02x}"
        )
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", n_dims, offset=4))
    expected, found = math.prod(shape), len(data) - head
    if found != expected:
        what = " x ".join(map(str, shape))
        raise ConfigError(f"{path} is damaged: {what} are {expected} bytes, and it holds {found}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)
