"""Mean and variance of every coordinate, streamed: exact to float64, the same however interrupted.

Parts are merged in the order of the rows (Chan, Golub and LeVeque 1983), never as threads finish.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64, Shaped

BLOCK = 2**16  # values that are looked at together: their float64 stay in the cache
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
        """Those of stored rows, and of what was lost if they are rounded ones of `before`.

        uint16 means bits of bfloat16. Not finite if a value is not.
        """
        n, width = rows.shape
        size = max(1, min(n, BLOCK // width))
        x, starts = np.empty((size, width)), range(0, n, size)
        sums, squares = np.empty((2, len(starts), width))
        lost = None if before is None else np.zeros(width)
        with np.errstate(invalid="ignore"):  # infinity less infinity: the caller looks for these
            for i, start in enumerate(starts):
                block = x[: min(size, n - start)]
                block[:] = as_float(rows[start : start + size])
                np.add.reduce(block, 0, out=sums[i])
                np.einsum("ij,ij->j", block, block, out=squares[i])
                if lost is not None and before is not None:
                    block -= as_float(before[start : start + size])
                    lost += np.einsum("ij,ij->j", block, block)
            counts = np.minimum(size, n - np.array(starts))[:, None]
            means = sums / counts
            m2 = squares - counts * np.square(means)
            far = (counts * np.square(means) > FAR_FROM_ZERO * m2).any(axis=1)
            for i in np.flatnonzero(far).tolist():
                part = as_float(rows[starts[i] : starts[i] + size]).astype(np.float64)
                means[i], m2[i] = _about_first(part)
            return _joined(counts, means, np.maximum(m2, 0.0), lost)

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


def unpacked(data: bytes, widths: Mapping[str, int], *, lossy: bool) -> dict[str, Moments]:
    """The moments of several sites, whose bytes follow one another."""
    found: dict[str, Moments] = {}
    for site, width in widths.items():
        size = 8 + (24 if lossy else 16) * width
        found[site], data = Moments.from_bytes(data[:size], width=width), data[size:]
    return found


def as_float(rows: Shaped[np.ndarray, "*rows"]) -> Shaped[np.ndarray, "*rows"]:
    """Stored rows as numbers: bits of bfloat16 are the upper half of a float32."""
    if rows.dtype != np.uint16:
        return rows
    bits = rows.astype(np.uint32)
    bits <<= 16
    return bits.view(np.float32)


def _about_first(
    x: Float64[np.ndarray, "n width"],
) -> tuple[Float64[np.ndarray, " width"], Float64[np.ndarray, " width"]]:
    """Mean and summed squared deviation of rows that lie far from zero."""
    first = x[0].copy()
    x -= first
    mean = x.sum(0) / len(x)
    return first + mean, np.einsum("ij,ij->j", x, x) - len(x) * np.square(mean)


def _joined(
    counts: Int64[np.ndarray, "blocks 1"],
    means: Float64[np.ndarray, "blocks width"],
    m2: Float64[np.ndarray, "blocks width"],
    lost: Float64[np.ndarray, " width"] | None,
) -> Moments:
    """Those of all blocks together."""
    count = int(counts.sum())
    mean = means[0] + (counts * (means - means[0])).sum(0) / count
    m2 = m2.sum(0) + (counts * np.square(means - mean)).sum(0)
    return Moments(count=count, mean=mean, m2=m2, lost=lost)
