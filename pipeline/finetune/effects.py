"""What each feature's change does to the loss, and how few of the changes make the gain.

The effect of a change is by how much the held-out loss rises where that change alone is taken back.
That takes passes of its own for each feature, so that it is measured of those alone that an
estimate ranks first: the change times the gradient of the loss, averaged on the straight way from
no change to all of it (integrated gradients, Sundararajan, Taly and Yan 2017). Estimates of all
features add up to the gain, but for what jumps on the way, as where another latent comes among the
`k` largest. Effects need not add up: what one feature does another may do, too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from pipeline.finetune.measure import finite
from pipeline.finetune.task import Rows
from pipeline.lm.cross_entropy import backward_cross_entropy, cross_entropy_sum
from pipeline.lm.hooks import in_float, splice
from pipeline.lm.model import LanguageModel
from pipeline.lm.passes import passes_of
from pipeline.lm.sites import Site
from pipeline.sae.sae import TunedSAE

MAX_TOKENS = 2**13
"""Held-out tokens that effects are measured on."""
N_POINTS = 3
"""On the way from no change to all of it, at which the gradient is taken."""
N_EXACT = 24
"""Features whose effect is measured."""
SHARE = 0.9
"""Of the gain: how many features make it is looked for."""
N_SECTIONS = 4
"""Counts of features that are tried at once between two of which one makes less, the other more."""


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What the change of one feature does."""

    latent: int
    c: float
    d: float
    estimate: float
    """Its part of the gain, by integrated gradients (nats a prediction)."""
    effect: float
    """By how much the loss rises where this change alone is taken back (nats a prediction)."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A point of the curve of kept gain."""

    n: int
    """Features whose change is kept, the first in order of effect."""
    ce: float
    """Held-out loss (nats a prediction)."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Of single changes, and of the first of them together."""

    n_tokens: int
    """Held-out tokens that all of it was measured on."""
    n_changed: int
    """Features that have another scale or bias."""
    measured: tuple[Effect, ...]
    """Of the features that the estimate ranks first, in descending order of their effect."""
    curve: tuple[Kept, ...]
    """From no change kept to all of them, `n` ascending. In order of effect: as measured, and as
    estimated where it was not."""

    @property
    def gain(self) -> float:
        """By how much all changes together lower the loss (nats a prediction)."""
        return self.curve[0].ce - self.curve[-1].ce

    def share(self, point: Kept) -> float | None:
        """What is kept of the gain at a point of the curve; None where nothing was gained."""
        return (self.curve[0].ce - point.ce) / self.gain if self.gain > 0 else None

    @property
    def n_for_share(self) -> int | None:
        """Of the counts that were tried, the fewest features that keep `SHARE` of the gain."""
        return next((p.n for p in self.curve if (self.share(p) or 0) >= SHARE), None)


