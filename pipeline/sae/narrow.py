"""The largest of many products, from a product of numbers cut to bfloat16.

Some CPUs multiply such numbers two to six times as fast as whole ones. Somewhat more than are
wanted are looked at closely, by whole numbers; and where another might still be larger, as far as
narrow products can be off, all of the row. What is picked is what float32 would pick, and so are
the values.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import BFloat16, Float, Int64
from torch import Tensor

from pipeline.sae.select import largest_of_rows

CUT = 2.0**-8
"""What rounding to bfloat16 changes a number by, as a share of it, at most."""
ROUNDING = 2.0**-24
"""The same, of float32."""
MORE = 0.5
"""So many more of a row than are kept are looked at closely."""
FEW = 1 / 32
"""Share of the latents that is kept at most: pairs that are computed alone cost some five times
as much as in a whole product, so that of many nothing is gained."""


@cache
def fast() -> bool:
    """Whether this CPU multiplies bfloat16 (by AMX or AVX512), and torch has what uses it."""
    able = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch
    multiplies = able.get("amx_bf16") or able.get("avx512_bf16")
    return bool(multiplies) and torch.backends.mkldnn.is_available()


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
    # The sum without its base is rounded, too: `left_open` counts it as if it were the whole.
    return Rough(values=out, error=error + CUT * base.abs().amax(-1, keepdim=True))


def _norms(x: Float[Tensor, "M n d"]) -> Float[Tensor, "M n"]:
    return torch.linalg.vector_norm(x, dim=-1)


def largest(
    a: Float[Tensor, "M B d"],
    w: Float[Tensor, "M F d"],
    *,
    base: Float[Tensor, "M F"],
    k: int,
    closely: Callable[[Int64[Tensor, "rows c"]], Float[Tensor, "rows c"]],
    out: BFloat16[Tensor, "M B F"],
) -> tuple[Int64[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """The latents of the `k` largest sums of each of the `M * B` rows, and those sums.

    Those not above zero may be any.

    Args:
        a: Rows of each member.
        w: Weights.
        base: Biases.
        k: At least 1.
        closely: The sums in float32 of some latents of each row.
        out: Memory for the narrow sums.
    """
    M, B, F = out.shape
    rough = product(a, w, base=base, out=out)
    looked_at = largest_of_rows(out.view(M * B, F), min(F, k + math.ceil(MORE * k)))
    values, places = closely(looked_at).topk(k, sorted=False)
    latents = looked_at.gather(1, places)
    rows = left_open(rough, looked_at, values)
    member = rows.div(B, rounding_mode="floor")
    for m in member.unique().tolist():
        own = rows[member == m]
        every = torch.addmm(base[m], a[m, own - m * B], w[m].T)
        values[own], latents[own] = every.topk(k, sorted=False)
    return latents, values


def left_open(
    rough: Rough, looked_at: Int64[Tensor, "rows c"], values: Float[Tensor, "rows k"]
) -> Int64[Tensor, " open"]:
    """Rows in which another latent may be above zero and above the least of these values.

    No other is roughly larger than the least of those that were looked at, and none is farther from
    what it is roughly than the error, and what two roundings of such a number come to: of a sum
    `s`, and of `s + base`. With `u = CUT`, a sum `t` that is roughly `r` has `|t - r| <= error +
    2 u (1 + 2 u) |r|` up to a share `2 u` of the error. What is not a number leaves its row open.

    Args:
        rough: Of all pairs.
        looked_at: The latents of each row that are roughly the largest.
        values: The largest of the exact ones at those.
    """
    every = rough.values.view(len(looked_at), -1)
    if looked_at.shape == every.shape:
        return looked_at.new_empty(0)
    least = every.gather(1, looked_at).amin(1).float()
    most = least + 2 * CUT * (1 + 2 * CUT) * least.abs() + (1 + 4 * CUT) * rough.error.flatten()
    closed = (most <= values.amin(1)) | (most <= 0)
    return (~closed).nonzero()[:, 0]
