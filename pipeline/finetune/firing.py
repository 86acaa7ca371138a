"""What features fire on, before fine-tuning and after: how often, where most, on which tokens.

The same token has the same activation at the site before and after: what is below it is the clean
model, or one with what other sites have learned, both times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.finetune.task import Rows
from pipeline.lm.hooks import reading
from pipeline.lm.model import LanguageModel
from pipeline.lm.sites import Site
from pipeline.lm.tokenizer import Tokenizer
from pipeline.sae.sae import TunedSAE
from pipeline.text.token_text import TokenTexts

N_EXAMPLES = 15
"""Places in the text shown for each feature, and tokens of the vocabulary."""
MAX_TOKENS = 2**16
"""Tokens of the text that are read."""
_LEFT, _RIGHT = 12, 6


@dataclass(frozen=True, kw_only=True)
class Example:
    """One token a feature fires on, with the text around it."""

    left: str
    token: str
    right: str
    before: float
    """Activation of the feature in the SAE as it was."""
    after: float
    """Activation with `c` and `d`."""


@dataclass(frozen=True, kw_only=True)
class FiredOn:
    """A token of the vocabulary, wherever a feature is active on it, before or after."""

    token: str
    n: int
    """Such places."""
    before: float
    """Mean activation there."""
    after: float


@dataclass(frozen=True, kw_only=True)
class Firing:
    """Of one feature."""

    n_before: int
    """Tokens of the text that it is active on in the SAE as it was."""
    n_after: int
    examples: tuple[Example, ...]
    """Where it is most active, before or after, the strongest first."""
    tokens: tuple[FiredOn, ...]
    """That it is active on: those of largest activation in all first."""


@dataclass(frozen=True, kw_only=True)
class FiringRead:
    """The text that features were looked for in."""

    n_tokens: int
    firing: dict[int, Firing]


def n_batches(rows: Rows, *, batch_size: int) -> int:
    """That `read_firing` takes."""
    return -(-len(_some(rows)) // batch_size)


@torch.no_grad()
def read_firing(
    lm: LanguageModel,
    site: Site,
    tuned: TunedSAE,
    rows: Rows,
    latents: Sequence[int],
    tokenizer: Tokenizer,
    *,
    batch_size: int,
    on_pass: Callable[[], None] = lambda: None,
) -> FiringRead:
    """What these features fire on among the first `MAX_TOKENS` of a text, in one pass over them."""
    some = _some(rows)
    parts: list[tuple[Tensor, Tensor]] = []
    with reading(lm, [site]) as acts:
        for tokens in some.tokens.split(batch_size):
            x = acts(tokens.to(lm.device))[site].flatten(0, 1).float()
            before, after = (coder.encode(x)[:, latents].cpu() for coder in (tuned.sae, tuned))
            parts.append((before, after))
            on_pass()
    before, after = map(torch.cat, zip(*parts, strict=True))
    present = some.present.flatten()
    before[~present] = after[~present] = 0  # what only fills a row
    read = _Read(some.tokens, present, TokenTexts(tokenizer.token_bytes))
    firing = {
        latent: Firing(
            n_before=int((before[:, i] > 0).sum()),
            n_after=int((after[:, i] > 0).sum()),
            examples=_examples(before[:, i], after[:, i], read),
            tokens=_tokens(before[:, i], after[:, i], read),
        )
        for i, latent in enumerate(latents)
    }
    return FiringRead(n_tokens=int(present.sum()), firing=firing)


def _some(rows: Rows) -> Rows:
    return rows.part(slice(0, max(1, MAX_TOKENS // rows.tokens.shape[1])))


@dataclass(frozen=True, eq=False)
class _Read:
    """The tokens that were read, and what they are in text."""

    contexts: Int[Tensor, "contexts ctx_len"]
    present: Bool[Tensor, " tokens"]
    texts: TokenTexts

    def around(self, row: int, *, before: float, after: float) -> Example:
        context, position = divmod(row, self.contexts.shape[1])
        start = context * self.contexts.shape[1]
        n = int(self.present[start : start + self.contexts.shape[1]].sum())
        first = max(0, position - _LEFT)
        ids = self.contexts[context, first : min(n, position + 1 + _RIGHT)].tolist()
        pieces, at = self.texts.pieces(ids), position - first
        return Example(
            left="".join(pieces[:at]),
            token=pieces[at] or self.texts.alone(ids[at]),
            right="".join(pieces[at + 1 :]),
            before=before,
            after=after,
        )


def _examples(
    before: Float[Tensor, " tokens"], after: Float[Tensor, " tokens"], read: _Read
) -> tuple[Example, ...]:
    """The places with the largest activation, before or after; silent ones are left out."""
    strength = torch.maximum(before, after)
    order = strength.sort(descending=True, stable=True).indices[:N_EXAMPLES].tolist()
    return tuple(
        read.around(row, before=before[row].item(), after=after[row].item())
        for row in order
        if strength[row] > 0
    )


def _tokens(
    before: Float[Tensor, " tokens"], after: Float[Tensor, " tokens"], read: _Read
) -> tuple[FiredOn, ...]:
    """Tokens by what they activate the feature in all, before or after."""
    strength = torch.maximum(before, after).double()
    active = strength > 0
    ids, place, n = read.contexts.flatten()[active].unique(return_inverse=True, return_counts=True)

    def summed(values: Tensor) -> Tensor:
        return torch.zeros(len(ids), dtype=torch.float64).index_add_(0, place, values.double())

    order = summed(strength[active]).sort(descending=True, stable=True).indices[:N_EXAMPLES]
    means = [(summed(values[active]) / n)[order].tolist() for values in (before, after)]
    shown = zip(ids[order].tolist(), n[order].tolist(), *means, strict=True)
    return tuple(
        FiredOn(token=read.texts.alone(token), n=count, before=was, after=now)
        for token, count, was, now in shown
    )
