"""What the curves show of one batch; the names are those of a line of metrics.jsonl."""

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.sae.objective import Parts


@torch.no_grad()
def measure(x: Float[Tensor, "B d"], parts: Parts) -> dict[str, Float[Tensor, " M"]]:
    """Losses, sparsity and explained variance of each member.

    `explained_variance` is `1 - sum ||x - x_hat||^2 / sum ||x - mean||^2` with the mean of *this*
    batch; evaluation uses one mean over its whole set.
    """
    spread = (x - x.mean(0)).square().sum()
    unexplained = parts.recon * len(x) / spread
    return {
        "loss": parts.total,
        "recon": parts.recon,
        "sparsity": parts.sparsity,
        "aux": parts.aux,
        "l0": parts.counts.sum(-1) / len(x),
        "l1": parts.l1,
        "explained_variance": 1 - unexplained.nan_to_num(),
    }
