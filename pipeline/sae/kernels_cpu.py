"""The three sums over pairs on a CPU, by those of torch's own products that are fastest.

Measured on two cores with AVX512: `embedding_bag` makes the sums of `decode` in half the time of a
product with a sparse matrix (MKL); dots of pairs alone are in `sampled_addmm`. For `outer` it
depends: `embedding_bag` is faster where a latent has many pairs, but can only give new memory, and
new memory costs more than few pairs do. It is therefore asked for a piece at a time, or not at all.
"""

import warnings
from functools import cache

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn import functional

FEW = 8
"""Pairs of a latent, on average, below which `outer` is a product with a sparse matrix."""

PIECE = 4 * 2**20
"""Bytes that `outer` takes at a time: they stay in the cache until copied."""
CACHE = 2**20
"""Bytes that stay in a core's own cache."""
LEAST_WIDTH = 64
"""Columns below which what is done for a pair costs more than its columns."""
REUSED = 16
"""Pairs of a row of a table, on average, from which on a copy of it pays."""


def decode(
    crow: Int32[Tensor, " rows_1"],
    col: Int32[Tensor, " n"],
    values: Float[Tensor, " n"],
    W: Float[Tensor, "latents d"],
    n_rows: int,
) -> Float[Tensor, "rows d"]:
    """`sum_j values_j W[col_j]` over the pairs of each row."""
    assert len(crow) == n_rows + 1
    parts = _parts(W, n_pairs=len(col))
    if len(parts) == 1:
        return _sums(crow, col, values, W)
    out = W.new_empty(n_rows, W.shape[1])
    for part in parts:
        out[:, part] = _sums(crow, col, values, W[:, part].contiguous())
    return out


def pull(
    crow: Int32[Tensor, " rows_1"],
    col: Int32[Tensor, " n"],
    row: Int32[Tensor, " n"],
    r: Float[Tensor, "rows d"],
    W: Float[Tensor, "latents d"],
) -> Float[Tensor, " n"]:
    """`r[row_j] . W[col_j]` at each pair."""
    pattern = _sparse(crow, col, r.new_zeros(len(col)), n_columns=len(W))
    return torch.sparse.sampled_addmm(pattern, r, W.T, beta=0.0).values()


def outer(
    crow_t: Int32[Tensor, " latents_1"],
    row_t: Int32[Tensor, " n"],
    values_t: Float[Tensor, " n"],
    y: Float[Tensor, "rows d"],
    out: Float[Tensor, "latents d"],
) -> None:
    """Write `sum_j values_j y[row_j]` over the pairs of each latent into `out`."""
    if len(row_t) < FEW * len(out):
        pairs = _sparse(crow_t, row_t, values_t, n_columns=len(y))
        torch.addmm(out, pairs, y, beta=0, out=out)
        return
    for part in _parts(y, n_pairs=len(row_t)):
        table = y[:, part].contiguous()
        step = max(1, PIECE // (table.shape[1] * table.element_size()))
        for start in range(0, len(out), step):
            ends = crow_t[start : start + step + 1]
            here = slice(int(ends[0]), int(ends[-1]))
            sums = _sums(ends - ends[0], row_t[here], values_t[here], table)
            out[start : start + step, part] = sums


def _sums(
    crow: Int32[Tensor, " rows_1"],
    col: Int32[Tensor, " n"],
    values: Float[Tensor, " n"],
    table: Float[Tensor, "n_table w"],
) -> Float[Tensor, "rows w"]:
    return functional.embedding_bag(
        col, table, crow, mode="sum", per_sample_weights=values, include_last_offset=True
    )


def _parts(table: Float[Tensor, "n_table d"], *, n_pairs: int) -> list[slice]:
    """Columns of which so few are gathered at a time that a copy of them stays in the cache."""
    n_rows, width = table.shape
    w = CACHE // (n_rows * table.element_size())
    if n_pairs < REUSED * n_rows or table.nbytes <= 2 * CACHE or w < LEAST_WIDTH:
        return [slice(0, width)]
    return [slice(start, min(start + w, width)) for start in range(0, width, w)]


def _sparse(
    crow: Int32[Tensor, " rows_1"],
    col: Int32[Tensor, " n"],
    values: Float[Tensor, " n"],
    *,
    n_columns: int,
) -> Tensor:
    """The pairs as a sparse matrix, not checked and not copied."""
    _hear_the_warning()
    shape = (len(crow) - 1, n_columns)
    return torch.sparse_csr_tensor(crow, col, values, shape, check_invariants=False)


@cache
def _hear_the_warning() -> None:
    """Let torch say here, unheard, what it says once in a process: that such matrices are new."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        torch.zeros(1, 1).to_sparse_csr()
