"""Which latents went silent, and what brings them back.

A latent that is never active has no gradient, and nothing in the squared error brings it back.

AuxK lets dead latents learn to reconstruct what the living leave over: `coefficient * mean
||e - e_hat||^2`, where `e = x - x_hat` is taken as given and `e_hat` is made of the `k` largest of
the dead latents of each row (Gao et al. 2024, arXiv 2406.04093, appendix A.2).

Resampling starts them anew, at random or towards rows that the SAE reconstructs badly, in place,
and leaves every other latent as it is, to the bit. Draws are made on the CPU, from the seed and
the step alone: the same on every device, and by a run that was resumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Real
from torch import Tensor, nn


class SilentRows:
    """For each latent of M SAEs, the rows since the last batch in which it was active.

    Counted in whole batches: a latent that is active anywhere in a batch starts again from zero.
    """

    def __init__(self, n_members: int, d_sae: int, *, device: torch.device | None = None) -> None:
        self.silent: Int64[Tensor, "M F"] = torch.zeros(
            n_members, d_sae, dtype=torch.int64, device=device
        )
        self._at_most = 0
        """No latent has been silent for more rows."""

    @torch.no_grad()
    def update(self, counts: Real[Tensor, "M F"], *, n_rows: int) -> None:
        """Count one batch, of `counts` rows in which each latent was active.

        `n_rows` has what was excluded from it, if windows of silence are to be lengths of training.
        """
        self.silent.add_(n_rows).masked_fill_(counts > 0, 0)
        self._at_most += n_rows

    def dead(self, window: int) -> Bool[Tensor, "M F"]:
        """Which latents have been silent for at least `window` rows."""
        return self.silent >= window

    def any_dead(self, window: int) -> bool:
        """Whether any latent is dead. The device is waited for only when one may be.

        What it told before is remembered: a latent that had been silent for `n` rows at most cannot
        be dead for another `window - n`.
        """
        if self._at_most >= window:
            self._at_most = int(self.silent.max())
        return self._at_most >= window

    def restore(self, m: int, silent: Int64[Tensor, " F"]) -> None:
        """Become, for a member, what was saved."""
        self.silent[m].copy_(silent)
        self._at_most = max(self._at_most, int(silent.max()))

    def forgive(self, which: Bool[Tensor, "M F"]) -> None:
        """Start these again from zero: they were given new weights."""
        self.silent.masked_fill_(which, 0)


@dataclass(frozen=True, kw_only=True)
class AuxK:
    """How many dead latents try, and what their success is worth."""

    k: int
    coefficient: float

    def learn(
        self,
        pre: Float[Tensor, "B n"],
        dead: Int64[Tensor, " n"],
        *,
        residual: Float[Tensor, "B d"],
        centred: Float[Tensor, "B d"],
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
    ) -> Float[Tensor, ""]:
        """The loss of one member; its gradient is added to `grads`.

        `pre` is that of the `dead` alone, `residual` is `x_hat - x`, and `centred` is `x - b_dec`.
        """
        W_dead, n_rows = params["W_dec"][dead], len(pre)
        values, places = pre.topk(min(self.k, pre.shape[1]), dim=-1, sorted=False)
        z = torch.zeros_like(pre).scatter_(-1, places, values.relu_())
        error = (z @ W_dead).add_(residual)
        r = error * (2 * self.coefficient / n_rows)
        d_pre = (r @ W_dead.T) * (z > 0)
        # Not index_add_, which on CUDA adds in any order: each latent is in `dead` once.
        grads["W_dec"][dead] += z.T @ r
        grads["E"][dead] += d_pre.T @ centred
        grads["b_enc"][dead] += d_pre.sum(0)
        return error.square().sum() * (self.coefficient / n_rows)


ENCODER_NORM = 0.2
"""Norm of a new encoder row, in mean norms of the living ones (Bricken et al. 2023)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Resampling:
    """One SAE's parameters and moments, as far as latents own a share of them.

    Args:
        params: Among others `E` (`W_enc` transposed) and `W_dec`, each `[F, d]`, and what
            `starts` names; a tied SAE's `E` is the memory of its `W_dec`.
        moments: Adam's, by their name and then by parameter; absent ones were never needed.
        unit_norm: Whether rows of `W_dec` have unit norm.
        starts: Where the parameters with one value a latent start.
    """

    params: Mapping[str, Tensor]
    moments: Mapping[str, Mapping[str, Tensor]]
    unit_norm: bool
    starts: Mapping[str, float] = field(default_factory=lambda: {"b_enc": 0.0})

    def restart(
        self, latents: Int64[Tensor, " n"], *, E: Float[Tensor, "n d"], W_dec: Float[Tensor, "n d"]
    ) -> None:
        """Give these latents new rows, and all else as it was at the start of training."""
        self.params["E"][latents] = E.to(self.params["E"])
        self.params["W_dec"][latents] = W_dec.to(self.params["W_dec"])  # last: tied, it stays
        for name, start in self.starts.items():
            self.params[name][latents] = start
        for moment in self.moments.values():
            for name in {"E", "W_dec", *self.starts} & moment.keys():
                moment[name][latents] = 0.0


