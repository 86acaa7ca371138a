"""The one pass over a text: what a run costs, and what ablating its site does.

Each asks for edited passes of a batch, and then sums, context by context, what they lost. Of each
batch the untouched model runs once; every edited pass starts at its site. In memory are
one batch's states (one for each edited pass, up to three for each site), a slice of logits of the
untouched and of one edited pass, and some twenty float64 sums for each context and run.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.evaluate.ablations import OnTokens, SiteMean, Tokens
from pipeline.evaluate.setup import EvalSite
from pipeline.evaluate.sums import (
    CLEAN,
    RECONSTRUCTION,
    Columns,
    ContextSums,
    Losses,
    Sparsity,
    exact,
    losses,
    reconstruction,
    sum_kept,
    zeros,
)
from pipeline.lm.cross_entropy import slices
from pipeline.lm.model import LanguageModel
from pipeline.lm.passes import Passes, passes_of
from pipeline.lm.sites import Site
from pipeline.sae.sae import Coder

Edited = dict[Hashable, Tensor]
"""Last hidden states `[contexts ctx_len d_model]` of edited passes, by name."""

See = Callable[[Tensor, Tensor, Tensor, Tensor], None]
"""Shown the numbers of some rows, the rows, their latents and their reconstructions."""

_OF_ROWS = (*RECONSTRUCTION, "l0", "l1")


@final
class SplicePass:
    """One run: its coder in place of its site, and alone at the same kind of site elsewhere.

    The rows that count are those of its own site, wherever the coder is.
    """

    def __init__(
        self, coder: Coder, place: EvalSite, ground: SiteMean, *, layers: Sequence[int]
    ) -> None:
        self.place = place
        own = place.site
        elsewhere = (own.at(layer) for layer in layers)
        self.sites = tuple(dict.fromkeys((own, *elsewhere)))
        self.diverging: tuple[Hashable, ...] = ((self, own),)
        self.sparsity = Sparsity(coder.d_sae, device=coder.W_dec.device)
        self._coder, self._ground = coder, ground
        self._sums = ContextSums()

    def edited(self, replay: Passes, kept: Bool[Tensor, "contexts ctx_len"]) -> Edited:
        """The edited passes of a batch; what the coder makes of its own site is summed."""
        acts = {site: replay.acts(site) for site in self.sites}
        table = zeros(len(_OF_ROWS), kept.numel(), device=kept.device)
        mean = self._ground.mean.to(table.device)

        def see(rows: Tensor, x: Tensor, z: Tensor, x_hat: Tensor) -> None:
            counts = exact(self.sparsity.add(z))
            per_row = torch.cat([reconstruction(x, x_hat, mean), counts])
            table[:, rows.to(table.device)] = per_row

        values = {
            site: spliced(self._coder, x, kept, see=see if site == self.place.site else None)
            for site, x in acts.items()
        }
        for name, per_row in zip(_OF_ROWS, table.view(-1, *kept.shape), strict=True):
            self._sums.add(name, per_row.sum(-1))
        return {(self, site): replay.edited(site, value) for site, value in values.items()}

    def sum_up(self, found: Losses, kept: Bool[Tensor, "contexts ctx_len"]) -> None:
        """Sum what a batch's passes lost where it counts."""
        counted = kept[:, :-1]
        self._sums.add("n_tokens", exact(kept.float()).sum(-1))
        self._sums.add("n_predictions", exact(counted.float()).sum(-1))
        self._sums.add("nll_clean", sum_kept(found.nll[CLEAN], counted))
        self._sums.add("kl_spliced", sum_kept(found.kl[self, self.place.site], counted))
        for site in self.sites:
            self._sums.add(nll_at(site), sum_kept(found.nll[self, site], counted))

    @property
    def sums(self) -> Columns:
        """Of each context, all but what ablating the site costs; `nll_at(site)` of each site."""
        sums = self._sums.all()
        return sums | {"nll_spliced": sums[nll_at(self.place.site)]}


@final
class AblationPass:
    """One place, with zero and with the mean in the place of what counts."""

    def __init__(self, place: EvalSite, ground: SiteMean) -> None:
        self.place = place
        self.sites = (place.site,)
        self.diverging: tuple[Hashable, ...] = ((self, "zero"),)
        self._ground = ground
        self._sums = ContextSums()

    def edited(self, replay: Passes, kept: Bool[Tensor, "contexts ctx_len"]) -> Edited:
        """The edited passes of a batch."""
        acts = replay.acts(self.place.site)
        constants = {"zero": acts.new_zeros(()), "mean": self._ground.mean.to(acts)}
        return {
            (self, name): replay.edited(
                self.place.site, torch.where(kept[..., None], constant, acts)
            )
            for name, constant in constants.items()
        }

    def sum_up(self, found: Losses, kept: Bool[Tensor, "contexts ctx_len"]) -> None:
        """Sum what a batch's passes lost where it counts."""
        counted = kept[:, :-1]
        self._sums.add("nll_zero", sum_kept(found.nll[self, "zero"], counted))
        self._sums.add("nll_mean", sum_kept(found.nll[self, "mean"], counted))
        self._sums.add("kl_zero", sum_kept(found.kl[self, "zero"], counted))

    @property
    def sums(self) -> Columns:
        """`ABLATED`, of each context."""
        return self._sums.all()


View = SplicePass | AblationPass


def nll_at(site: Site) -> str:
    """The name of a run's losses with its coder at a site."""
    return f"nll_{site}"


def spliced(
    coder: Coder,
    acts: Float[Tensor, "contexts ctx_len width"],
    kept: Bool[Tensor, "contexts ctx_len"],
    *,
    see: See | None,
) -> Float[Tensor, "contexts ctx_len width"]:
    """Activations with their reconstruction in the rows that are kept, in the model's precision."""
    flat = acts.flatten(0, 1)
    out = flat.clone()
    chosen = kept.flatten().nonzero()[:, 0]
    for part in slices(chosen):
        rows = chosen[part]
        x = flat[rows].float()
        z = coder.encode(x)
        x_hat = coder.decode(z, of=x)
        if see is not None:
            see(rows, x, z, x_hat)
        out[rows] = x_hat.to(out.dtype)
    return out.view_as(acts)


@torch.no_grad()
def measure(
    lm: LanguageModel,
    batches: Sequence[Tokens],
    views: Sequence[View],
    grounds: Mapping[EvalSite, SiteMean],
    on_tokens: OnTokens,
) -> None:
    """Sum what each view asks for, over all batches."""
    replay = passes_of(lm, dict.fromkeys(site for view in views for site in view.sites))
    n_tokens = 0
    for tokens in batches:
        _measure_batch(lm, replay, tokens, views, grounds)
        n_tokens += tokens.numel()
        on_tokens(n_tokens)


def _measure_batch(
    lm: LanguageModel,
    replay: Passes,
    tokens: Int[Tensor, "contexts ctx_len"],
    views: Sequence[View],
    grounds: Mapping[EvalSite, SiteMean],
) -> None:
    """Nothing of a batch outlives this but what the views summed, and what was recorded last."""
    clean = replay.clean(tokens)
    kept = {
        place: place.kept(tokens, replay.acts(place.site), limit=ground.limit)
        for place, ground in grounds.items()
    }
    edited: dict[Hashable, Tensor] = {}
    for view in views:
        edited |= view.edited(replay, kept[view.place])
    diverging = [name for view in views for name in view.diverging]
    found = losses(lm, clean, edited, tokens, diverging=diverging)
    for view in views:
        view.sum_up(found, kept[view.place])
