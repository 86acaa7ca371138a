"""Next-token losses in slices of rows: logits of a whole batch are never held.

A vocabulary is a hundred times wider than a model, so a batch's logits would outweigh all else.
Hidden states stay whole; logits live for a slice of rows at a time, forward and backward.
"""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Float32, Int, Int64, Shaped
from torch import Tensor
from torch.nn import functional as F

CPU_ROWS, GPU_ROWS = 128, 1024
"""Of a slice. On a CPU, logits of 128 rows and 50,000 tokens stay below 32 MiB: larger blocks are
given back to the system each time, and cleared anew page by page."""


Counted = Bool[Tensor, "contexts predictions"] | None


@runtime_checkable
class Head(Protocol):
    """The last layer of a language model."""

    def logits(self, hidden: Tensor, /) -> Tensor:
        """Logits `[rows vocab]` of hidden states `[rows d_model]`."""
        ...


def predictions(
    hidden: Float[Tensor, "contexts ctx_len d_model"],
    tokens: Int[Tensor, "contexts ctx_len"],
    counted: Counted = None,
) -> tuple[Float[Tensor, "rows d_model"], Int64[Tensor, " rows"]]:
    """Hidden states that predict, and the tokens they should predict, inside each context.

    The last position of a context predicts nothing: there are `ctx_len - 1` predictions in each.

    Args:
        hidden: After the final norm.
        tokens: That were run.
        counted: On the CPU, which predictions are wanted; None means all.
    """
    rows, targets = hidden[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().long()
    if counted is None:
        return rows, targets
    wanted = counted.flatten().nonzero()[:, 0].to(rows.device)
    return rows[wanted], targets[wanted]


def slices(rows: Shaped[Tensor, "rows ..."]) -> Iterator[slice]:
    """Consecutive slices of rows, as many at a time as suit their device."""
    size = CPU_ROWS if rows.device.type == "cpu" else GPU_ROWS
    for start in range(0, len(rows), size):
        yield slice(start, min(start + size, len(rows)))


def log_probs(head: Head, rows: Float[Tensor, "rows d_model"]) -> Float32[Tensor, "rows vocab"]:
    """Log-probabilities of the next token (nats), in float32 whatever the model computes in."""
    return head.logits(rows).float().log_softmax(-1)


def nll(
    logp: Float32[Tensor, "rows vocab"], targets: Int64[Tensor, " rows"]
) -> Float32[Tensor, " rows"]:
    """Negative log-likelihood of each target (nats)."""
    return -logp.gather(-1, targets[:, None])[:, 0]


@torch.no_grad()
def cross_entropy_sum(
    head: Head,
    hidden: Float[Tensor, "contexts ctx_len d_model"],
    tokens: Int[Tensor, "contexts ctx_len"],
    counted: Counted = None,
) -> float:
    """Sum over a batch's predictions of the negative log-likelihood (nats), in float64."""
    rows, targets = predictions(hidden, tokens, counted)
    return sum(
        nll(log_probs(head, rows[part]), targets[part]).cpu().double().sum().item()
        for part in slices(rows)
    )


def backward_cross_entropy(
    head: Head,
    hidden: Float[Tensor, "contexts ctx_len d_model"],
    tokens: Int[Tensor, "contexts ctx_len"],
    counted: Counted = None,
) -> Float32[Tensor, ""]:
    """Mean cross-entropy (nats) of a batch, its gradient sent back through `hidden`.

    Each slice's gradient is taken while its logits are alive, so nothing is computed twice and
    only one slice of logits is held. The head is taken to be frozen.
    """
    rows, targets = predictions(hidden, tokens, counted)
    grad, total = torch.empty_like(rows), rows.new_zeros((), dtype=torch.float32)
    for part in slices(rows):
        leaf = rows[part].detach().requires_grad_()
        logits = head.logits(leaf).float()
        loss = F.cross_entropy(logits, targets[part], reduction="sum") / len(rows)
        (grad[part],) = torch.autograd.grad(loss, leaf)
        total += loss.detach()
    rows.backward(grad)
    return total
