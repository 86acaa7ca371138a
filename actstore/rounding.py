"""Fewer distinct values, so that they compress better: the lossy step of `bitround:N`.

An ordinary array stays an ordinary array, which any reader opens; what it lost is measured where it
is lost. The idea is BitRound's (Kloewer et al. 2021, doi:10.1038/s43588-021-00156-2).
"""

import numpy as np
from jaxtyping import Shaped


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
