"""The largest of many products, from a product of numbers cut to bfloat16.

Some CPUs multiply such numbers six times as fast as whole ones. What the narrow products leave
open is decided by whole ones, of few pairs: those that may be among the largest, as far as narrow
products can be off. What is picked is what float32 would pick, and so are the values.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from jaxtyping import BFloat16, Float, Int32, Int64
from torch import Tensor

CUT = 2.0**-8
"""What rounding to bfloat16 changes a number by, as a share of it, at most."""
ROUNDING = 2.0**-24
"""The same, of float32."""
LARGEST = 8
"""Groups of a row for each of the largest that is looked for: fewer would leave more values above
the bound, and more take longer to sort."""
EVERY = torch.iinfo(torch.int16).min
WORTH = 8
"""Candidates of a row, on average and for each of its largest, above which whole numbers are better
in the first place."""
FEW = 1 / 64
"""Share of the latents that is kept at most: pairs that are computed alone cost some fourteen times
as much as in a whole product, so that of many nothing is gained."""
WIDE = 16
"""Candidates of a row for each of its largest, above which it is looked through alone."""


@cache
def fast() -> bool:
    """Whether this CPU has tiles for bfloat16 (AMX), and torch what uses them."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    return bool(able.get("amx_bf16")) and torch.backends.mkldnn.is_available()


@dataclass(frozen=True, kw_only=True, eq=False)
class Rough:
    """Sums `a_b . w_i + base_i` of all pairs of M members, roughly; `product` makes them."""

    values: BFloat16[Tensor, "M B F"]
    error: Float[Tensor, "M B"]
    """No sum of a row was farther than this from the exact one, before it was rounded."""


def product(
    a: Float[Tensor, "M B d"],
    w: Float[Tensor, "M F d"],
    *,
    base: Float[Tensor, "M F"],
    out: BFloat16[Tensor, "M B F"],
) -> Rough:
    """The sums by narrow numbers, in the memory `out`.

    With `a'` and `w'` the numbers as cut, `a w - a' w' = (a - a') w + a' (w - w')`, each of which
    is at most the product of two norms; float32 sums and the cut of `base` are added.
    """
    narrow_a, narrow_w, narrow_base = (x.to(torch.bfloat16) for x in (a, w, base))
    for m in range(len(a)):  # the batched product is slower
        torch.addmm(narrow_base[m], narrow_a[m], narrow_w[m].T, out=out[m])
    cut_a, cut_w = _norms(a - narrow_a), _norms(w - narrow_w).amax(-1, keepdim=True)
    norm_a, norm_w = _norms(a), _norms(w).amax(-1, keepdim=True)
    summing = 2 * a.shape[-1] * ROUNDING * (norm_a * norm_w + base.abs().amax(-1, keepdim=True))
    cut_base = (base - narrow_base).abs().amax(-1, keepdim=True)
    error = cut_a * norm_w + (norm_a + cut_a) * cut_w + summing + cut_base
    return Rough(values=out, error=error)


def _norms(x: Float[Tensor, "M n d"]) -> Float[Tensor, "M n"]:
    return torch.linalg.vector_norm(x, dim=-1)


def within_reach(rough: Rough, k: int) -> Int64[Tensor, " found"]:
    """Where all are that may be among the `k` largest of a row, if above zero: ascending.

    A row's values are taken in groups. At least `k` values are not below the `k`-th largest of the
    groups' maxima, hence no exact one of the `k` largest is below that less the error, and none of
    their rough ones below it less twice the error. Where zero is within reach, or a row is not of
    numbers, all of it may be.

    Positive bfloat16 are in the order of their bits, which are compared as whole numbers.
    """
    M, B, F = rough.values.shape
    bits = rough.values.view(M * B, F).view(torch.int16)
    n_groups = F
    while n_groups % 2 == 0 and n_groups >= 2 * LARGEST * k:
        n_groups //= 2
    maxima = bits.view(M * B, -1, n_groups).amax(1).numpy()
    at_least = np.partition(maxima, n_groups - k, axis=1)[:, n_groups - k]
    sure = torch.from_numpy(at_least).view(torch.bfloat16).float()
    # Twice rounded, of each of two values: as a sum, and with its base.
    bound = sure * (1 - 4 * CUT) - rough.error.flatten() * (2 + 4 * CUT)
    down = (bound.view(torch.int32) >> 16).to(torch.int16)  # to a bfloat16 that is not larger
    least = torch.where(bound > 0, down, EVERY)
    return torch.from_numpy(np.flatnonzero((bits >= least[:, None]).numpy()))


def largest_of_rows(
    x: Float[Tensor, " n"], crow: Int32[Tensor, " rows_1"], k: int
) -> Int64[Tensor, " kept"]:
    """Where the `k` largest of each row are, ascending; of equal ones at the cut the first.

    Args:
        x: Values, row after row.
        crow: Where each row starts, and where the last ends; a row has `k` values at least.
        k: At least 1.
    """
    values, ends = x.numpy(), crow.numpy()
    counts = np.diff(ends)
    n_rows, widest = len(counts), min(int(counts.max(initial=k)), WIDE * k)
    rows = np.full((n_rows, widest), -np.inf, dtype=values.dtype)
    fit = np.repeat(counts <= widest, counts)
    shift = np.repeat(np.arange(n_rows) * widest - ends[:-1], counts)
    rows.reshape(-1)[(np.arange(len(values)) + shift)[fit]] = values[fit]
    cut = np.partition(rows, widest - k, axis=1)[:, widest - k]
    kept = ~(values < np.repeat(cut, counts))  # what is not a number counts as the largest
    n_kept = np.add.reduceat(kept, ends[:-1], dtype=int) if n_rows else np.empty(0)
    for row in np.flatnonzero(n_kept != k):  # too wide, tied, or not all numbers
        here = slice(ends[row], ends[row + 1])
        order = torch.sort(x[here], descending=True, stable=True).indices[:k]
        kept[here] = False
        kept[here.start + order.numpy()] = True
    return torch.from_numpy(np.flatnonzero(kept))
