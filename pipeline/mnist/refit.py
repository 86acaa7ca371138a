"""Fit again the weights that a connector keeps, without the penalty that chose them.

The l1 penalty does two things: it chooses which weights stay, and it makes those smaller than they
should be. With the choice made, the rest can be undone: the relaxed lasso (Meinshausen 2007,
doi:10.1016/j.csda.2006.12.019). No weight is added.

In a simulated network a connector reads what the one before it predicts, not the features
themselves, so that is what each is fitted to, first to last.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.connect.connector import Connector
from pipeline.mnist.network import above, cut

STEPS = 600
_ROWS = 256
_LR = 1e-2


def refit_all(
    connectors: Sequence[Connector],
    latents: Sequence[Float[Tensor, "rows _"]],
    *,
    threshold: float,
    seed: int = 0,
) -> tuple[Connector, ...]:
    """The connectors of a network, cut and fitted again, each to what the one before gives.

    Args:
        connectors: From the latents of each layer to the next one's.
        latents: Of each layer, encoded from its neurons.
        threshold: Weights at most so large are cut.
        seed: Of the rows of each step.
    """
    z, fitted = latents[0], list[Connector]()
    for connector, target in zip(connectors, latents[1:], strict=True):
        again = refit(connector, z, target, threshold=threshold, seed=seed)
        with torch.no_grad():
            z = again(z)
        fitted.append(again)
    return tuple(fitted)


def refit(
    connector: Connector,
    z1: Float[Tensor, "rows n_in"],
    z2: Float[Tensor, "rows n_out"],
    *,
    threshold: float,
    seed: int = 0,
) -> Connector:
    """The least squared error that the weights above `threshold` reach from where they are."""
    kept = above(connector, threshold)
    fitted = cut(connector, threshold).requires_grad_()
    adam = torch.optim.Adam(fitted.parameters(), _LR)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        adam.param_groups[0]["lr"] = _LR * (1 - step / STEPS)
        rows = torch.randint(len(z1), (_ROWS,), generator=generator)
        loss = (fitted(z1[rows]) - z2[rows]).square().sum(-1).mean()
        adam.zero_grad()
        loss.backward()
        assert fitted.W.grad is not None
        fitted.W.grad.mul_(kept)  # what was cut gathers no momentum either, and stays zero
        adam.step()
    return fitted.requires_grad_(False)
