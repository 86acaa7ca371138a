"""The latents that fine-tuning moved most, and what they fire on before and after."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.finetune.task import Rows
from pipeline.lm.families import Site
from pipeline.lm.hooks import reading
from pipeline.lm.model import LanguageModel
from pipeline.lm.tokenizer import Tokenizer
from pipeline.sae.sae import TunedSAE

N_LATENTS = 10
"""Latents of each list."""
N_EXAMPLES = 10
"""Tokens shown for each latent."""
MAX_TOKENS = 2**16
"""Tokens of the text searched for examples."""
_LEFT, _RIGHT = 12, 6


@dataclass(frozen=True, kw_only=True)
class Example:
    """One token a latent fires on, with the text around it."""

    left: str
    token: str
    right: str
    before: float
    """Activation of the latent in the SAE as it was."""
    after: float
    """Activation with `c` and `d`."""


@dataclass(frozen=True, kw_only=True)
class Shift:
    """One latent, its learned scale and bias, and its strongest tokens."""

    latent: int
    c: float
    d: float
    examples: tuple[Example, ...]


@torch.no_grad()
def find_shifts(
    lm: LanguageModel,
    site: Site,
    tuned: TunedSAE,
    rows: Rows,
    tokenizer: Tokenizer,
    *,
    batch_size: int,
) -> dict[str, tuple[Shift, ...]]:
    """The most moved latents, with their strongest tokens among the first `MAX_TOKENS` of a text.

    Those of largest and of smallest `c`, of largest and of smallest `d`, the most extreme first;
    latents that were never active have moved by weight decay alone, and are not among them.
    The activations are the clean model's: nothing below the site is edited, so the same token
    has the same activation at the site before and after.
    """
    ends = {
        "scaled_up": _extremes(tuned.c, tuned.learned),
        "inhibited": _extremes(-tuned.c, tuned.learned),
        "raised": _extremes(tuned.d, tuned.learned),
        "lowered": _extremes(-tuned.d, tuned.learned),
    }
    chosen = sorted({latent for latents in ends.values() for latent in latents})
    contexts = rows.tokens[: max(1, MAX_TOKENS // rows.tokens.shape[1])]
    present = rows.present[: len(contexts)]
    parts: list[tuple[Tensor, ...]] = []
    with reading(lm, [site]) as read:
        for tokens in contexts.split(batch_size):
            x = read(tokens.to(lm.device))[site].flatten(0, 1).float()
            coders = tuned.sae, tuned
            parts.append(tuple(coder.encode(x)[:, chosen].cpu() for coder in coders))
    before, after = map(torch.cat, zip(*parts, strict=True))
    before[~present.flatten()] = after[~present.flatten()] = 0  # what only fills a row
    shifts = {
        latent: Shift(
            latent=latent,
            c=tuned.c[latent].item(),
            d=tuned.d[latent].item(),
            examples=_examples(before[:, i], after[:, i], contexts, tokenizer),
        )
        for i, latent in enumerate(chosen)
    }
    return {end: tuple(shifts[i] for i in latents) for end, latents in ends.items()}


def _extremes(values: Float[Tensor, " d_sae"], among: Bool[Tensor, " d_sae"]) -> list[int]:
    """Indices of the largest values among some, the largest first; equals by index."""
    some = among.cpu().nonzero()[:, 0]
    order = values.cpu()[some].sort(descending=True, stable=True).indices
    return some[order[:N_LATENTS]].tolist()


def _examples(
    before: Float[Tensor, " tokens"],
    after: Float[Tensor, " tokens"],
    contexts: Int[Tensor, "contexts ctx_len"],
    tokenizer: Tokenizer,
) -> tuple[Example, ...]:
    """The tokens with the largest activation, before or after; silent ones are left out."""
    strength = torch.maximum(before, after)
    order = strength.sort(descending=True, stable=True).indices[:N_EXAMPLES].tolist()
    examples: list[Example] = []
    for row in order:
        if strength[row] <= 0:
            break
        context, position = divmod(row, contexts.shape[1])
        ids = contexts[context].tolist()
        examples.append(
            Example(
                left=tokenizer.decode(ids[max(0, position - _LEFT) : position]),
                token=tokenizer.token_text(ids[position]),
                right=tokenizer.decode(ids[position + 1 : position + 1 + _RIGHT]),
                before=before[row].item(),
                after=after[row].item(),
            )
        )
    return tuple(examples)
