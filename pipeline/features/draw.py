"""Random numbers that are functions of what they are for, so that a sample is no matter of order.

Whoever wants `n` of many at random gives each a random key and keeps the `n` largest. A key is a
function of a seed and of names (a row, a feature): the same sample comes out whatever the blocks,
shards and threads in which the many were met.
"""

import numpy as np
from jaxtyping import Int, UInt64

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)

ROWS, CONTEXTS, FEATURES = range(3)
"""What keys are for: those of one use tell nothing of another's."""


def keys_of(
    numbers: Int[np.ndarray, "*shape"], *, seed: int, use: int
) -> UInt64[np.ndarray, "*shape"]:
    """A random number for each number: the same number gives the same one."""
    start = _scrambled(np.array([seed % 2**64], np.uint64) * _STEP + _STEP)  # scalars would warn
    start = _scrambled(start + np.array([use], np.uint64) * _STEP)
    return _scrambled(start + numbers.astype(np.uint64) * _STEP)


def paired(
    one: UInt64[np.ndarray, "..."], other: UInt64[np.ndarray, "..."]
) -> UInt64[np.ndarray, "..."]:
    """A random number for each pair of keys; shapes are broadcast.

    For a fixed key of one side this is a one-to-one map of the other side's: as random as they
    are. One multiplication takes the pairs of two features apart, and is all that there is time
    for: it is done for every active pair of a store.
    """
    mixed = one ^ other
    mixed ^= mixed >> _SHIFTS[2]
    mixed *= _FACTORS[0]
    return mixed


def _scrambled(x: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    x = (x ^ (x >> _SHIFTS[0])) * _FACTORS[0]
    x = (x ^ (x >> _SHIFTS[1])) * _FACTORS[1]
    return x ^ (x >> _SHIFTS[2])
