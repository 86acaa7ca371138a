"""The three sums over pairs on a GPU, in Triton.

All sums are in float32, in an order that depends on the arguments alone: no atomics, and no
autotuning, which may choose another order on another day. Same arguments, same bits.

A program holds `BLOCK` coordinates of `TILE` pairs at a time. The idea is that of Gao et al.
(2024, arXiv 2406.04093, appendix on systems) and of the kernels in openai/sparse_autoencoder and
EleutherAI/sparsify: decode by gathering rows of the dictionary, take dot products at pairs alone.
It differs in three ways.

- Blocks of coordinates are the slow axis of the grid: programs that run together gather from the
  same columns. These fit a second-level cache sooner than whole rows do, and then come from memory
  once, however many pairs want them.
- A gradient of the dictionary gathers too, from the transposed pairs: a program owns what it
  writes. That is the sum of `decode` with rows and latents exchanged, so they share a kernel.
- Latents fire with very different frequencies, and a program with a thousand pairs would run when
  all others have ended. The list of pairs is therefore cut into windows of fixed length; a window
  that lies within one latent is summed by a program of its own, before.
"""

from collections.abc import Callable
from typing import Any, no_type_check

import torch
import triton  # pyright: ignore[reportMissingImports]  (comes with torch for CUDA on Linux)
import triton.language as tl  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Int32
from torch import Tensor

# ruff: noqa: ANN001, ANN202, ANN401  (what a kernel takes are pointers, which have no type here)


BLOCK = 512
"""Coordinates of a program, at most: 16 bytes of float32 for each thread of 4 warps."""

TILE = 8
"""Pairs that a program loads at once, to have many loads on their way."""

WINDOW = 128
"""Pairs of a window: long beside a usual latent's, short beside a very frequent one's."""

MAX_WINDOWS = 4096
"""Windows beyond this number grow instead: their sums are memory, `d` numbers for each."""


def _kernel(source: Callable[..., Any]) -> Any:
    """Compile for the GPU; `@no_type_check` on the source keeps the shape checks of tests off it.

    The number of pairs changes at every step: no compilation for some numbers alone.
    """
    return triton.jit(source, do_not_specialize=["n"])


@_kernel
@no_type_check
def _add_pairs(
    total, begin, end, index, values, at, stride, there, BLOCK: tl.constexpr, TILE: tl.constexpr
):
    """Add `values_j X[index_j]` of begin <= j < end to `total`; `at` points into X[0]."""
    for first in range(begin, end, TILE):
        j = first + tl.arange(0, TILE)
        pair = j < end
        v = tl.load(values + j, mask=pair, other=0.0)
        i = tl.load(index + j, mask=pair, other=0).to(tl.int64)  # i * stride may pass 2^31
        x = tl.load(
            at[None, :] + (i * stride)[:, None], mask=pair[:, None] & there[None, :], other=0.0
        )
        total += v[:, None] * x.to(tl.float32)
    return total


