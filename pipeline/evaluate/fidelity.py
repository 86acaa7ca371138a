"""How much of the activation, and of the model's prediction, survives the coder.

Everything is a sum over tokens, divided once at the end: never a mean of ratios. Sums over the
width of one row are float32, sums over rows float64. What the sums mean is in `metrics.py`.
"""

from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor
from torch.nn import functional as F

from pipeline.cross_entropy import Head, log_probs, nll, predictions, slices
from pipeline.evaluate.sums import exact

RECONSTRUCTION = ("error", "spread", "cosine", "square_hat", "product", "norm_ratio")
"""What `reconstruction` gives of each row."""

CLEAN = "clean"
"""The name of the untouched pass."""

Hidden = Tensor
"""`[contexts ctx_len d_model]`, the last hidden states of one pass."""
RowLosses = Tensor
"""`[contexts ctx_len-1]` in float32: the last position of a context predicts nothing."""


def reconstruction(
    x: Float32[Tensor, "rows d_in"],
    x_hat: Float32[Tensor, "rows d_in"],
    mean: Float64[Tensor, " d_in"],
) -> Float64[Tensor, "6 rows"]:
    """What each row adds to the sums, in the order of `RECONSTRUCTION`.

    `||x - x_hat||^2`, `||x - mean||^2`, `cos(x, x_hat)`, `||x_hat||^2`, `x . x_hat`, and
    `||x_hat|| / ||x||`. A cosine with a zero vector, and a ratio to one, count as 0.
    """
    norm, norm_hat = (torch.linalg.vector_norm(rows, dim=-1) for rows in (x, x_hat))
    per_row = (
        (x - x_hat).square().sum(-1),
        (exact(x) - mean).square().sum(-1),
        F.cosine_similarity(x, x_hat, dim=-1),
        x_hat.square().sum(-1),
        (x * x_hat).sum(-1),
        torch.where(norm > 0, norm_hat / norm, 0.0),
    )
    return torch.stack([exact(values) for values in per_row])


@dataclass(frozen=True, kw_only=True)
class Losses:
    """Of each prediction of a batch, in nats."""

    nll: Mapping[Hashable, RowLosses]
    """Negative log-likelihood of the next token, by pass; the untouched one is `CLEAN`."""
    kl: Mapping[Hashable, RowLosses]
    """KL divergence from the untouched pass to another."""


@torch.no_grad()
def losses(
    head: Head,
    clean: Float[Tensor, "contexts ctx_len d_model"],
    edited: Mapping[Hashable, Hidden],
    tokens: Int[Tensor, "contexts ctx_len"],
    *,
    diverging: Collection[Hashable],
) -> Losses:
    """What the passes predict, of which these last hidden states are.

    Args:
        head: The last layer of the model.
        clean: Of the untouched pass.
        edited: Of the others.
        tokens: What all of them read.
        diverging: The names of those whose KL is wanted.
    """
    rows, targets = predictions(clean, tokens)
    others = {name: predictions(hidden, tokens)[0] for name, hidden in edited.items()}
    of_rows = {name: _empty(rows) for name in (CLEAN, *others)}
    kl = {name: _empty(rows) for name in diverging}
    for part in slices(rows):
        logp = log_probs(head, rows[part])
        of_rows[CLEAN][part] = nll(logp, targets[part])
        p = logp.exp() if kl else logp
        for name, hidden in others.items():
            logq = log_probs(head, hidden[part])
            of_rows[name][part] = nll(logq, targets[part])
            if name in kl:
                kl[name][part] = logq.neg_().add_(logp).mul_(p).sum(-1)
    shape = (len(tokens), -1)
    return Losses(
        nll={name: values.view(shape) for name, values in of_rows.items()},
        kl={name: values.view(shape) for name, values in kl.items()},
    )


def _empty(rows: Float[Tensor, "rows d_model"]) -> Float32[Tensor, " rows"]:
    return rows.new_empty(len(rows), dtype=torch.float32)
