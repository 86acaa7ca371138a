"""Where a connector starts: at random, at the weights of the layer between, or at a regression.

The latter two are baselines, too, with the mean and the best input: connectors that are not
trained, which a trained one has to beat. They are fitted as lines, and rectified because latents
are never below zero. That brings every line nearer to them, but the line fitted so is not the one
that is best once rectified.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from pipeline.config.training import ConnectConfig, Rectify
from pipeline.connect.connector import Connector, SAEPair
from pipeline.connect.moments import Moments, Products
from pipeline.errors import ConfigError
from pipeline.evaluate.sums import exact
from pipeline.sae.gated import Gated
from pipeline.sae.sae import SAE

STRIPE = 2**24
"""Values of a matrix of latents by latents that are made at a time."""

SCALE = 0.1
"""Of random weights, against those that `nn.Linear`, and so S2, starts with, `1 / sqrt(n_in)`.

With 1, outputs are small, but all of them are there, half above zero, where one latent in forty is
active: on the embedded model they begin with an FVU of 3, and the steps that unlearn them are
missing in the end. Between its SAEs, after 400 steps of 1,024 rows at l1 1e-3 and lr 1e-3, the FVU
is 0.51 with 1 and 0.45 with 0.1.
"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """The layer between the two sites as one affine map, `x2 = x1 @ A + a`."""

    A: Float64[Tensor, "d_1 d_2"]
    a: Float64[Tensor, " d_2"]


def needs_moments(config: ConnectConfig) -> bool:
    """Whether its start is fitted to a sample of rows."""
    return config.start == "regression" or (config.start == "weights" and config.layer is None)


def start_connector(config: ConnectConfig, pair: SAEPair, moments: Moments | None) -> Connector:
    """The connector before its first step, on the CPU; without a bias, `b` is zero.

    Moments are there where the start `needs_moments`.
    """
    activation, bias = config.activation, config.bias
    match config.start:
        case "random":
            n_in, n_out = pair.source.d_sae, pair.target.d_sae
            generator = torch.Generator().manual_seed(config.seed)
            bound = SCALE * n_in**-0.5
            W = torch.empty(n_in, n_out).uniform_(-bound, bound, generator=generator)
            connector = Connector(W, torch.zeros(n_out), activation=activation)
        case "weights":
            if config.layer is not None:
                layer = read_layer(config.layer, d_1=pair.source.d_in, d_2=pair.target.d_in)
            else:
                assert moments is not None
                layer = fit_layer(moments.activations)
            connector = weights_connector(pair, layer, activation=activation, bias=bias)
        case "regression":
            assert moments is not None
            connector = ridge_connector(moments, activation=activation, bias=bias)
        case _:
            assert_never(config.start)
    return connector.cpu()


# --- connectors that are not trained ---------------------------------------------------------

RIDGE_BASELINES = 0.3
"""Strength of the ridge regression, times inputs per row, as a share of the inputs' mean variance.

The best strength grows with inputs per row, times the variance that they leave unexplained over
that which they explain (a Gaussian prior of one variance for all weights). At 0.3, rows that were
not fitted are predicted within 0.002 of the FVU at the best strength: for six connectors between
SAEs of the embedded model, with 6 and with 100 rows per input.
"""


def baseline_connectors(pair: SAEPair, moments: Moments, layer: Layer) -> dict[str, Connector]:
    """All of them by their names, on the device of the SAEs."""
    maps = {
        "mean": mean_connector(moments),
        "weights": weights_connector(pair, layer),
        "correlation": correlation_connector(moments),
        "ridge": ridge_connector(moments),
    }
    return {name: fitted.to(pair.source.W_dec.device) for name, fitted in maps.items()}


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

    The strength is RIDGE_BASELINES times inputs ever active, over rows, times their mean variance.
    """
    n_alive = int((moments.latents.mean1 > 0).sum())
    ridge = RIDGE_BASELINES * max(1, n_alive) / moments.n_rows
    W, b = least_squares(moments.latents, ridge=ridge, intercept=bias)
    return Connector(W.float(), b.float(), activation=activation)


def weights_connector(
    pair: SAEPair, layer: Layer, *, activation: Rectify = "relu", bias: bool = True
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


def _encoder(coder: SAE) -> tuple[Float64[Tensor, "d_in d_sae"], Float64[Tensor, " d_sae"]]:
    """`E, e` of `(x - b_dec) @ E + e`, which is each latent that is active.

    A gated one has the magnitude `exp(r_mag) pre + b_mag`.
    """
    E, e = exact(coder.W_enc.detach()), exact(coder.b_enc.detach())
    if isinstance(coder.activation, Gated):
        scale = exact(coder.activation.r_mag.detach()).exp()
        return E * scale, e * scale + exact(coder.activation.b_mag.detach())
    return E, e


# --- the layer between the two sites ---------------------------------------------------------

RIDGE = 1e-7
"""So that the fit exists where activations are linearly dependent; elsewhere it is not felt."""


def read_layer(path: Path, *, d_1: int, d_2: int) -> Layer:
    """The layer of a file as `nn.Linear` saves it: `weight` `[d_2, d_1]`, with a `bias` or not."""
    try:
        tensors = load(path.read_bytes())  # by name, it would have to be UTF-8
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"layer {path} cannot be read as safetensors: {why}") from error
    if "weight" not in tensors:
        held = ", ".join(sorted(tensors)) or "nothing"
        raise ConfigError(f"layer {path} needs a tensor named weight, and holds {held}")
    weight = tensors["weight"]
    bias = tensors.get("bias", torch.zeros(d_2))
    if weight.shape != (d_2, d_1) or bias.shape != (d_2,):
        raise ConfigError(
            f"layer {path} has a weight of {list(weight.shape)} and a bias of {list(bias.shape)}: "
            f"between sites of width {d_1} and {d_2} they are [{d_2}, {d_1}] and [{d_2}]"
        )
    return Layer(A=weight.T.double(), a=bias.double())


def fit_layer(activations: Products) -> Layer:
    """The affine map with the least squared error in `x2` over the sample.

    On the way from one point of a residual stream to a later one it is near the identity.
    """
    A, a = least_squares(activations, ridge=RIDGE)
    return Layer(A=A, a=a)


# --- lines -----------------------------------------------------------------------------------


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
