"""The few pairs of rows and latents that can matter, with exact products at those alone."""

from typing import final

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.sae.kernels import Kernels
from pipeline.sae.latents import Latents, Values
from pipeline.sae.select import Picked


@final
class Pairs(Latents):
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

    @staticmethod
    def exact(
        picked: Picked,
        centred: Float[Tensor, "M B d"],
        E: Float[Tensor, "M F d"],
        b_enc: Float[Tensor, "M F"],
        *,
        kernels: Kernels,
    ) -> "Pairs":
        """Pre-activations computed at the pairs, which a narrower dtype may have picked."""
        pairs = Pairs(picked, b_enc.new_empty(0), kernels=kernels)
        pairs.pre = pairs.pull(centred, E, base=b_enc)
        return pairs

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


def _joined(x: Float[Tensor, "M n d"]) -> Float[Tensor, "Mn d"]:
    """The rows of all members after one another."""
    return x.reshape(-1, x.shape[-1])
