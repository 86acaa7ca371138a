"""What the model loses without a feature: its ablation effect.

At every token of a context the feature's own contribution is taken out of the activations,
`x - z_f W_dec[f]`; what the coder does not reconstruct stays. Reported is by how much that lowers
each token's logit at the position of the feature's largest activation, on average over its top
contexts. Unlike direct logit attribution, everything the later layers make of the feature counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int32
from torch import Tensor

from actstore.reader import ActStore
from pipeline.config.stages import Device
from pipeline.device import pick_device, pick_dtype
from pipeline.evaluate.setup import load_sae
from pipeline.features.feature import Examples, TokenEffect
from pipeline.features.files import FeatureSet
from pipeline.lm.families import Site
from pipeline.lm.model import LanguageModel, load_model
from pipeline.lm.replay import Replay
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.sae.sae import Coder
from pipeline.text.token_text import TokenTexts

N_TOKENS = 10
_CELLS = 2**24
"""Latents in memory at once: 64 MiB."""


@dataclass(frozen=True, kw_only=True)
class AblationEffect:
    """Drops of logits when a feature is removed, at the tokens it is most active on."""

    n_contexts: int
    dropped: tuple[TokenEffect, ...]
    """Tokens whose logits drop most, in descending order: those the feature speaks for."""
    raised: tuple[TokenEffect, ...]
    """Those whose logits rise most, with negative drops, in ascending order."""


def ablation_effect(
    lm: LanguageModel,
    site: Site,
    coder: Coder,
    feature: int,
    *,
    store: ActStore,
    examples: Examples,
    texts: TokenTexts,
    n_vocab: int,
) -> AblationEffect | None:
    """The effect of one feature over its top contexts; None for a feature without any."""
    if not len(examples.context):
        return None
    tokens = torch.from_numpy(store.tokens(examples.context)).to(lm.device)
    drops = mean_drops(lm, site, coder, feature, tokens, examples.position)[:n_vocab]
    n = min(N_TOKENS, len(drops))

    def effects(largest: bool) -> tuple[TokenEffect, ...]:
        found = drops.topk(n, largest=largest)
        ids, values = found.indices.tolist(), found.values.tolist()
        return tuple(
            TokenEffect(token=token, text=texts.alone(token), effect=value)
            for token, value in zip(ids, values, strict=True)
        )

    return AblationEffect(
        n_contexts=len(tokens), dropped=effects(largest=True), raised=effects(largest=False)
    )


def ablation_effects(
    features: FeatureSet, indices: Sequence[int], *, device: Device = "auto"
) -> dict[int, AblationEffect | None]:
    """The effects of some features of a run in the model that its coder is in."""
    chosen = {index: features.feature(index).top for index in indices}
    subject = load_sae(features.run, device=pick_device(device))
    revision, where = subject.revision or "main", subject.coder.W_dec.device
    store = ActStore.open(features.facts.store)
    lm = load_model(subject.model, revision=revision, device=where, dtype=pick_dtype("auto", where))
    lm.require_fits(
        subject.site, d_in=subject.coder.d_in, ctx_len=store.spec.ctx_len, run=features.run
    )
    tokenizer = load_tokenizer(subject.model, revision=revision)
    texts = TokenTexts(tokenizer.token_bytes)
    return {
        index: ablation_effect(
            lm,
            subject.site,
            subject.coder,
            index,
            store=store,
            examples=examples,
            texts=texts,
            n_vocab=tokenizer.n_vocab,
        )
        for index, examples in chosen.items()
    }


@torch.no_grad()
def mean_drops(
    lm: LanguageModel,
    site: Site,
    coder: Coder,
    feature: int,
    tokens: Int[Tensor, "contexts ctx_len"],
    positions: Int32[np.ndarray, " contexts"],
) -> Float64[Tensor, " n_vocab"]:
    """Logits of the model minus those without the feature, at one position of each context."""
    at = torch.tensor(positions.tolist(), device=lm.device)
    n_contexts = max(1, _CELLS // (tokens.shape[1] * coder.d_sae))
    replay = Replay(lm, [site])
    total = torch.zeros(lm.n_vocab, dtype=torch.float64)
    for some, places in zip(tokens.split(n_contexts), at.split(n_contexts), strict=True):
        clean = _logits_at(lm, replay.clean(some), places)
        without = _without(coder, feature, replay.acts(site))
        ablated = _logits_at(lm, replay.edited(site, without), places)
        total += (clean - ablated).cpu().double().sum(0)
    return total / len(tokens)


def _without(
    coder: Coder, feature: int, acts: Float[Tensor, "contexts ctx_len d_in"]
) -> Float[Tensor, "contexts ctx_len d_in"]:
    """Activations less what one feature contributes to their reconstruction."""
    z = coder.encode(acts.flatten(0, 1).float())[:, feature, None]
    written = (z * coder.W_dec[feature]).view_as(acts)
    return (acts.float() - written).to(acts.dtype)


def _logits_at(
    lm: LanguageModel,
    hidden: Float[Tensor, "contexts ctx_len d_model"],
    positions: Int[Tensor, " contexts"],
) -> Float[Tensor, "contexts n_vocab"]:
    rows = torch.arange(len(hidden), device=hidden.device)
    return lm.logits(hidden[rows, positions]).float()
