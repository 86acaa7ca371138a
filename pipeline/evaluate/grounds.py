"""What must be known of a site before its losses can be measured: one short pass up to the site."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from pipeline.evaluate.place import Place
from pipeline.evaluate.sums import exact, zeros
from pipeline.model import LanguageModel
from pipeline.sites import reading

# Several of one collection differ in size, so this names no shape to a type checker.
Tokens = Tensor
"""`[contexts ctx_len]` token ids."""

OnTokens = Callable[[int], None]
"""Told the number of tokens done."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Ground:
    """What a place is edited and counted by."""

    mean: Float64[Tensor, " width"]
    """Over the rows of the whole text that count, on the CPU."""
    limit: float | None
    """The largest norm that counts; None where rows are not excluded by their norm."""


@torch.no_grad()
def find_grounds(
    lm: LanguageModel,
    batches: Sequence[Tokens],
    places: Sequence[Place],
    on_tokens: OnTokens,
) -> dict[Place, Ground]:
    """Means of these places; nothing above the last of their sites runs."""
    limits = _limits(lm, batches, places, on_tokens)
    sums = {place: zeros(lm.width(place.site), device=lm.device) for place in places}
    counts, n_tokens = dict.fromkeys(places, 0), 0
    with reading(lm, [place.site for place in places]) as read:
        for tokens in batches:
            acts = read(tokens)
            for place in places:
                x = acts[place.site]
                kept = place.kept(tokens, x, limit=limits[place])
                sums[place] += exact(x[kept]).sum(0)
                counts[place] += int(kept.sum())
            n_tokens += tokens.numel()
            on_tokens(n_tokens)
    return {
        place: Ground(mean=sums[place].cpu() / max(1, counts[place]), limit=limits[place])
        for place in places
    }


def _limits(
    lm: LanguageModel,
    batches: Sequence[Tokens],
    places: Sequence[Place],
    on_tokens: OnTokens,
) -> dict[Place, float | None]:
    """The largest norms that count: a multiple of the median over all rows of the whole text."""
    limited = {place: place.excluded.norms for place in places}
    sites = sorted({place.site for place in places if place.excluded.norms is not None})
    if not sites:
        return dict.fromkeys(places)
    norms: dict[object, list[Tensor]] = {site: [] for site in sites}
    n_tokens = 0
    with reading(lm, sites) as read:
        for tokens in batches:
            for site, acts in read(tokens).items():
                norms[site].append(torch.linalg.vector_norm(acts.float(), dim=-1).flatten().cpu())
            n_tokens += tokens.numel()
            on_tokens(n_tokens)
    medians = {site: float(torch.cat(parts).median()) for site, parts in norms.items()}
    return {
        place: None if times is None else times * medians[place.site]
        for place, times in limited.items()
    }
