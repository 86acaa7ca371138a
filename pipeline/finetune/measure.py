"""What a model with edits at its sites makes of held-out rows: losses, answers, fidelity."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.errors import DataError
from pipeline.finetune.task import Rows, Task
from pipeline.lm.cross_entropy import cross_entropy_sum, predictions, slices
from pipeline.lm.hooks import Edit, reading, splice
from pipeline.lm.model import LanguageModel
from pipeline.lm.sites import Site
from pipeline.sae.sae import Coder

Edits = Mapping[Site, Edit]


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Of a model with edits."""

    ce: float
    """Cross-entropy of the held-out rows (nats a prediction that counts)."""
    exact: float | None
    """Share of the held-out questions that it answers exactly; None where there are none."""
    ce_general: float | None
    """Cross-entropy of a general text, in all of its predictions; None where there is none."""


def measure(
    lm: LanguageModel, task: Task, edits: Edits, *, general: Rows | None, batch_size: int
) -> Measured:
    """All there is to measure.

    Raises:
        DataError: a loss is not finite.
    """

    def ce(rows: Rows) -> float:
        return mean_cross_entropy(lm, rows, edits, batch_size=batch_size)

    asked = task.asked
    return Measured(
        ce=ce(task.heldout),
        exact=None if asked is None else exact_match(lm, asked, edits, batch_size=batch_size),
        ce_general=None if general is None else ce(general),
    )


@torch.no_grad()
def mean_cross_entropy(lm: LanguageModel, rows: Rows, edits: Edits, *, batch_size: int) -> float:
    """Cross-entropy of the predictions that count (nats), with edits at some sites."""
    total = 0.0
    with splice(lm, edits):
        for some in rows.split(batch_size):
            tokens = some.tokens.to(lm.device)
            total += cross_entropy_sum(lm, lm.hidden(tokens), tokens, some.counted)
    return finite(total / rows.n_counted, lm)


@torch.no_grad()
def exact_match(lm: LanguageModel, asked: Rows, edits: Edits, *, batch_size: int) -> float:
    """Share of rows in which the likeliest token is right at every prediction that counts.

    Those are the questions that greedy decoding answers exactly: it gives the first token of an
    answer where that is likeliest, and so on (as the lm-evaluation-harness counts arithmetic).
    """
    n_right = 0
    with splice(lm, edits):
        for some in asked.split(batch_size):
            tokens = some.tokens.to(lm.device)
            rows, targets = predictions(lm.hidden(tokens), tokens, some.counted)
            wrong = torch.cat([lm.logits(rows[p]).argmax(-1) != targets[p] for p in slices(rows)])
            assert some.counted is not None
            at = some.counted.nonzero()[:, 0]
            n_right += len(some) - len(at[wrong.cpu()].unique())
    return n_right / len(asked)


@torch.no_grad()
def fidelity(
    lm: LanguageModel, site: Site, coder: Coder, rows: Rows, *, batch_size: int
) -> tuple[float | None, float]:
    """Explained variance of the site's activations, and latents active a token.

    The former is `1 - sum |x - x_hat|^2 / sum |x - mean x|^2` over all tokens of the rows, None
    where the activations do not vary.
    """
    n = n_active = 0
    error = square = 0.0
    total = torch.zeros(coder.d_in, dtype=torch.float64)
    with reading(lm, [site]) as read:
        for some in rows.split(batch_size):
            x = read(some.tokens.to(lm.device))[site][some.present].float()
            z = coder.encode(x)
            n, n_active = n + len(x), n_active + int((z != 0).sum())
            error += _sum_of_squares(x - coder.decode(z, of=x))
            square += _sum_of_squares(x)
            total += x.cpu().double().sum(0)
    spread = square - total.square().sum().item() / n
    varies = spread > 1e-9 * square
    return (1 - error / spread if varies else None), n_active / n


def _sum_of_squares(x: Tensor) -> float:
    return x.cpu().double().square().sum().item()


def finite(loss: float, lm: LanguageModel) -> float:
    """A loss, unless it is none.

    Raises:
        DataError: it is not finite.
    """
    if not math.isfinite(loss):
        raise DataError(
            f"the loss of {lm.name} with the SAE at its site is {loss}: lower --lr, or try "
            "--precision fp32"
        )
    return loss
