"""Which pairs of rows and latents matter: the largest of a row or batch, or all above a bound.

On a CPU, what finds the pairs matters as much as what is then done with them: for 8 million values
of which 2 % are picked, `nonzero` takes as long as the sparse products, numpy's a third of that.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

GROUP = 4
"""Values of a group in the search for a row's largest."""
ENOUGH = 2
"""Groups for each of the largest, below which they are not looked for by way of groups."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Picked:
    """Pairs of M SAEs' rows and latents, row after row (compressed sparse rows).

    Pair `j` of row `b` of member `m` is with latent `col[j] - m * F`, for `j` from
    `crow[m * B + b]` to `crow[m * B + b + 1]`.
    """

    crow: Int32[Tensor, " rows_1"]
    col: Int32[Tensor, " n"]
    shape: tuple[int, int, int]
    """Members, rows and latents: M, B, F."""

    @cached_property
    def row(self) -> Int32[Tensor, " n"]:
        """The row `m * B + b` of each pair."""
        rows = torch.arange(len(self.crow) - 1, dtype=torch.int32, device=self.crow.device)
        return rows.repeat_interleave(self.crow.diff(), output_size=len(self.col))

    @cached_property
    def flat(self) -> Int64[Tensor, " n"]:
        """Where each pair is among the values of all pairs, `[M, B, F]`."""
        return self.col + _first_of_rows(self.shape, self.crow).index_select(0, self.row)

    @cached_property
    def transposed(self) -> "Transposed":
        """The same pairs, latent after latent."""
        M, _, F = self.shape
        order = _in_order(self.col, n_values=M * F)
        crow = _starts(self.col, order, n_values=M * F)
        return Transposed(crow=crow, row=self.row.index_select(0, order), order=order)

    def values(self, pre: Float[Tensor, "M B F"]) -> Float[Tensor, " n"]:
        """Of the values of all pairs, those at these."""
        return pre.reshape(-1).index_select(0, self.flat)

    def mask(self) -> Bool[Tensor, "M B F"]:
        """True at these pairs."""
        M, B, F = self.shape
        mask = torch.zeros(M * B * F, dtype=torch.bool, device=self.col.device)
        return mask.index_fill_(0, self.flat, True).view(M, B, F)

    def columns(self, start: int, stop: int) -> tuple["Picked", Int64[Tensor, " part"]]:
        """Those of latents `start` to `stop`, renumbered from 0, and where they are among these."""
        M, B, F = self.shape
        member = self.row // B
        latent = self.col - member * F
        kept = _true((latent >= start) & (latent < stop))
        col = (member * (stop - start) + latent - start).index_select(0, kept)
        crow = torch.searchsorted(kept, self.crow, out_int32=True)
        return Picked(crow=crow, col=col, shape=(M, B, stop - start)), kept


@dataclass(frozen=True, kw_only=True, eq=False)
class Transposed:
    """Pairs, latent after latent: those of latent `i` are from `crow[i]` to `crow[i + 1]`."""

    crow: Int32[Tensor, " latents_1"]
    row: Int32[Tensor, " n"]
    order: Int64[Tensor, " n"]
    """The place of each among the pairs as picked."""


def top_k(pre: Float[Tensor, "M B F"], k: int) -> Picked:
    """The `k` largest of each row; of equal values, any."""
    M, B, F = pre.shape
    return pairs_of(largest_of_rows(pre.reshape(M * B, F), k), (M, B, F))


def pairs_of(latents: Int64[Tensor, "rows k"], shape: tuple[int, int, int]) -> Picked:
    """The pairs of each row with as many latents, which are numbered in its member."""
    M, _, F = shape
    rows, k = latents.shape
    col = latents.view(M, -1) + torch.arange(0, M * F, F, device=latents.device)[:, None]
    crow = torch.arange(0, rows * k + 1, k, dtype=torch.int32, device=latents.device)
    return Picked(crow=crow, col=col.flatten().int(), shape=shape)


def largest_of_rows(x: Float[Tensor, "rows F"], k: int) -> Int64[Tensor, "rows k"]:
    """Where the `k` largest of each row are, by way of the `k` groups with the largest maxima.

    A value outside those groups is at most the maximum of its own, hence at most each of `k`
    values inside: without it, the `k` largest are the same. Maxima are found many rows at a time,
    unlike the `k` largest; groups are strided, so that their values lie in separate vectors.
    """
    n_rows, F = x.shape
    G = F // GROUP
    if F % GROUP or ENOUGH * k > G:
        return _top(x, k)
    groups = largest_of_rows(x.view(n_rows, GROUP, G).amax(1), k)
    inside = torch.arange(0, F, G, device=x.device)
    candidates = (groups[:, None] + inside[:, None]).view(n_rows, GROUP * k)
    return candidates.gather(1, _top(x.gather(1, candidates), k))


INTEGERS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


def _top(x: Float[Tensor, "rows n"], k: int) -> Int64[Tensor, "rows k"]:
    """Where the `k` largest of each row are; what is not a number is the largest.

    A CPU finds them among whole numbers in two thirds of the time. The bits of a float are such
    numbers, in its order where it is not negative, and in the opposite one where it is.
    """
    dtype = INTEGERS.get(x.dtype)
    if x.device.type == "cpu" and dtype is not None:
        bits = torch.nan_to_num(x, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).view(dtype)
        last = torch.iinfo(dtype).bits - 1
        x = (bits >> last).bitwise_and_(torch.iinfo(dtype).max).bitwise_xor_(bits)
    return x.topk(k, sorted=False).indices


def batch_top_k(
    pre: Float[Tensor, "M B F"], n: int, *, hint: Float[Tensor, " M"]
) -> tuple[Picked, Float[Tensor, " M"]]:
    """The `n` largest positive values of each member, or all positive ones where they are fewer.

    Of equal values at the cut, the first in order of rows and latents. The hint is a guess at the
    smallest of them: best slightly too low, harmless where wrong.

    Returns:
        The pairs, and the smallest value among each member's (0 where it has none).
    """
    M, B, F = pre.shape
    found, smallest = list[Tensor](), list[Tensor]()
    for m, values in enumerate(pre.flatten(1)):
        at = _largest_positive(values, n, hint[m])
        found.append(at + m * B * F)
        smallest.append(values.index_select(0, at).min() if len(at) else values.new_zeros(()))
    dtype = torch.promote_types(pre.dtype, torch.float32)
    return _picked(torch.cat(found), (M, B, F)), torch.stack(smallest).to(dtype)


def above(pre: Float[Tensor, "M B F"], threshold: float | Float[Tensor, "M F"]) -> Picked:
    """All pairs whose value is larger; a plain number counts as rounded to the values' dtype."""
    bound = threshold[:, None] if isinstance(threshold, Tensor) else threshold
    M, B, F = pre.shape
    return _picked(_true((pre > bound).flatten()), (M, B, F))


