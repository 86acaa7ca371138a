"""The four products of a step: of whole matrices, or of the active pairs alone.

An architecture's loss and gradient are written once, in terms of `Latents`: elementwise on its
values, with `decode`, `pull`, `outer` and `by_latent` for all that sums. `Dense` holds a value for
every pair of a row and a latent, `Pairs` only for those that can matter. What `decode` and
`by_latent` give is in float32 at least.

Members of a stack come first in every shape: M SAEs, B rows, F latents, d coordinates.
"""

import math
from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.sae.kernels import Kernels
from pipeline.sae.select import Picked

Values = Float[Tensor, "..."]
"""A value for each pair: `[M, B, F]` where all pairs are held, `[n]` where n are."""


class Scratch:
    """Large temporaries by name.

    Fresh memory of tens of megabytes costs more than what is written to it: the system zeroes every
    page of it at its first use.
    """

    def __init__(self) -> None:
        self._held: dict[str, Tensor] = {}

    def take(
        self, name: str, shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device
    ) -> Tensor:
        """Uninitialised memory of this shape; what an earlier `take` of the name gave is reused."""
        n = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.numel() < n or held.dtype != dtype or held.device != device:
            held = torch.empty(n, dtype=dtype, device=device)
            self._held[name] = held
        return held[:n].view(shape)


@final
class Dense:
    """A value at every pair, `[M, B, F]`, in the dtype that the products are to be computed in.

    Args:
        pre: Pre-activations; changed in place by those who learn from them.
        scratch: Where a gradient at every pair is kept, `[M, B, F]` once more.
    """

    def __init__(self, pre: Float[Tensor, "M B F"], *, scratch: Scratch) -> None:
        self.pre: Float[Tensor, "M B F"] = pre
        self._scratch = scratch

    def spread(self, per_latent: Float[Tensor, "M F"]) -> Values:
        """What a latent has, broadcastable to its pairs."""
        return per_latent[:, None].to(self.pre.dtype)

    def decode(self, z: Values, W_dec: Float[Tensor, "M F d"]) -> Float[Tensor, "M B d"]:
        """`sum_i z_bi W_dec_i` of each row."""
        return product(z, W_dec.to(z.dtype)).to(W_dec.dtype)

    def pull(
        self,
        r: Float[Tensor, "M B d"],
        W_dec: Float[Tensor, "M F d"],
        *,
        base: Float[Tensor, "M F"] | None = None,
    ) -> Values:
        """`base_i + r_b . W_dec_i` at each pair: what a gradient at the output means to latents.

        The memory is the caller's to change, until the next `pull`.
        """
        dtype = self.pre.dtype
        out = self._buffer()
        return product(r.to(dtype), W_dec.to(dtype).mT, base=base, out=out)

    def outer(self, v: Values, y: Float[Tensor, "M B d"], out: Float[Tensor, "M F d"]) -> None:
        """Write `sum_b v_bi y_b` of each latent into `out`."""
        if v.dtype == out.dtype:
            product(v.mT, y, out=out)
        else:
            out.copy_(product(v.mT, y.to(v.dtype)))

    def by_latent(self, v: Values) -> Float[Tensor, "M F"]:
        """`sum_b v_bi`; as a product with ones, which is faster than a sum over columns."""
        ones = torch.ones((len(v), 1, v.shape[1]), dtype=v.dtype, device=v.device)
        return product(ones, v)[:, 0].to(torch.promote_types(v.dtype, torch.float32))

    def counts(self, z: Values) -> Float[Tensor, "M F"]:
        """In how many rows each latent is above zero, as float32; ends what `pull` gave."""
        # bfloat16 products add up in float32 but round their result, which would miscount.
        active = torch.gt(z, 0, out=self._buffer())
        if z.dtype == torch.bfloat16:
            return active.sum(1, dtype=torch.float32)
        return self.by_latent(active)

    def columns(self, start: int, stop: int) -> "Dense":
        """The pairs of latents `start` to `stop` alone, as latents `0` to `stop - start`."""
        return Dense(self.pre[:, :, start:stop], scratch=self._scratch)

    def _buffer(self) -> Float[Tensor, "M B F"]:
        pre = self.pre
        return self._scratch.take("pull", tuple(pre.shape), dtype=pre.dtype, device=pre.device)


