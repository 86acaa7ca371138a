"""The contexts whose loss a coder raises most."""

import numpy as np
from jaxtyping import Int32
from torch import Tensor

from pipeline.evaluate.metrics import perplexity_of
from pipeline.evaluate.report import WorstContext
from pipeline.evaluate.sums import Columns
from pipeline.tokenizer import Tokenizer


def worst_contexts(
    sums: Columns,
    contexts: Int32[Tensor, "contexts ctx_len"],
    tokenizer: Tokenizer,
    *,
    n: int,
) -> tuple[WorstContext, ...]:
    """The `n` contexts with the largest rise of their summed loss; none whose loss does not rise.

    Of equal ones those that come first in the text.
    """
    added = sums["nll_patched"] - sums["nll_clean"]
    order = np.argsort(-added, kind="stable")[:n]
    return tuple(
        _described(int(i), sums, tokenizer.decode(contexts[int(i)].tolist()))
        for i in order
        if added[i] > 0
    )


def _described(i: int, sums: Columns, text: str) -> WorstContext:
    losses = np.array([sums["nll_clean"][i], sums["nll_patched"][i]]) / sums["n_predictions"][i]
    clean, patched = losses.tolist()
    perplexity = perplexity_of(losses)
    return WorstContext(
        context=i,
        ce_clean=clean,
        ce_patched=patched,
        perplexity_difference=float(perplexity[1] - perplexity[0]),
        text=text,
    )
