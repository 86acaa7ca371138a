"""Mean and variance of every coordinate, streamed: exact to float64, the same however interrupted.

Parts are merged in the order of the rows (Chan, Golub and LeVeque 1983), never as threads finish.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from jaxtyping import Float64, Shaped

# Where mean^2 / variance is beyond this, sums of squares lose too many digits of the variance.
FAR_FROM_ZERO = 2.0**10


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Count, mean and summed squared deviation of rows."""

    count: int
    mean: Float64[np.ndarray, " width"]
    m2: Float64[np.ndarray, " width"]
    lost: Float64[np.ndarray, " width"] | None = None
    """Summed squared difference to what the rows were before rounding; None if they are exact."""

    @staticmethod
    def empty(width: int, *, lossy: bool = False) -> "Moments":
        """Those of no rows."""
        lost = np.zeros(width) if lossy else None
        return Moments(count=0, mean=np.zeros(width), m2=np.zeros(width), lost=lost)

    @staticmethod
    def of(
        rows: Shaped[np.ndarray, "n width"], before: Shaped[np.ndarray, "n width"] | None = None
    ) -> "Moments":
        """Those of stored rows; uint16 means bits of bfloat16. Not finite if a value is not.

        Args:
            rows: As stored.
            before: What they were before rounding, if they were rounded.
        """
        n = len(rows)
        with np.errstate(invalid="ignore"):  # infinity less infinity: the caller looks for these
            x = _as_float64(rows)
            lost = None if before is None else _squares(_as_float64(before) - x)
            shift = np.zeros(x.shape[1])
            mean = x.sum(0) / n
            m2 = _squares(x) - n * np.square(mean)
            if np.any(n * np.square(mean) > FAR_FROM_ZERO * m2):
                shift = x[0].copy()
                x -= shift
                mean = x.sum(0) / n
                m2 = _squares(x) - n * np.square(mean)
        return Moments(count=n, mean=shift + mean, m2=np.maximum(m2, 0.0), lost=lost)

    def __add__(self, other: "Moments") -> "Moments":
        count = self.count + other.count
        if not self.count or not other.count:
            return other if other.count else self
        lost = None if self.lost is None or other.lost is None else self.lost + other.lost
        with np.errstate(invalid="ignore"):
            delta = other.mean - self.mean
            mean = self.mean + delta * (other.count / count)
            m2 = self.m2 + other.m2 + np.square(delta) * (self.count * other.count / count)
        return Moments(count=count, mean=mean, m2=m2, lost=lost)

    @property
    def var(self) -> Float64[np.ndarray, " width"]:
        """Variance over the rows there are, not an estimate for more."""
        return self.m2 / max(self.count, 1)

    @property
    def rounding(self) -> Float64[np.ndarray, " width"] | None:
        """Mean squared difference that rounding made; None if there was none."""
        return None if self.lost is None else self.lost / max(self.count, 1)

    @property
    def finite(self) -> bool:
        """Whether every row was finite."""
        return bool(
            np.isfinite(self.m2).all() and (self.lost is None or np.isfinite(self.lost).all())
        )

    def to_bytes(self) -> bytes:
        """Count, mean, m2 and, if rows were rounded, lost; little-endian, eight bytes a number."""
        columns = [self.mean, self.m2, *([] if self.lost is None else [self.lost])]
        return self.count.to_bytes(8, "little") + np.stack(columns).astype("<f8").tobytes()

    @staticmethod
    def from_bytes(data: bytes, *, width: int) -> "Moments":
        """Inverse of `to_bytes`."""
        mean, m2, *lost = np.frombuffer(data[8:], "<f8").astype(np.float64).reshape(-1, width)
        count = int.from_bytes(data[:8], "little")
        return Moments(count=count, mean=mean, m2=m2, lost=lost[0] if lost else None)


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


def _as_float64(rows: Shaped[np.ndarray, "n width"]) -> Float64[np.ndarray, "n width"]:
    return as_float(rows).astype(np.float64)


def _squares(x: Float64[np.ndarray, "n width"]) -> Float64[np.ndarray, " width"]:
    return np.einsum("ij,ij->j", x, x)
