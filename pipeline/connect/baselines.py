"""Connectors that are not trained: what a trained one has to beat.

They are fitted as lines, and rectified because latents are never below zero. That brings every line
nearer to them, but the line fitted so is not the one that is best once rectified.
"""

import torch
from jaxtyping import Float64
from torch import Tensor

from pipeline.connect.connector import Connector
from pipeline.connect.layer_between import Layer
from pipeline.connect.least_squares import least_squares
from pipeline.connect.moments import Moments
from pipeline.connect.pair import Pair
from pipeline.evaluate.sums import exact
from pipeline.sae.activation import Gated
from pipeline.sae.coder import SparseCoder
from pipeline.train_config import Rectify

RIDGE = 0.3
"""Strength of the ridge regression, times inputs per row, as a share of the inputs' mean variance.

The best strength grows with inputs per row, times the variance that they leave unexplained over
that which they explain (a Gaussian prior of one variance for all weights). At 0.3, rows that were
not fitted are predicted within 0.002 of the FVU at the best strength: for six connectors between
SAEs of the embedded model, with 6 and with 100 rows per input.
"""
STRIPE = 2**24
"""Covariances in memory at a time."""


def mean_connector(moments: Moments) -> Connector:
    """`z2 = mean z2` whatever is read: on the sample, no variance is explained, by definition."""
    W = torch.zeros_like(moments.latents.product12, dtype=torch.float32)
    return Connector(W, moments.latents.mean2.float())


def correlation_connector(moments: Moments) -> Connector:
    """Each output from the one input that is most correlated with it, by the line through both.

        W[i, o] = cov(z1_i, z2_o) / var z1_i        b_o = mean z2_o - W[i, o] mean z1_i

    The input has the largest `cov^2 / var z1_i`, the variance that its line explains, hence also
    the largest `|corr|`; the first of equals. Outputs that vary with no input stay at their mean.
    """
    latents = moments.latents
    n_in, n_out = latents.product12.shape
    var1 = latents.var1[:, None]
    W = torch.zeros_like(latents.product12, dtype=torch.float32)
    b = latents.mean2.clone()
    step = max(1, STRIPE // n_in)
    for start in range(0, n_out, step):
        stripe = slice(start, start + step)
        cov = latents.product12[:, stripe].addr(latents.mean1, latents.mean2[stripe], alpha=-1)
        best = torch.where(var1 > 0, cov.square() / var1, 0).argmax(0, keepdim=True)
        slope = torch.where(var1 > 0, cov / var1, 0).gather(0, best)
        W[:, stripe] = torch.zeros_like(cov).scatter_(0, best, slope).float()
        b[stripe] -= slope[0] * latents.mean1[best[0]]
    return Connector(W, b.float())


def ridge_connector(
    moments: Moments, *, activation: Rectify = "relu", bias: bool = True
) -> Connector:
    """Each output from all inputs, by ridge regression (`least_squares`).

    The strength is RIDGE times inputs ever active, over rows, times their mean variance.
    """
    n_alive = int((moments.active1 > 0).sum())
    ridge = RIDGE * max(1, n_alive) / moments.n_rows
    W, b = least_squares(moments.latents, ridge=ridge, intercept=bias)
    return Connector(W.float(), b.float(), activation=activation)


def weights_connector(
    pair: Pair, layer: Layer, *, activation: Rectify = "relu", bias: bool = True
) -> Connector:
    """What the weights of both SAEs and of the layer between say, `E2 W D1`, fitted to nothing.

    A reconstruction by the source, through the layer, into the encoder of the target:

        x1 = z1 @ W_dec1 + b_dec1        x2 = x1 @ A + a        pre2 = (x2 - b_dec2) @ E + e
        W = W_dec1 @ A @ E               b = (b_dec1 @ A + a - b_dec2) @ E + e

    That is S2's `W2 = E2 W D1` (transposed) and `b2 = E2 b + e2`, whose SAEs have no `b_dec`. It
    passes over any relu in the layer, and keeps of the target's activation the relu alone: where
    latents compete or have thresholds, more of them are active here than there.
    """
    E, e = _encoder(pair.target)
    W_dec1, b_dec1, b_dec2 = (
        exact(p.detach()) for p in (pair.source.W_dec, pair.source.b_dec, pair.target.b_dec)
    )
    through = layer.A.to(E.device) @ E
    W = W_dec1 @ through
    b = b_dec1 @ through + (layer.a.to(E.device) - b_dec2) @ E + e
    return Connector(W.float(), (b if bias else torch.zeros_like(b)).float(), activation=activation)


def _encoder(
    coder: SparseCoder,
) -> tuple[Float64[Tensor, "d_in d_sae"], Float64[Tensor, " d_sae"]]:
    """`E, e` of `(x - b_dec) @ E + e`, which is each latent that is active.

    That is `W_enc` and `b_enc`, but for gated latents, whose magnitude is
    `exp(r_mag) pre + b_mag`.
    """
    E, e = exact(coder.W_enc.detach()), exact(coder.b_enc.detach())
    if isinstance(coder.activation, Gated):
        scale = exact(coder.activation.r_mag.detach()).exp()
        return E * scale, e * scale + exact(coder.activation.b_mag.detach())
    return E, e
