"""Where the directions of a dictionary lie: to each other, to the encoder, to another dictionary.

A row of zeros has no direction: it is taken to be at right angles to everything.
"""

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor
from torch.nn import functional as F

from pipeline.evaluate.metrics import CHANCES, OthersCosine
from pipeline.sae.sae import Coder

_CELLS = 2**25
"""Cosines held at once: 128 MiB of float32, a block of 256 rows against 131,072."""


def dead_cosine(
    W_dec: Float[Tensor, "d_sae d_in"], dead: Bool[Tensor, " d_sae"]
) -> Float64[Tensor, " d_sae"] | None:
    """Cosine of each latent's dictionary row with the mean row of the dead; None without dead.

    Dead latents trained from one start tend to point the same way; living ones do not.
    """
    if not dead.any():
        return None
    rows = W_dec.detach().cpu().double()
    return _cosine(rows, rows[dead.cpu()].mean(0, keepdim=True))


@torch.no_grad()
def others_cosine(
    W_dec: Float[Tensor, "d_sae d_in"], dead: Bool[Tensor, " d_sae"], *, seed: int
) -> OthersCosine | None:
    """How alike the dead are, and as many living ones, drawn at random; None of fewer than two.

    A row has a part in the mean of all that is `1 / sqrt(n)` of its length, so that its cosine
    with that is as much by chance: 1 of a lone row. With the mean of the others it is 0 by chance.
    """
    n_dead, living = int(dead.sum()), (~dead.cpu()).nonzero()[:, 0]
    if n_dead < 2:
        return None
    rows = F.normalize(W_dec.detach().cpu().double(), dim=-1)
    drawn = list[float]()
    if len(living) >= n_dead:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(CHANCES):
            chosen = torch.randperm(len(living), generator=generator)[:n_dead]
            drawn.append(_with_others(rows[living[chosen]]))
    return OthersCosine(
        dead=_with_others(rows[dead.cpu()]), living=sum(drawn) / CHANCES if drawn else None
    )


def _with_others(rows: Float64[Tensor, "n d_in"]) -> float:
    return _cosine(rows, rows.sum(0) - rows).mean().item()


@torch.no_grad()
def encoder_decoder_cosine(coder: Coder) -> Float64[Tensor, " d_sae"]:
    """Cosine of what each latent reads, its encoder column, with what it writes, its decoder row.

    It is 1 where they are tied. A scale `c` of a tuned coder scales the column: where `c` is
    negative the latent reads the opposite direction, and the sign changes.
    """
    n = _block(coder.d_in)
    pairs = zip(coder.encoder_directions().split(n), coder.W_dec.split(n), strict=True)
    return torch.cat([_cosine(column.cpu().double(), row.cpu().double()) for column, row in pairs])


def _cosine(a: Float64[Tensor, "n d"], b: Float64[Tensor, "#n d"]) -> Float64[Tensor, " n"]:
    """Of any length: by default, torch counts what is shorter than 1e-8 as that long."""
    return F.cosine_similarity(a, b, dim=-1, eps=torch.finfo(torch.float64).tiny)


@torch.no_grad()
def max_cosine(W_dec: Float[Tensor, "d_sae d_in"]) -> Float64[Tensor, " d_sae"]:
    """Largest cosine of each latent's dictionary row with the row of any other latent.

    A lone latent has no other: it gets 0. Products are float32, made in blocks of rows; each pair
    is made once, for both of its latents.
    """
    rows = _unit(W_dec)
    if len(rows) == 1:
        return torch.zeros(1, dtype=torch.float64)
    best = torch.full_like(rows[:, 0], -1.0)
    n = _block(len(rows))
    for start in range(0, len(rows), n):
        cosines = rows[start : start + n] @ rows[start:].T  # with earlier rows it is done
        cosines.fill_diagonal_(-1.0)
        mine = best[start : start + n]
        torch.maximum(mine, cosines.amax(1), out=mine)
        torch.maximum(best[start:], cosines.amax(0), out=best[start:])
    return best.clamp(max=1).cpu().double()


@torch.no_grad()
def mutual_mmcs(
    W_dec: Float[Tensor, "d_sae d_in"], other: Float[Tensor, "d_other d_in"]
) -> tuple[float, float]:
    """Mean, over the rows of each dictionary, of the largest cosine with a row of the other one.

    The mean max cosine similarity of Sharkey, Braun and Millidge, "Taking features out of
    superposition with sparse autoencoders", 2022. It counts every row, the dead too, and is not
    symmetric: how much of the first dictionary the second holds, and of the second the first.
    Products are float32, made once for both, in blocks of rows.
    """
    rows, others = _unit(W_dec), _unit(other).to(W_dec.device)
    to_others, to_rows = list[Tensor](), torch.full_like(others[:, 0], -1.0)
    for block in rows.split(_block(len(others))):
        cosines = block @ others.T
        to_others.append(cosines.amax(1))
        torch.maximum(to_rows, cosines.amax(0), out=to_rows)
    return _mean(torch.cat(to_others)), _mean(to_rows)


N_NEIGHBOURS = 5


@torch.no_grad()
def nearest(
    W_dec: Float[Tensor, "d_sae d_in"],
) -> tuple[Int64[Tensor, "d_sae n"], Float32[Tensor, "d_sae n"]]:
    """The rows of largest cosine with each row, itself left out, and their cosines, in fp32.

    `n` is `N_NEIGHBOURS`, or fewer where there are fewer others. A row of zeros has cosine 0 with
    all others.
    """
    rows = _unit(W_dec)
    n, n_rows = min(N_NEIGHBOURS, len(rows) - 1), _block(len(rows))
    indices, values = list[Tensor](), list[Tensor]()
    for start in range(0, len(rows), n_rows):
        cosine = rows[start : start + n_rows] @ rows.T
        itself = torch.arange(len(cosine), device=cosine.device)
        cosine[itself, start + itself] = -torch.inf
        best = cosine.topk(n, dim=-1)
        indices.append(best.indices.cpu())
        values.append(best.values.clamp(max=1).cpu())
    return torch.cat(indices), torch.cat(values)


def _mean(cosines: Float[Tensor, " n"]) -> float:
    return cosines.clamp(max=1).cpu().double().mean().item()


def _unit(rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    """Rows of length 1; those of zeros stay as they are."""
    return F.normalize(rows.detach().float(), dim=-1)


def _block(n_columns: int) -> int:
    """Rows of a block, so that it holds no more than `_CELLS` values."""
    return max(1, _CELLS // n_columns)
