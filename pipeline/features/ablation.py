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

from pipeline.config.stages import Device
from pipeline.device import pick_device, pick_dtype
from pipeline.evaluate.setup import load_sae
from pipeline.features.feature import TokenEffect
from pipeline.features.files import FeatureSet
from pipeline.lm.model import LanguageModel, load_model
from pipeline.lm.passes import passes_of
from pipeline.lm.sites import Site
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


def ablation_effects(
    features: FeatureSet, indices: Sequence[int], *, device: Device = "auto"
) -> dict[int, AblationEffect | None]:
    """The effects of some features over their top contexts, in the model that their coder is in.

    None for a feature that is active nowhere.
    """
    chosen = {index: features.feature(index).top for index in indices}
    if not chosen:
        return {}  # and no model is needed
    subject = load_sae(features.run, device=pick_device(device))
    coder, revision = subject.coder, subject.revision or "main"
    where = coder.W_dec.device
    store = features.open_store()
    lm = load_model(subject.model, revision=revision, device=where, dtype=pick_dtype("auto", where))
    lm.require_fits(subject.site, d_in=coder.d_in, ctx_len=store.spec.ctx_len, run=features.run)
    tokenizer = load_tokenizer(subject.model, revision=revision)
    texts = TokenTexts(tokenizer.token_bytes)
    found: dict[int, AblationEffect | None] = dict.fromkeys(chosen)
    for index, top in chosen.items():
        if len(top):
            tokens = torch.from_numpy(store.tokens(top.context)).to(lm.device)
            drops = mean_drops(lm, subject.site, coder, index, tokens, top.position)
            known = drops[: tokenizer.n_vocab]
            dropped, raised = (_effects(known, texts, largest=largest) for largest in (True, False))
            found[index] = AblationEffect(n_contexts=len(top), dropped=dropped, raised=raised)
    return found


def _effects(
    drops: Float64[Tensor, " n_vocab"], texts: TokenTexts, *, largest: bool
) -> tuple[TokenEffect, ...]:
    """The tokens at one end."""
    ends = drops.topk(min(N_TOKENS, len(drops)), largest=largest)
    return tuple(
        TokenEffect(token=token, text=texts.alone(token), effect=effect)
        for token, effect in zip(ends.indices.tolist(), ends.values.tolist(), strict=True)
    )


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
    replay = passes_of(lm, [site])
    total = torch.zeros(lm.n_vocab, dtype=torch.float64)
    for some, places in zip(tokens.split(n_contexts), at.split(n_contexts), strict=True):
        clean = _logits_at(lm, replay.clean(some), places)
        acts = replay.acts(site).float()
        x = acts.flatten(0, 1)
        z = coder.encode(x)[:, feature, None] * coder.written_scale(x)
        without = acts - (z * coder.W_dec[feature]).view_as(acts)
        edited = replay.edited(site, without.to(replay.acts(site).dtype))
        ablated = _logits_at(lm, edited, places)
        total += (clean - ablated).cpu().double().sum(0)
    return total / len(tokens)


def _logits_at(
    lm: LanguageModel,
    hidden: Float[Tensor, "contexts ctx_len d_model"],
    positions: Int[Tensor, " contexts"],
) -> Float[Tensor, "contexts n_vocab"]:
    rows = torch.arange(len(hidden), device=hidden.device)
    return lm.logits(hidden[rows, positions]).float()
