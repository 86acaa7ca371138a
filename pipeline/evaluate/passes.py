"""The one pass over the text in which all that was asked for is measured.

Of each batch the untouched model runs once; every edited pass starts at its site. In memory are
one batch's states (one for each edited pass, up to three for each site), a slice of logits of the
untouched and of one edited pass, and some twenty float64 sums for each context and run.
"""

from collections.abc import Hashable, Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from pipeline.evaluate.fidelity import losses
from pipeline.evaluate.grounds import Ground, OnTokens, Tokens
from pipeline.evaluate.place import Place
from pipeline.evaluate.views import View
from pipeline.model import LanguageModel
from pipeline.replay import Replay


@torch.no_grad()
def measure(
    lm: LanguageModel,
    batches: Sequence[Tokens],
    views: Sequence[View],
    grounds: Mapping[Place, Ground],
    on_tokens: OnTokens,
) -> None:
    """Sum what each view asks for, over all batches."""
    replay = Replay(lm, dict.fromkeys(site for view in views for site in view.sites))
    n_tokens = 0
    for tokens in batches:
        _measure_batch(lm, replay, tokens, views, grounds)
        n_tokens += tokens.numel()
        on_tokens(n_tokens)


def _measure_batch(
    lm: LanguageModel,
    replay: Replay,
    tokens: Int[Tensor, "contexts ctx_len"],
    views: Sequence[View],
    grounds: Mapping[Place, Ground],
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
