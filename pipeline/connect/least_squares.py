"""The line with the least squared error, from means and products alone."""

import torch
from jaxtyping import Float64
from torch import Tensor

from pipeline.connect.moments import Products

STRIPE = 2**24
"""Values of the solution that are solved for at a time."""


def least_squares(
    products: Products, *, ridge: float, intercept: bool = True
) -> tuple[Float64[Tensor, "n_1 n_2"], Float64[Tensor, " n_2"]]:
    """`W, b` of the line that minimizes `mean ||v - u W - b||^2 + r ||W||^2`.

        (cov(u, u) + r) W = cov(u, v)        b = mean v - mean u W

    (Hoerl and Kennard, "Ridge Regression", Technometrics 1970; `b` is not shrunk.) Without an
    intercept, means of products take the place of covariances and `b` is zero. A `u` that is always
    zero has weights of zero. By Cholesky in float64.

    Args:
        products: Of `u` and `v`.
        ridge: `r` as a share of the mean diagonal of the matrix it is added to, over those `u` that
            vary. Above zero, so that there is one solution.
        intercept: Whether there is a `b`.
    """
    mean1, mean2 = products.mean1, products.mean2
    system = products.product11.clone()
    if intercept:
        system.addr_(mean1, mean1, alpha=-1)
    diagonal = system.diagonal()
    varying = diagonal > 0
    diagonal += ridge * diagonal[varying].mean() if varying.any() else 1.0
    torch.linalg.cholesky(system, out=system)
    W = torch.empty_like(products.product12)
    step = max(1, STRIPE // len(W))
    for start in range(0, len(mean2), step):
        stripe = slice(start, start + step)
        right = products.product12[:, stripe]
        if intercept:
            right = right.addr(mean1, mean2[stripe], alpha=-1)
        W[:, stripe] = torch.cholesky_solve(right, system)
    return W, mean2 - mean1 @ W if intercept else torch.zeros_like(mean2)