def n_passes(n_changed: int, rows: Rows, *, batch_size: int) -> int:
    """Of `find_effects` of so many changes on held-out rows, at most."""
    grid = _grid(n_changed)
    widest = max(b - a for a, b in pairwise([0, *grid, n_changed]))
    variants = 2 + min(N_EXACT, n_changed) + len(grid) + N_SECTIONS * _n_rounds(widest)
    return -(-len(_some(rows)) // batch_size) * (N_POINTS + variants)


def _some(rows: Rows) -> Rows:
    """The first, which effects are measured on."""
    return rows.part(slice(0, max(1, MAX_TOKENS // rows.tokens.shape[1])))


def find_effects(
    changes: "Changes", *, on_pass: Callable[[], None] = lambda: None
) -> tuple[Effects, Float32[Tensor, " d_sae"]]:
    """The effects of changes, and the estimates of all features, on the CPU.

    Raises:
        DataError: a loss is not finite.
    """
    changed, tuned = changes.changed, changes.tuned
    estimates = changes.estimates(on_pass=on_pass)
    n = int(changed.sum())
    ranked = estimates.abs().where(changed, -1.0).sort(descending=True, stable=True).indices
    first = ranked[: min(N_EXACT, n)].tolist()
    none_kept, all_kept, *reverted = changes.losses(
        [torch.zeros_like(changed), changed, *(_without(changed, latent) for latent in first)],
        on_pass=on_pass,
    )
    exact = [ce - all_kept for ce in reverted]
    measured = [
        Effect(
            latent=latent, c=tuned.c[latent].item(), d=tuned.d[latent].item(),
            estimate=estimates[latent].item(), effect=effect,
        )
        for latent, effect in zip(first, exact, strict=True)
    ]  # fmt: skip
    best = estimates.clone()
    best[first] = torch.tensor(exact, dtype=best.dtype, device=best.device)
    order = best.where(changed, -torch.inf).sort(descending=True, stable=True).indices[:n]
    found = Effects(
        n_tokens=int(changes.rows.present.sum()),
        n_changed=n,
        measured=tuple(sorted(measured, key=lambda one: -one.effect)),
        curve=_curve(changes, order, {0: none_kept, n: all_kept}, on_pass=on_pass),
    )
    return found, estimates.cpu()


def _without(changed: Bool[Tensor, " d_sae"], latent: int) -> Bool[Tensor, " d_sae"]:
    kept = changed.clone()
    kept[latent] = False
    return kept


def _curve(
    changes: "Changes",
    order: Tensor,
    ends: Mapping[int, float],
    *,
    on_pass: Callable[[], None],
) -> tuple[Kept, ...]:
    """The loss with the first 1, 2, 4, ... changes kept, and about where `SHARE` is made."""
    tried, n_changed = dict(ends), len(order)

    def measure(counts: Sequence[int]) -> None:
        kept = [torch.zeros_like(changes.changed) for _ in counts]
        for mask, n in zip(kept, counts, strict=True):
            mask[order[:n]] = True
        tried.update(zip(counts, changes.losses(kept, on_pass=on_pass), strict=True))

    measure(_grid(n_changed))
    wanted = tried[0] - SHARE * (tried[0] - tried[n_changed])
    while tried[n_changed] < tried[0]:
        above = min(n for n, ce in tried.items() if ce <= wanted)
        below = max((n for n in tried if n < above), default=0)
        if above - below <= 1:
            break
        between = np.linspace(below, above, min(N_SECTIONS, above - below - 1) + 2)
        measure(between.round().astype(int).tolist()[1:-1])
    return tuple(Kept(n=n, ce=ce) for n, ce in sorted(tried.items()))


def _grid(n: int) -> list[int]:
    """The powers of two below `n`."""
    return [2**i for i in range(n.bit_length()) if 2**i < n]


def _n_rounds(gap: int) -> int:
    """How often a gap is cut until nothing lies between its ends."""
    n = 0
    while gap > 1:
        gap, n = -(-gap // (N_SECTIONS + 1)), n + 1
    return n


@final
class Changes:
    """The model with the SAE at its site, of whose changes any may be kept, and the others not.

    Args:
        lm: The model, nothing spliced.
        site: Where the SAE goes.
        tuned: With what was learned.
        rows: Held-out ones, of which the first `MAX_TOKENS` are taken.
        keep_error: Whether what the SAE does not explain is put back.
        batch_size: Rows at a time.
    """

    def __init__(
        self, lm: LanguageModel, site: Site, tuned: TunedSAE, rows: Rows, *, keep_error: bool,
        batch_size: int,
    ) -> None:  # fmt: skip
        self.rows = _some(rows)
        self.tuned = tuned
        self._lm, self._site = lm, site
        self._keep_error, self._batch_size = keep_error, batch_size

    @property
    def changed(self) -> Bool[Tensor, " d_sae"]:
        """Which features have another scale or bias than at the start."""
        return (self.tuned.c != 1) | (self.tuned.d != 0)

    @torch.no_grad()
    def losses(
        self, kept: Sequence[Bool[Tensor, " d_sae"]], *, on_pass: Callable[[], None] = lambda: None
    ) -> list[float]:
        """Of each choice of features, the loss where the changes of those alone are kept.

        Raises:
            DataError: a loss is not finite.
        """
        sae, replay = self.tuned.sae, passes_of(self._lm, [self._site])
        totals = [0.0 for _ in kept]
        for some in self.rows.split(self._batch_size):
            tokens = some.tokens.to(self._lm.device)
            replay.clean(tokens)
            found = replay.acts(self._site)
            x = found.float()
            pre = sae.pre(x)
            left = x - sae(x) if self._keep_error else None
            for i, chosen in enumerate(kept):
                c = self.tuned.c.where(chosen, 1.0)
                d = self.tuned.d.where(chosen, 0.0)
                x_hat = sae.decode(sae.activation(c * pre + d), of=x)
                value = (x_hat if left is None else x_hat + left).to(found.dtype)
                hidden = replay.edited(self._site, value)
                totals[i] += cross_entropy_sum(self._lm, hidden, tokens, some.counted)
                on_pass()
        return [finite(total / self.rows.n_counted, self._lm) for total in totals]

    @torch.inference_mode(mode=False)
    @torch.enable_grad()
    def estimates(self, *, on_pass: Callable[[], None] = lambda: None) -> Float32[Tensor, " d_sae"]:
        """Of each feature, its part of the gain: integrated gradients, at Gauss's points."""
        total = torch.zeros_like(self.tuned.c)
        change_c, change_d = self.tuned.c.detach() - 1, self.tuned.d.detach()
        for t, weight in _gauss(N_POINTS):
            between = TunedSAE(self.tuned.sae)
            between.c.data.add_(t * change_c)
            between.d.data.add_(t * change_d)
            edit = in_float(between.with_error if self._keep_error else between)
            with splice(self._lm, {self._site: edit}):
                for some in self.rows.split(self._batch_size):
                    between.c.grad = between.d.grad = None
                    tokens = some.tokens.to(self._lm.device)
                    backward_cross_entropy(self._lm, self._lm.hidden(tokens), tokens, some.counted)
                    assert between.c.grad is not None
                    assert between.d.grad is not None
                    slope = change_c * between.c.grad + change_d * between.d.grad
                    total -= slope * (weight * some.n_counted / self.rows.n_counted)
                    on_pass()
        return total


def _gauss(n: int) -> list[tuple[float, float]]:
    """Places between 0 and 1, and weights, of Gauss and Legendre's rule."""
    places, weights = np.polynomial.legendre.leggauss(n)
    return list(zip(((places + 1) / 2).tolist(), (weights / 2).tolist(), strict=True))
