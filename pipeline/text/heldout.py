"""Text to learn from and to measure on: whole contexts, the two never mixed."""

from dataclasses import dataclass

import torch
from jaxtyping import Int32
from torch import Tensor

from pipeline.config.stages import Documents
from pipeline.errors import TextError
from pipeline.lm.chat import ChatTemplate
from pipeline.lm.tokenizer import Tokenizer
from pipeline.text.contexts import Contexts, Cursor, open_contexts
from pipeline.text.open import heldout_of

WIKITEXT = "Salesforce/wikitext:wikitext-103-raw-v1@test"
_HELDOUT_SHARE = 5
"""A text too short for what was asked keeps one in so many of its contexts apart."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """Contexts to learn from, and others to measure on."""

    train: Int32[Tensor, "train ctx_len"]
    heldout: Int32[Tensor, "heldout ctx_len"]
    heldout_document: int
    """The first document, of those to measure on, of which nothing is learned."""
    notes: tuple[str, ...]
    """Where the text held less than was asked for."""


def heldout_text(trained_on: str) -> str:
    """The held-out part of a text where it has one, WikiText-103's test part otherwise."""
    return heldout_of(trained_on) or WIKITEXT


def load_contexts(
    source: str,
    tokenizer: Tokenizer,
    *,
    ctx_len: int,
    n: int,
    column: str = "text",
    chat: ChatTemplate | None = None,
    documents: Documents = "joined",
    start: Cursor | None = None,
    seed: int = 0,
) -> Int32[Tensor, "contexts ctx_len"]:
    """The first `n` contexts of a text, from `start` on; fewer where it ends before."""
    taken = _take(
        source, tokenizer, ctx_len=ctx_len, n=n, column=column, chat=chat, documents=documents,
        start=start, seed=seed,
    )  # fmt: skip
    return torch.from_numpy(taken.tokens)


def _take(
    source: str,
    tokenizer: Tokenizer,
    *,
    ctx_len: int,
    n: int,
    column: str,
    chat: ChatTemplate | None = None,
    documents: Documents = "joined",
    start: Cursor | None = None,
    seed: int = 0,
) -> Contexts:
    with open_contexts(
        source, tokenizer, column=column, chat=chat, ctx_len=ctx_len, documents=documents,
        start=start, seed=seed,
    ) as stream:  # fmt: skip
        taken = stream.take(n)
    if not len(taken.tokens) and documents == "separate":
        raise TextError(
            f"no document of {source} is as long as a context of {ctx_len} tokens: use a shorter "
            "context, or join documents"
        )
    if not len(taken.tokens):
        raise TextError(
            f"{source} holds fewer than the {ctx_len} tokens of one context: give a longer text, "
            "or use a shorter context"
        )
    return taken


def split_contexts(
    source: str,
    tokenizer: Tokenizer,
    *,
    ctx_len: int,
    n_train: int,
    n_heldout: int,
    column: str = "text",
) -> Split:
    """The first contexts of a text to learn from; to measure on, its held-out part or its tail.

    Raises:
        TextError: the source cannot be read, or holds too little for one context on each side.
    """
    apart, document = heldout_of(source), 0
    if apart is not None:
        train = load_contexts(source, tokenizer, ctx_len=ctx_len, n=n_train, column=column)
        heldout = load_contexts(apart, tokenizer, ctx_len=ctx_len, n=n_heldout, column=column)
    else:
        taken = _take(source, tokenizer, ctx_len=ctx_len, n=n_train + n_heldout, column=column)
        both = torch.from_numpy(taken.tokens)
        if len(both) == 1:
            raise TextError(
                f"{source} holds a single context of {ctx_len} tokens, and one must be kept apart "
                "to measure on: give a longer text, or use a shorter context"
            )
        enough = len(both) == n_train + n_heldout
        n_apart = n_heldout if enough else min(n_heldout, -(-len(both) // _HELDOUT_SHARE))
        train, heldout = both[:-n_apart], both[-n_apart:]
        document = int(taken.document_id[-n_apart - 1, -1]) + 1
    notes = [
        f"{wanted} contexts were asked for to {purpose}; {name} gives {len(contexts)}"
        for contexts, wanted, purpose, name in (
            (train, n_train, "learn from", source),
            (heldout, n_heldout, "measure on", apart or source),
        )
        if len(contexts) < wanted
    ]
    return Split(train=train, heldout=heldout, heldout_document=document, notes=tuple(notes))