def product(
    a: Float[Tensor, "M n k"],
    b: Float[Tensor, "M k p"],
    *,
    base: Float[Tensor, "M p"] | None = None,
    out: Float[Tensor, "M n p"] | None = None,
) -> Float[Tensor, "M n p"]:
    """`a @ b` of each member, plus `base` on every row.

    One member takes the plain product: the batched one is slower on a CPU.
    """
    if len(a) > 1:
        if base is None:
            return torch.bmm(a, b, out=out)
        return torch.baddbmm(base[:, None].to(a.dtype), a, b, out=out)
    single = None if out is None else out[0]
    if base is None:
        return torch.mm(a[0], b[0], out=single)[None]
    return torch.addmm(base[0].to(a.dtype), a[0], b[0], out=single)[None]


@final
class Pairs:
    """A value at each picked pair, `[n]`.

    Args:
        picked: Which.
        pre: Pre-activations there; changed in place by those who learn from them.
        kernels: Of the device.
    """

    def __init__(self, picked: Picked, pre: Float[Tensor, " n"], *, kernels: Kernels) -> None:
        self.pre: Float[Tensor, " n"] = pre
        self.picked = picked
        self._kernels = kernels

    def spread(self, per_latent: Float[Tensor, "M F"]) -> Values:
        """What a latent has, at each of its pairs."""
        return per_latent.reshape(-1).index_select(0, self.picked.col)

    def decode(self, z: Values, W_dec: Float[Tensor, "M F d"]) -> Float[Tensor, "M B d"]:
        """`sum_i z_bi W_dec_i` of each row."""
        M, B, _ = self.picked.shape
        crow, col = self.picked.crow, self.picked.col
        return self._kernels.decode(crow, col, z, _joined(W_dec), M * B).view(M, B, -1)

    def pull(
        self,
        r: Float[Tensor, "M B d"],
        W_dec: Float[Tensor, "M F d"],
        *,
        base: Float[Tensor, "M F"] | None = None,
    ) -> Values:
        """`base_i + r_b . W_dec_i` at each pair."""
        picked = self.picked
        dots = self._kernels.pull(picked.crow, picked.col, picked.row, _joined(r), _joined(W_dec))
        return dots if base is None else dots.add_(self.spread(base))

    def outer(self, v: Values, y: Float[Tensor, "M B d"], out: Float[Tensor, "M F d"]) -> None:
        """Write `sum_b v_bi y_b` of each latent into `out`."""
        flip = self.picked.transposed
        target = _joined(out)  # a copy, where members are apart in memory
        values = v.index_select(0, flip.order)
        self._kernels.outer(flip.crow, flip.row, values, _joined(y), target)
        if not out.is_contiguous():
            out.copy_(target.view(out.shape))

    def by_latent(self, v: Values) -> Float[Tensor, "M F"]:
        """`sum_b v_bi`, latent after latent: in an order that does not change from run to run."""
        M, _, F = self.picked.shape
        flip = self.picked.transposed
        values = v.index_select(0, flip.order)
        return torch.segment_reduce(values, "sum", offsets=flip.crow, initial=0).view(M, F)

    def counts(self, z: Values) -> Float[Tensor, "M F"]:
        """In how many rows each latent is above zero."""
        return self.by_latent((z > 0).float())

    def columns(self, start: int, stop: int) -> "Pairs":
        """The pairs of latents `start` to `stop` alone, their values copied."""
        picked, kept = self.picked.columns(start, stop)
        return Pairs(picked, self.pre.index_select(0, kept), kernels=self._kernels)


Latents = Dense | Pairs
"""Pairs of rows and latents of M SAEs, with the pre-activation `pre` at each."""


def _joined(x: Float[Tensor, "M n d"]) -> Float[Tensor, "Mn d"]:
    """The rows of all members after one another."""
    return x.reshape(-1, x.shape[-1])
