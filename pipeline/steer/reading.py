"""What the model that is not steered makes of texts: how likely they are, and what is active."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch.nn import functional as F

from pipeline.errors import DataError
from pipeline.lm.hooks import capture
from pipeline.lm.model import LanguageModel
from pipeline.lm.sites import Site
from pipeline.lm.tokenizer import Tokenizer
from pipeline.sae.sae import Coder
from pipeline.steer.report import Continuation, Effect


@dataclass(frozen=True, kw_only=True)
class Written:
    """New tokens after a prompt, and sums over them in the model that is not steered."""

    prompt: list[int]
    new: list[int]
    nll: float
    """Nats."""
    activations: tuple[float, ...]
    """Of each feature."""


def read(
    lm: LanguageModel,
    texts: Sequence[tuple[list[int], list[int]]],
    coders: Mapping[Site, Coder],
    latents: Mapping[Site, Sequence[int]],
) -> list[Written]:
    """Read texts, each a prompt and what is new after it, one after the other.

    Args:
        lm: Not steered.
        texts: Token ids.
        coders: The SAE of each site.
        latents: Of each SAE, those whose activations are wanted.

    Raises:
        DataError: a loss or an activation is not finite.
    """
    return [_read(lm, prompt, new, coders, latents) for prompt, new in texts]


def _read(
    lm: LanguageModel,
    prompt: list[int],
    new: list[int],
    coders: Mapping[Site, Coder],
    latents: Mapping[Site, Sequence[int]],
) -> Written:
    tokens = torch.tensor([prompt + new], device=lm.device)
    with capture(lm, list(coders)) as acts:
        hidden = lm.hidden(tokens)[0]
    logits = lm.logits(hidden[len(prompt) - 1 : -1]).float()
    nll = float(F.cross_entropy(logits, tokens[0, len(prompt) :], reduction="sum"))
    sums = list[float]()
    for site, coder in coders.items():
        x = acts[site][0, len(prompt) :].to(coder.W_dec)
        z = coder.encode(x)[:, list(latents[site])]
        sums += z.double().sum(dim=0).tolist()
    if not all(map(math.isfinite, (nll, *sums))):
        raise DataError(
            f"what {lm.name} alone makes of a text is not finite (loss {nll:.4g}): try "
            "--precision fp32"
        )
    return Written(prompt=prompt, new=new, nll=nll, activations=tuple(sums))


def continuation(its: Written, clean: Written, tokenizer: Tokenizer) -> Continuation:
    """One text, beside that of the model alone."""
    n = len(its.new)
    return Continuation(
        text=_text(its, tokenizer),
        n_tokens=n,
        perplexity=math.exp(its.nll / n),
        activations=tuple(value / n for value in its.activations),
        changed=_n_changed(its, clean) / _n_both(its, clean),
    )


def effect(
    texts: Sequence[Written],
    clean: Sequence[Written],
    *,
    strength: str,
    amounts: tuple[float, ...],
) -> Effect:
    """The same over all texts of a strength, every token counting alike."""
    n = sum(len(its.new) for its in texts)
    pairs = list(zip(texts, clean, strict=True))
    return Effect(
        strength=strength,
        amounts=amounts,
        perplexity=math.exp(sum(its.nll for its in texts) / n),
        activations=tuple(sum(of) / n for of in zip(*(t.activations for t in texts), strict=True)),
        changed=sum(_n_changed(*pair) for pair in pairs) / sum(_n_both(*pair) for pair in pairs),
    )


def _n_changed(its: Written, clean: Written) -> int:
    """Places that hold another token, or that one of the two texts does not reach."""
    return sum(one != other for one, other in zip_longest(its.new, clean.new))


def _n_both(its: Written, clean: Written) -> int:
    return max(len(its.new), len(clean.new))


def _text(its: Written, tokenizer: Tokenizer) -> str:
    """What is new as it stands behind the prompt: some decoders strip a start."""
    whole, head = tokenizer.decode(its.prompt + its.new), tokenizer.decode(its.prompt)
    return whole[len(head) :] if whole.startswith(head) else tokenizer.decode(its.new)
