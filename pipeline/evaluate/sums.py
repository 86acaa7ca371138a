"""What is summed on the way over a text: of each context, of each latent.

How much of the activation, and of the model's prediction, survives the coder, and how few latents
speak. Everything is a sum over tokens, divided once at the end: never a mean of ratios. Sums over
the width of one row are float32, sums over rows float64, so that millions of tokens do not lose the
last ones. What the sums mean is in `metrics.py`.
"""

from collections import defaultdict
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int, Int64
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluate.report import QUANTILES
from pipeline.lm.cross_entropy import Head, log_probs, nll, predictions, slices

Columns = dict[str, np.ndarray]
"""`[contexts]` sums in float64, by name."""


def exact(values: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """These values in float64: on their own device, or on the CPU where it has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def zeros(*shape: int, device: torch.device) -> Float64[Tensor, "..."]:
    """A float64 accumulator, where `exact` puts its values."""
    return exact(torch.zeros(shape, device=device))


def sum_kept(
    values: Float[Tensor, "contexts rows"], kept: Bool[Tensor, "contexts rows"]
) -> Float64[Tensor, " contexts"]:
    """Sums over the rows of each context that are kept, whatever the others hold."""
    wide = exact(values)
    return wide.where(kept.to(wide.device), 0.0).sum(-1)


@final
class ContextSums:
    """Sums of each context, batch after batch: 8 bytes a name and context, on the CPU."""

    def __init__(self) -> None:
        self._parts: defaultdict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, values: Float64[Tensor, " contexts"]) -> None:
        """Take in the sums of the next contexts."""
        self._parts[name].append(values.cpu())

    def all(self) -> Columns:
        """What was taken in so far."""
        return {name: torch.cat(parts).numpy() for name, parts in self._parts.items()}


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
        F.cosine_similarity(x, x_hat, dim=-1, eps=torch.finfo(x.dtype).tiny),
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
    """What the passes predict, of which these are the last hidden states.

    Next to the untouched pass there are edited ones, by name; `diverging` names those whose KL is
    wanted.
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


@final
class Sparsity:
    """Counts, per latent, the tokens on which it is above zero, and per token the latents."""

    def __init__(self, d_sae: int, *, device: torch.device) -> None:
        self._n = 0
        self._fired = zeros(d_sae, device=device)
        self._histogram = torch.zeros(d_sae + 1, dtype=torch.int64, device=device)

    def add(self, z: Float32[Tensor, "rows d_sae"]) -> Float32[Tensor, "2 rows"]:
        """Take in some rows; of each gives how many latents are above zero, and `sum_i |z_i|`."""
        active = (z > 0).float()
        l0 = active.sum(-1)
        self._n += len(z)
        self._fired += exact(active.sum(0))
        self._histogram += torch.bincount(l0.long(), minlength=len(self._histogram))
        return torch.stack([l0, z.sum(-1)])

    @property
    def density(self) -> Float64[Tensor, " d_sae"]:
        """Fraction of the tokens on which each latent is above zero."""
        return self._fired.cpu() / self._n

    @property
    def dead(self) -> Bool[Tensor, " d_sae"]:
        """Latents that were above zero on none of these tokens."""
        return self._fired.cpu() == 0

    @property
    def l0_quantiles(self) -> tuple[float, ...]:
        """Quantiles over tokens of the number of latents above zero, at `QUANTILES`."""
        return quantiles(self._histogram.cpu().numpy())


def quantiles(histogram: Int64[np.ndarray, " n"]) -> tuple[float, ...]:
    """Those of values of which `histogram[v]` are `v`, as of the values themselves.

    Between the two nearest of the sorted values, as numpy does it.
    """
    up_to = np.cumsum(histogram)
    rank = np.array(QUANTILES) * (up_to[-1] - 1)
    low, high = (
        np.searchsorted(up_to, np.array(whole, np.int64), side="right")
        for whole in (np.floor(rank), np.ceil(rank))
    )
    return tuple((low + (rank - np.floor(rank)) * (high - low)).tolist())
