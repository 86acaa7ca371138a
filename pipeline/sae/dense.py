"""All pairs of rows and latents: every product is one of whole matrices."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.sae.latents import Latents, Values
from pipeline.sae.scratch import Scratch


@final
class Dense(Latents):
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
        """`base_i + r_b . W_dec_i` at each pair."""
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
        """In how many rows each latent is above zero."""
        # bfloat16 products add up in float32 but round their result, which would miscount.
        active = torch.gt(z, 0, out=self._buffer())
        if z.dtype == torch.bfloat16:
            return active.sum(1, dtype=torch.float32)
        return self.by_latent(active)

    def columns(self, start: int, stop: int) -> "Dense":
        """The pairs of latents `start` to `stop` alone."""
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
