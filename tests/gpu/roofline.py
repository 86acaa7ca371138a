"""What a step must compute and move, by formula: B rows, d coordinates, F latents, n active pairs.

Products, in operations of a multiplication or an addition:

    dense   5 * 2 B F d                encode, decode, pull, outer twice
    sparse  2 B F d + 4 * 2 n d        encode, and the other four of the pairs alone

Bytes, of memory that is read or written by a kernel of its own, where caches keep nothing from one
kernel to the next (so it is more than must be moved, and a step may come out above its share):

    weights 4 F d * 28       float32. Gradients of two matrices written 2; their norms read 2,
                             scaled in place 4; Adam reads four and writes three 14; W_dec
                             renormalised 3; read by products 3
            + 6 F d * 3      in bf16 more: copies of what three products read
    dense   15 w B F         of w bytes each: encode writes 1; relu 2; counts 3, sums 1; decode
                             reads 1; outer 2; pull writes 1, masked 3; sum of the gradient 1
    sparse  2 w B F          pre-activations written and searched
            + 5 * 4 n d      rows gathered by decode, pull (two), outer twice, in float32

A step's least time is that of its operations at the rate of a plain product of the encoder's shape,
and of its bytes at the rate of a plain copy, one after the other: `floor`.
"""

WEIGHTS, CASTS, DENSE, SPARSE, GATHERS = 28, 3, 15, 2, 5


def operations(B: int, d: int, F: int, *, pairs: int | None) -> float:
    """Of a step; of whole matrices where `pairs` is None."""
    one = 2.0 * B * F * d
    return 5 * one if pairs is None else one + 4 * 2.0 * pairs * d


def moved(B: int, d: int, F: int, *, pairs: int | None, width: int) -> float:
    """Bytes of a step with pre-activations of `width` bytes."""
    weights = 4.0 * F * d * WEIGHTS + (6.0 * F * d * CASTS if width < 4 else 0)
    if pairs is None:
        return weights + DENSE * float(width) * B * F
    return weights + SPARSE * float(width) * B * F + GATHERS * 4.0 * pairs * d


def floor(
    B: int, d: int, F: int, *, pairs: int | None, width: int, rate: float, copy: float
) -> float:
    """Seconds at `rate` operations and `copy` bytes a second."""
    moves = moved(B, d, F, pairs=pairs, width=width)
    return operations(B, d, F, pairs=pairs) / rate + moves / copy