@_kernel
@no_type_check
def _sum_windows(
    crow, owner, index, values, X, stride, stride_d, sums, d, window,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The sum of each window that lies within the row that owns its first pair."""
    w = tl.program_id(0)
    begin = w * window
    end = begin + window
    if end <= tl.load(crow + tl.load(owner + w) + 1):
        cols = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
        there = cols < d
        total = tl.zeros([TILE, BLOCK], tl.float32)
        at = X + cols * stride_d
        total = _add_pairs(total, begin, end, index, values, at, stride, there, BLOCK, TILE)
        tl.store(sums + w.to(tl.int64) * d + cols, tl.sum(total, axis=0), mask=there)


@_kernel
@no_type_check
def _sum_rows(
    crow, index, values, X, stride, stride_d, sums, out, out_stride, out_stride_d, d, window,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The sum of each row: of its whole windows, and of the pairs before and after them."""
    row = tl.program_id(0)
    cols = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    there = cols < d
    begin = tl.load(crow + row)
    end = tl.load(crow + row + 1)
    first = (begin + window - 1) // window
    last = end // window
    head = tl.minimum(end, first * window)
    tail = tl.maximum(head, last * window)

    total = tl.zeros([TILE, BLOCK], tl.float32)
    at = X + cols * stride_d
    total = _add_pairs(total, begin, head, index, values, at, stride, there, BLOCK, TILE)
    for start in range(first, last, TILE):
        w = start + tl.arange(0, TILE)
        whole = tl.load(
            sums + (w.to(tl.int64) * d)[:, None] + cols[None, :],
            mask=(w < last)[:, None] & there[None, :],
            other=0.0,
        )
        total += whole
    total = _add_pairs(total, tail, end, index, values, at, stride, there, BLOCK, TILE)
    tl.store(
        out + row.to(tl.int64) * out_stride + cols * out_stride_d, tl.sum(total, axis=0), mask=there
    )


@_kernel
@no_type_check
def _dot_pairs(
    row, col, r, r_stride, r_stride_d, W, W_stride, W_stride_d, out, n, d,
    BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """What one block of coordinates adds to each `r[row] . W[col]`."""
    j = tl.program_id(0) * TILE + tl.arange(0, TILE)
    pair = j < n
    block = tl.program_id(1).to(tl.int64)
    cols = block * BLOCK + tl.arange(0, BLOCK)
    both = pair[:, None] & (cols < d)[None, :]
    b = tl.load(row + j, mask=pair, other=0).to(tl.int64)
    i = tl.load(col + j, mask=pair, other=0).to(tl.int64)
    x = tl.load(r + (b * r_stride)[:, None] + (cols * r_stride_d)[None, :], mask=both, other=0.0)
    w = tl.load(W + (i * W_stride)[:, None] + (cols * W_stride_d)[None, :], mask=both, other=0.0)
    dots = tl.sum(x.to(tl.float32) * w.to(tl.float32), axis=1)
    tl.store(out + block * n + j, dots, mask=pair)


def decode(
    crow: Int32[Tensor, " rows_1"],
    col: Int32[Tensor, " n"],
    values: Float[Tensor, " n"],
    W: Float[Tensor, "latents d"],
    n_rows: int,
) -> Float[Tensor, "rows d"]:
    """`sum_j values_j W[col_j]` over the pairs of each row, in float32."""
    out = torch.empty(n_rows, W.shape[1], dtype=torch.float32, device=W.device)
    outer(crow, col, values, W, out)
    return out


def pull(
    crow: Int32[Tensor, " rows_1"],
    col: Int32[Tensor, " n"],
    row: Int32[Tensor, " n"],
    r: Float[Tensor, "rows d"],
    W: Float[Tensor, "latents d"],
) -> Float[Tensor, " n"]:
    """`r[row_j] . W[col_j]` at each pair, in float32."""
    n, d = len(col), W.shape[1]
    block, n_blocks, n_warps = _blocks(d)
    row, col = row.contiguous(), col.contiguous()  # kernels step through them one by one
    parts = torch.empty(n_blocks, n, dtype=torch.float32, device=W.device)
    _dot_pairs[triton.cdiv(n, TILE), n_blocks](
        row, col, r, *r.stride(), W, *W.stride(), parts, n, d, block, TILE, num_warps=n_warps
    )
    return parts.sum(0) if n_blocks > 1 else parts[0]


def outer(
    crow_t: Int32[Tensor, " latents_1"],
    row_t: Int32[Tensor, " n"],
    values_t: Float[Tensor, " n"],
    y: Float[Tensor, "rows d"],
    out: Float[Tensor, "latents d"],
) -> None:
    """Write `sum_j values_j y[row_j]` over the pairs of each latent into `out`."""
    n, d = len(row_t), y.shape[1]
    block, n_blocks, n_warps = _blocks(d)
    crow, index, values = crow_t.contiguous(), row_t.contiguous(), values_t.contiguous()
    window = _window_of(n)
    n_windows = n // window
    starts = torch.arange(n_windows, dtype=torch.int32, device=crow.device) * window
    owner = torch.searchsorted(crow, starts, right=True, out_int32=True) - 1
    sums = torch.empty(n_windows, d, dtype=torch.float32, device=y.device)
    _sum_windows[n_windows, n_blocks](
        crow, owner, index, values, y, *y.stride(), sums, d, window,
        block, TILE, num_warps=n_warps,
    )  # fmt: skip
    _sum_rows[len(out), n_blocks](
        crow, index, values, y, *y.stride(), sums, out, *out.stride(), d, window,
        block, TILE, num_warps=n_warps,
    )  # fmt: skip


def _blocks(d: int) -> tuple[int, int, int]:
    """Coordinates of a block, blocks of a row, and warps of a program."""
    block = min(BLOCK, triton.next_power_of_2(d))
    return block, triton.cdiv(d, block), max(1, block // 128)


def _window_of(n: int) -> int:
    """Pairs of a window, of `n` pairs in all."""
    return max(WINDOW, triton.next_power_of_2(triton.cdiv(n, MAX_WINDOWS)))