def generator_of(seed: int, step: int) -> torch.Generator:
    """What is drawn at a step of a run, whatever was drawn before."""
    (state,) = np.random.SeedSequence([seed % 2**64, step]).generate_state(1, np.uint64).tolist()
    return torch.Generator().manual_seed(state)


@torch.no_grad()
def resample_random(
    sae: Resampling, dead: Bool[Tensor, " F"], *, generator: torch.Generator
) -> int:
    """Draw both rows of each dead latent anew; returns how many.

    By Kaiming uniform for a matrix of rows of width d, `U(-sqrt(6 / d), sqrt(6 / d))`, that is
    `torch.nn.init.kaiming_uniform_` with its default `a = 0` (He et al. 2015).
    """
    latents = dead.nonzero()[:, 0]
    if not len(latents):
        return 0
    E, W_dec = (
        nn.init.kaiming_uniform_(
            torch.empty(len(latents), sae.params[name].shape[1]), generator=generator
        )
        for name in ("E", "W_dec")
    )
    if sae.unit_norm:
        W_dec = nn.functional.normalize(W_dec, dim=-1)
    sae.restart(latents, E=E, W_dec=W_dec)
    return len(latents)


@torch.no_grad()
def resample_worst(
    sae: Resampling,
    dead: Bool[Tensor, " F"],
    *,
    centred: Float[Tensor, "n d"],
    loss: Float[Tensor, " n"],
    generator: torch.Generator,
) -> int:
    """Point dead latents at rows that are badly reconstructed; returns how many.

    A row is drawn with a probability proportional to the square of its loss, and its direction
    becomes the dictionary row and, much shorter, the encoder row (Bricken et al. 2023, "Towards
    Monosemanticity", appendix). Here a row is drawn once at most: latents of one row would have
    one gradient, and stay equal. The first dead latents get them; where there are fewer rows
    than dead latents, the others stay as they are.

    Args:
        sae: Changed in place.
        dead: Of its latents.
        centred: Rows less `b_dec`.
        loss: Squared error of the reconstruction of each.
        generator: On the CPU.
    """
    weight = loss.double().cpu().square()
    norm = torch.linalg.vector_norm(centred, dim=-1).cpu()
    usable = weight.isfinite() & (weight > 0) & (norm > 0)
    latents = dead.nonzero()[:, 0][: int(usable.sum())]
    if not len(latents):
        return 0
    weight = torch.where(usable, weight, 0.0)
    rows = (weight / weight.max()).multinomial(len(latents), generator=generator)
    towards = nn.functional.normalize(centred[rows.to(centred.device)], dim=-1)
    norms = torch.linalg.vector_norm(sae.params["E"], dim=-1)
    length = ENCODER_NORM * (norms if bool(dead.all()) else norms[~dead]).mean()
    sae.restart(latents, E=towards * length, W_dec=towards)
    return len(latents)