def _picked(flat: Int64[Tensor, " n"], shape: tuple[int, int, int]) -> Picked:
    """The pairs at ascending places among all pairs."""
    M, B, F = shape
    ends = torch.arange(0, M * B * F + 1, F, device=flat.device)
    crow = torch.searchsorted(flat, ends, out_int32=True)
    first = _first_of_rows(shape, crow).repeat_interleave(crow.diff(), output_size=len(flat))
    return Picked(crow=crow, col=(flat - first).int(), shape=shape)


def _first_of_rows(
    shape: tuple[int, int, int], crow: Int32[Tensor, " rows_1"]
) -> Int64[Tensor, " rows"]:
    """What to add to a column, for its place among all pairs: `(m * B + b) * F - m * F`."""
    M, B, F = shape
    rows = torch.arange(M * B, device=crow.device)
    return (rows - rows // B) * F


def _true(mask: Bool[Tensor, " n"], *, count: int | None = None) -> Int64[Tensor, " true"]:
    """Where it is True, ascending; a GPU is not waited for where the `count` of them is known."""
    if mask.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(mask.numpy()))
    if count is not None and mask.device.type == "cuda":
        return torch.nonzero_static(mask, size=count)[:, 0]
    return mask.nonzero()[:, 0]


_DIGIT = 16
"""Bits by which numpy sorts in one pass that counts, where it is asked for a stable order."""


def _in_order(x: Int32[Tensor, " n"], *, n_values: int) -> Int64[Tensor, " n"]:
    """The places of these numbers below `n_values` in ascending order, equal ones as they come.

    On a CPU two to ten times as fast as `torch.argsort`, which compares.
    """
    if x.device.type != "cpu":
        return torch.argsort(x, stable=True)
    numbers = x.numpy()
    order = np.argsort(numbers.astype(np.uint16), kind="stable")  # by the lowest digit
    for shift in range(_DIGIT, (n_values - 1).bit_length(), _DIGIT):
        digit = (numbers >> shift).astype(np.uint16)[order]
        order = order[np.argsort(digit, kind="stable")]
    return torch.from_numpy(order)


def _starts(
    x: Int32[Tensor, " n"], order: Int64[Tensor, " n"], *, n_values: int
) -> Int32[Tensor, " values_1"]:
    """Where each of the numbers below `n_values` starts among these in order, and where they end.

    Counting them is faster on a CPU; `bincount` on a GPU reads their largest and smallest first,
    and waits for both.
    """
    starts = torch.zeros(n_values + 1, dtype=torch.int32, device=x.device)
    if x.device.type == "cpu":
        torch.cumsum(torch.bincount(x, minlength=n_values), 0, out=starts[1:])
        return starts
    every = torch.arange(n_values + 1, dtype=torch.int32, device=x.device)
    return torch.searchsorted(x.index_select(0, order), every, out_int32=True)


def _largest_positive(
    x: Float[Tensor, " N"], n: int, guess: Float[Tensor, ""]
) -> Int64[Tensor, " found"]:
    """Where the `n` largest positive values are, ascending.

    A GPU is waited for once, to know how many lie above the guess; a second time where it was bad.
    """
    found = _true(x > torch.where(guess > 0, guess, 0.0))
    if len(found) < n and bool(guess > 0):
        found = _true(x > 0)
    if len(found) <= n:
        return found
    values = x.index_select(0, found)
    cut = _nth_largest(values, n)
    larger, equal = values > cut, values == cut
    kept = larger | (equal & (equal.cumsum(0) <= n - larger.sum()))
    return found.index_select(0, _true(kept, count=n))


def _nth_largest(x: Float[Tensor, " N"], n: int) -> Float[Tensor, ""]:
    """The value that `n - 1` others are not below.

    `kthvalue` works with a single block of threads on a GPU, and says that it is not deterministic.
    """
    if x.device.type == "cpu":
        return x.kthvalue(len(x) - n + 1).values
    return x.sort().values[len(x) - n]
