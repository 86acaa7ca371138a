"""How much of the activation, and of the model's prediction, survives the coder.

Everything is a sum over tokens, divided once at the end: never a mean of ratios. Sums over the
width of one row are float32, sums over rows float64.
"""

from collections.abc import Collection, Mapping
from typing import final

import torch
from jaxtyping import Float, Float32, Float64, Int
from torch import Tensor
from torch.nn import functional as F

from pipeline.cross_entropy import Head, log_probs, nll, predictions, slices
from pipeline.evaluate.sums import exact, ratio, zeros


@final
class Reconstruction:
    """Compares activations with what the coder makes of them.

    Args:
        mean: of the activations over the whole evaluation set.
        device: where the batches are.
    """

    def __init__(self, mean: Float64[Tensor, " d_in"], *, device: torch.device) -> None:
        self._mean = mean
        self._n = 0
        self._sums = zeros(5, device=device)

    def add(self, x: Float32[Tensor, "rows d_in"], x_hat: Float32[Tensor, "rows d_in"]) -> None:
        """Take in some rows."""
        self._n += len(x)
        per_row = (
            (x - x_hat).square().sum(-1),
            (exact(x) - self._mean).square().sum(-1),
            F.cosine_similarity(x, x_hat, dim=-1),
            x_hat.square().sum(-1),
            (x * x_hat).sum(-1),
        )
        self._sums += torch.stack([exact(values).sum() for values in per_row])

    @property
    def mse(self) -> float:
        """Mean over tokens of `||x - x_hat||^2`, summed over the width, as in training."""
        return self._sum(0) / self._n

    @property
    def explained_variance(self) -> float | None:
        """`1 - sum ||x - x_hat||^2 / sum ||x - mean||^2`; None where `x` never varies."""
        unexplained = ratio(self._sum(0), self._sum(1))
        return None if unexplained is None else 1 - unexplained

    @property
    def cosine(self) -> float:
        """Mean over tokens of `cos(x, x_hat)`; a zero vector counts as 0."""
        return self._sum(2) / self._n

    @property
    def relative_bias(self) -> float | None:
        """`sum ||x_hat||^2 / sum x . x_hat`: below 1 is shrinkage (arXiv 2404.16014, eq. 10)."""
        return ratio(self._sum(3), self._sum(4))

    def _sum(self, i: int) -> float:
        return self._sums[i].item()


@final
class Prediction:
    """Compares what the model predicts, clean and edited, on the same tokens.

    Args:
        edits: names of the edited passes.
        diverging: those of them whose KL from the clean pass is wanted.
        device: where the batches are.
    """

    def __init__(
        self, edits: Collection[str], *, diverging: Collection[str], device: torch.device
    ) -> None:
        self.n = 0
        self._diverging = frozenset(diverging)
        self._clean = zeros(1, device=device)
        self._nll = {name: zeros(1, device=device) for name in edits}
        self._kl = {name: zeros(1, device=device) for name in diverging}

    @torch.no_grad()
    def add(
        self,
        head: Head,
        clean: Float[Tensor, "contexts ctx_len d_model"],
        edited: Mapping[str, Float[Tensor, "contexts ctx_len d_model"]],
        tokens: Int[Tensor, "contexts ctx_len"],
    ) -> None:
        """Take in some contexts, given the last hidden states of each pass."""
        clean_rows, targets = predictions(clean, tokens)
        edited_rows = {name: predictions(hidden, tokens)[0] for name, hidden in edited.items()}
        self.n += len(targets)
        for part in slices(len(targets)):
            logp = log_probs(head, clean_rows[part])
            self._clean += exact(nll(logp, targets[part])).sum()
            for name, rows in edited_rows.items():
                logq = log_probs(head, rows[part])
                self._nll[name] += exact(nll(logq, targets[part])).sum()
                if name in self._diverging:
                    self._kl[name] += exact(_kl(logp, logq)).sum()

    @property
    def ce_clean(self) -> float:
        """Cross-entropy of the untouched model, nats per prediction."""
        return self._clean.item() / self.n

    def ce(self, edit: str) -> float:
        """Cross-entropy of an edited pass, nats per prediction."""
        return self._nll[edit].item() / self.n

    def kl(self, edit: str) -> float:
        """Mean `KL(clean || edited)`, nats per prediction."""
        return self._kl[edit].item() / self.n


def loss_recovered(*, clean: float, patched: float, ablated: float) -> float | None:
    """`(CE_ablated - CE_patched) / (CE_ablated - CE_clean)`; None where ablation costs nothing."""
    return ratio(ablated - patched, ablated - clean)


def _kl(
    logp: Float32[Tensor, "rows vocab"], logq: Float32[Tensor, "rows vocab"]
) -> Float32[Tensor, " rows"]:
    return F.kl_div(logq, logp, reduction="none", log_target=True).sum(-1)
