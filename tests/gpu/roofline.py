"""What a step must compute and move, by formula: B rows, d coordinates, F latents, n active pairs.

Products, in operations of a multiplication or an addition:

    whole   5 * 2 B F d              encode, decode, pull, outer twice
    pairs   2 B F d + 4 * 2 n d      encode, and the other four of the pairs alone
            + 2 n d                  in bf16: pre-activations of the pairs once more, in float32

Bytes, of memory that is read or written by a kernel of its own, where caches keep nothing from one
kernel to the next (so it is more than must be moved, and a step may come out above its share):

    weights 4 F d * 25               float32. Gradients of two matrices written 2; their norms read
                                     2, scaled in place 4; Adam reads four and writes three 14;
                                     W_dec renormalised 3
    whole   + 4 F d * 3              weights read by encode, decode and pull
            + 6 F d * 3              in bf16: copies of these
            + 15 w B F               of w bytes each: encode writes 1; relu 2; counts 3, sums 1;
                                     decode reads 1; outer 2; pull writes 1, masked 3; its sum 1
            + 4 w B F                topk, batchtopk: searched 1, mask 1, multiplied 2
            + 13 w B F               jumprelu: thresholds compared, their kernel and its sums
    pairs   + 4 F d (+ 6 F d)        weights read by encode (and copied, in bf16)
            + 2 w B F                pre-activations written and searched
            + 5 * 4 n d (+ 2 * 4 n d) rows gathered by decode, pull (two), outer twice, in float32
                                     (and by the pre-activations once more, in bf16)

A step's least time is that of its operations at the rate of a plain product of the encoder's shape,
and of its bytes at the rate of a plain copy, one after the other: `floor`.
"""

WEIGHTS, PRODUCTS, RELU = 25, 3, 15
MORE = {"topk": 4, "batchtopk": 4, "jumprelu": 13}
"""Passes over all pairs that a kind makes beside those of relu."""


def operations(B: int, d: int, F: int, *, pairs: int | None, width: int) -> float:
    """Of a step; of whole matrices where `pairs` is None."""
    one = 2.0 * B * F * d
    return 5 * one if pairs is None else one + (10 if width < 4 else 8) * pairs * d


def moved(B: int, d: int, F: int, *, pairs: int | None, width: int, kind: str) -> float:
    """Bytes of a step with pre-activations of `width` bytes."""
    narrow = width < 4
    each = 4 + (6 if narrow else 0)
    if pairs is None:
        passes = RELU + MORE.get(kind, 0)
        return F * d * (4.0 * WEIGHTS + PRODUCTS * each) + passes * width * B * F
    gathered = 4 * pairs * d * (7 if narrow else 5)
    return F * d * (4.0 * WEIGHTS + each) + 2 * width * B * F + gathered


def floor(
    B: int, d: int, F: int, *, pairs: int | None, width: int, kind: str, rate: float, copy: float
) -> float:
    """Seconds at `rate` operations and `copy` bytes a second."""
    moves = moved(B, d, F, pairs=pairs, width=width, kind=kind)
    return operations(B, d, F, pairs=pairs, width=width) / rate + moves / copy
