"""Mean and variance of every coordinate, streamed: exact to float64, the same however interrupted.

Parts are merged in the order of the rows (Chan, Golub and LeVeque 1983), never as threads finish.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float64, Shaped


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and summed squared deviation of rows."""

    count: int
    mean: Float64[np.ndarray, " width"]
    m2: Float64[np.ndarray, " width"]

    @staticmethod
    def empty(width: int) -> "Moments":
        """Those of no rows."""
        return Moments(count=0, mean=np.zeros(width), m2=np.zeros(width))

    @staticmethod
    def of(rows: Shaped[np.ndarray, "n width"]) -> "Moments":
        """Those of stored rows; uint16 means bits of bfloat16. Not finite if a value is not."""
        x = as_float(rows).astype(np.float64)
        first = x[0].copy()
        with np.errstate(invalid="ignore"):  # infinity less infinity: the caller looks for these
            x -= first  # so that squares keep the digits of a coordinate far from zero
            mean = x.sum(0) / len(x)
            np.square(x, out=x)
            m2 = np.maximum(x.sum(0) - len(x) * np.square(mean), 0.0)
        return Moments(count=len(rows), mean=first + mean, m2=m2)

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not self.count or not other.count:
            return other if other.count else self
        with np.errstate(invalid="ignore"):
            delta = other.mean - self.mean
            mean = self.mean + delta * (other.count / count)
            m2 = self.m2 + other.m2 + np.square(delta) * (self.count * other.count / count)
        return Moments(count=count, mean=mean, m2=m2)

    @property
    def var(self) -> Float64[np.ndarray, " width"]:
        """Variance over the rows there are, not an estimate for more."""
        return self.m2 / max(self.count, 1)

    @property
    def finite(self) -> bool:
        """Whether every row was finite."""
        return bool(np.isfinite(self.m2).all())

    def to_bytes(self) -> bytes:
        """Count, mean, m2; little-endian, eight bytes a number."""
        head = self.count.to_bytes(8, "little")
        return head + self.mean.astype("<f8").tobytes() + self.m2.astype("<f8").tobytes()

    @staticmethod
    def from_bytes(data: bytes) -> "Moments":
        """Inverse of `to_bytes`."""
        values = np.frombuffer(data[8:], "<f8").astype(np.float64)
        mean, m2 = np.split(values, 2)
        return Moments(count=int.from_bytes(data[:8], "little"), mean=mean, m2=m2)


def merged(parts: Iterable[Moments], start: Moments) -> Moments:
    """`start`, with the parts added one after another."""
    return reduce(Moments.__add__, parts, start)


def as_float(rows: Shaped[np.ndarray, "n width"]) -> Shaped[np.ndarray, "n width"]:
    """Stored rows as numbers: bits of bfloat16 are the upper half of a float32."""
    if rows.dtype != np.uint16:
        return rows
    bits = rows.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)
