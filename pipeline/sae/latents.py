"""Values at (row, latent) pairs, and the four products that training makes of them.

An architecture's loss and gradient are written once, in terms of `Latents`: elementwise on its
values, with `decode`, `pull`, `outer` and `by_latent` for all that sums. `dense.Dense` holds a
value for every pair, `pairs.Pairs` only for those that can matter.

Members of a stack come first in every shape: M coders, B rows, F latents, d coordinates.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

Values = Float[Tensor, "..."]
"""A value for each pair: `[M, B, F]` where all pairs are held, `[n]` where n are."""


class Latents(ABC):
    """Pairs of rows and latents of M coders, with the pre-activation at each."""

    pre: Values

    @abstractmethod
    def spread(self, per_latent: Float[Tensor, "M F"]) -> Values:
        """What a latent has, at each of its pairs (or broadcastable to them)."""

    @abstractmethod
    def decode(self, z: Values, W_dec: Float[Tensor, "M F d"]) -> Float[Tensor, "M B d"]:
        """`sum_i z_bi W_dec_i` of each row, in float32."""

    @abstractmethod
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

    @abstractmethod
    def outer(self, v: Values, y: Float[Tensor, "M B d"], out: Float[Tensor, "M F d"]) -> None:
        """Write `sum_b v_bi y_b` of each latent into `out`."""

    @abstractmethod
    def by_latent(self, v: Values) -> Float[Tensor, "M F"]:
        """`sum_b v_bi`, in float32."""

    @abstractmethod
    def counts(self, z: Values) -> Float[Tensor, "M F"]:
        """In how many rows each latent is above zero, as float32; ends what `pull` gave."""

    @abstractmethod
    def columns(self, start: int, stop: int) -> "Latents":
        """The pairs of latents `start` to `stop` alone, as latents `0` to `stop - start`."""
