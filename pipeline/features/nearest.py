"""The features that write in nearly the same direction."""

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor
from torch.nn import functional as F

N_NEIGHBOURS = 5
_CELLS = 2**24
"""Cosines in memory at once: 64 MiB."""


@torch.no_grad()
def nearest(
    W_dec: Float[Tensor, "d_sae d_in"],
) -> tuple[Int64[Tensor, "d_sae n"], Float32[Tensor, "d_sae n"]]:
    """The rows of largest cosine with each row, itself left out, and their cosines, in fp32.

    `n` is `N_NEIGHBOURS`, or fewer where there are fewer others. A row of zeros has cosine 0 with
    all others.
    """
    rows = F.normalize(W_dec.detach().float(), dim=-1)
    n, n_rows = min(N_NEIGHBOURS, len(rows) - 1), max(1, _CELLS // len(rows))
    found: list[tuple[Tensor, Tensor]] = []
    for start in range(0, len(rows), n_rows):
        cosine = rows[start : start + n_rows] @ rows.T
        itself = torch.arange(len(cosine), device=cosine.device)
        cosine[itself, start + itself] = -torch.inf
        best = cosine.topk(n, dim=-1)
        found.append((best.indices.cpu(), best.values.clamp(max=1).cpu()))
    indices, cosines = zip(*found, strict=True)
    return torch.cat(indices), torch.cat(cosines)
