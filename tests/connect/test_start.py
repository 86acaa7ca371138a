"""Where connectors start, and baselines: against float64 formulas, and the coders themselves."""

import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pipeline.config.architectures import ArchConfig, GatedConfig, ReluConfig
from pipeline.config.training import ConnectConfig
from pipeline.connect.connector import SAEPair
from pipeline.connect.moments import Moments, Products
from pipeline.connect.start import (
    RIDGE_BASELINES as RIDGE,
    Layer,
    correlation_connector,
    fit_layer,
    least_squares,
    mean_connector,
    needs_moments,
    read_layer,
    ridge_connector,
    start_connector,
    weights_connector,
)
from pipeline.errors import ConfigError
from tests.helpers.refusals import refused
from tests.helpers.tiny import make_sae

N_IN, N_OUT, ROWS = 12, 9, 400
DEAD_IN, DEAD_OUT = 5, 7


def make_products(u: np.ndarray, v: np.ndarray) -> Products:
    n = len(u)
    tensors = {
        "mean1": u.mean(0), "mean2": v.mean(0), "product11": u.T @ u / n,
        "product12": u.T @ v / n,
    }  # fmt: skip
    return Products(**{name: torch.from_numpy(values) for name, values in tensors.items()})


def make_moments(
    z1: np.ndarray, z2: np.ndarray, *, x1: np.ndarray | None = None, x2: np.ndarray | None = None
) -> Moments:
    """Of these latents; their SAEs read nothing worth mentioning unless it is given."""
    nothing = np.zeros((len(z1), 1))
    return Moments(
        n_rows=len(z1),
        latents=make_products(z1, z2),
        activations=make_products(nothing if x1 is None else x1, nothing if x2 is None else x2),
    )


def make_latents(*, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Sparse inputs, of which one is dead, and outputs that depend on several of them."""
    rng = np.random.default_rng(seed)
    z1 = rng.gamma(2, size=(ROWS, N_IN)) * (rng.random((ROWS, N_IN)) < 0.3)
    z1[:, DEAD_IN] = 0
    line = z1 @ rng.standard_normal((N_IN, N_OUT)) + 0.3 * rng.standard_normal((ROWS, N_OUT))
    z2 = np.maximum(line, 0)
    z2[:, DEAD_OUT] = 0
    return z1, z2


def numbers(connector) -> tuple[np.ndarray, np.ndarray]:
    assert connector.W.dtype == connector.b.dtype == torch.float32
    return connector.W.detach().double().numpy(), connector.b.detach().double().numpy()


def predict(connector, z1: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return connector(torch.from_numpy(z1).float()).double().numpy()


def test_predicting_the_mean_leaves_all_variance_unexplained():
    z1, z2 = make_latents()
    connector = mean_connector(make_moments(z1, z2))
    W, b = numbers(connector)
    assert not W.any()
    np.testing.assert_allclose(b, z2.mean(0), rtol=1e-7)
    error, spread = ((z2 - predict(connector, z1)) ** 2).sum(), ((z2 - z2.mean(0)) ** 2).sum()
    assert error / spread == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize("stripe", [1, 2**24])
def test_each_output_is_the_line_through_its_most_correlated_input(monkeypatch, stripe):
    monkeypatch.setattr("pipeline.connect.start.STRIPE", stripe)
    z1, z2 = make_latents()
    z2[:, 2] = np.maximum(3 - z1[:, 4], 0)  # best predicted by a negative weight
    connector = correlation_connector(make_moments(z1, z2))
    assert connector.activation == "relu"
    W, b = numbers(connector)
    for o in range(N_OUT):
        if o == DEAD_OUT:
            assert not W[:, o].any() and b[o] == 0
            continue
        corr = [0 if i == DEAD_IN else np.corrcoef(z1[:, i], z2[:, o])[0, 1] for i in range(N_IN)]
        best = int(np.argmax(np.abs(corr)))
        slope, intercept = np.polyfit(z1[:, best], z2[:, o], 1)
        np.testing.assert_array_equal(np.flatnonzero(W[:, o]), [best])
        np.testing.assert_allclose([W[best, o], b[o]], [slope, intercept], rtol=1e-6)
    assert W[4, 2] < 0


def plain_ridge(u: np.ndarray, v: np.ndarray, r: float, *, intercept: bool = True) -> np.ndarray:
    """Weights, then intercepts, by least squares of rows with as many more that ask for zero."""
    n, d = u.shape
    ones = np.ones((n, 1)) if intercept else np.zeros((n, 1))
    rows = np.block([[u, ones], [np.sqrt(n * r) * np.eye(d), np.zeros((d, 1))]])
    return np.linalg.lstsq(rows, np.concatenate([v, np.zeros((d, v.shape[1]))]), rcond=None)[0]


@pytest.mark.parametrize("stripe", [1, 2**24])
@pytest.mark.parametrize("bias", [True, False])
def test_ridge_is_the_least_squares_solution_of_rows_and_penalty(monkeypatch, bias, stripe):
    monkeypatch.setattr("pipeline.connect.start.STRIPE", stripe)
    z1, z2 = make_latents()
    connector = ridge_connector(make_moments(z1, z2), bias=bias)
    W, b = numbers(connector)
    varying = np.delete(z1, DEAD_IN, axis=1)
    variance = (varying.var(0) if bias else (varying**2).mean(0)).mean()
    strength = RIDGE * (N_IN - 1) / ROWS * variance
    expected = plain_ridge(z1, z2, strength, intercept=bias)
    np.testing.assert_allclose(W, expected[:-1], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(b, expected[-1] if bias else 0 * b, rtol=1e-5, atol=1e-6)
    assert not W[DEAD_IN].any()
    assert not W[:, DEAD_OUT].any() and b[DEAD_OUT] == 0


def test_least_squares_of_inputs_that_never_vary_is_the_mean():
    rng = np.random.default_rng(0)
    v = rng.random((50, 3))
    W, b = least_squares(make_products(np.zeros((50, 4)), v), ridge=1e-3)
    assert not W.any()
    np.testing.assert_allclose(b.numpy(), v.mean(0), rtol=1e-12)


def test_least_squares_leaves_the_products_as_they_were():
    products = make_products(*make_latents())
    before = [t.clone() for t in vars(products).values()]
    least_squares(products, ridge=1e-3)
    assert all(torch.equal(t, was) for t, was in zip(vars(products).values(), before, strict=True))


def make_pair(*, target: ArchConfig = ReluConfig()) -> SAEPair:  # noqa: B008 - it is frozen
    pair = SAEPair(
        source=make_sae(d_in=6, expansion=3, seed=1),
        target=make_sae(d_in=4, expansion=3, arch=target, seed=2),
        sites=("resid_pre.0", "mlp_out.0"),
    )
    torch.manual_seed(0)
    with torch.no_grad():  # encoders that are not their dictionaries, as trained ones are not
        for coder in (pair.source, pair.target):
            coder.W_enc.add_(0.3 * torch.randn_like(coder.W_enc))
            coder.b_enc[::5] = 0.4
    return pair


def make_linear(*, bias: bool = True) -> torch.nn.Linear:
    torch.manual_seed(3)
    return torch.nn.Linear(6, 4, bias=bias)


def layer_of(linear: torch.nn.Linear) -> Layer:
    weight = linear.weight.detach().double()
    return Layer(A=weight.T, a=linear.bias.detach().double())


@pytest.mark.parametrize("target", [ReluConfig(), GatedConfig()], ids=["relu", "gated"])
def test_weights_do_what_decoder_layer_and_encoder_do_one_after_another(target):
    """So they are S2's `W2 = E2 W D1` and `b2 = E2 b + e2`, but for decoder biases."""
    pair, linear = make_pair(target=target), make_linear()
    z1 = torch.rand(50, 18)
    with torch.no_grad():
        if target == GatedConfig():
            gated = pair.target.activation
            gated.r_mag.normal_(std=0.5)
            gated.b_mag.normal_(std=0.5)
            gated.b_gate.fill_(1e3)  # all gates open
        through = pair.target.encode(linear(pair.source.decode(z1)))
        found = weights_connector(pair, layer_of(linear))(z1)
    torch.testing.assert_close(found, through, rtol=1e-5, atol=1e-5)
    assert 0.2 < (through > 0).float().mean() < 0.8


def test_the_fitted_layer_is_the_affine_map_between_the_sites():
    rng = np.random.default_rng(0)
    x1 = rng.standard_normal((300, 5)) * [1, 1, 1, 30, 1] + [0, 0, 50, 0, 3]
    x1[:, 4] = 3  # a coordinate that never varies
    x2 = x1 @ rng.standard_normal((5, 3)) + 7 + 0.1 * rng.standard_normal((300, 3))
    layer = fit_layer(make_products(x1, x2))
    varying = x1[:, :4]
    expected = plain_ridge(varying, x2, 0)
    np.testing.assert_allclose(layer.A.numpy()[:4], expected[:4], rtol=1e-3, atol=1e-5)
    predicted = x1 @ layer.A.numpy() + layer.a.numpy()
    np.testing.assert_allclose(predicted, varying @ expected[:4] + expected[4], atol=1e-2)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_is_read_as_torch_saves_it(tmp_path, bias):
    linear = make_linear(bias=bias)
    path = tmp_path / "layer.safetensors"
    save_file(dict(linear.state_dict()), path)
    layer = read_layer(path, d_1=6, d_2=4)
    x = torch.randn(10, 6)
    torch.testing.assert_close((x.double() @ layer.A + layer.a).float(), linear(x).detach())


@pytest.mark.skipif(sys.platform == "darwin", reason="its names are UTF-8")
def test_a_layer_is_read_by_a_name_that_is_no_utf8(tmp_path):
    whole, odd = tmp_path / "layer.safetensors", tmp_path / os.fsdecode(b"\xff.safetensors")
    save_file(dict(make_linear().state_dict()), whole)
    whole.rename(odd)
    assert read_layer(odd, d_1=6, d_2=4).A.shape == (6, 4)


def test_a_file_that_is_no_layer_between_the_sites_is_refused(tmp_path):
    path = tmp_path / "layer.safetensors"

    def refuses(told: str, *, d_1: int = 6, d_2: int = 4) -> None:
        with refused(ConfigError, re.escape(f"layer {path} {told}")):
            read_layer(path, d_1=d_1, d_2=d_2)

    refuses("cannot be read as safetensors: No such file")
    path.write_bytes(b"not a safetensors file")
    refuses("cannot be read")
    save_file({"W": torch.zeros(4, 6), "b": torch.zeros(4)}, path)
    refuses("needs a tensor named weight, and holds W, b")
    save_file(dict(make_linear().state_dict()), path)
    told = "has a weight of [4, 6] and a bias of [4]: between sites of width 4 and 6 they are "
    refuses(told + "[6, 4] and [6]", d_1=4, d_2=6)
    save_file({"weight": torch.zeros(4, 6), "bias": torch.zeros(3)}, path)
    refuses("has a weight of [4, 6] and a bias of [3]")
    path.unlink()
    path.mkdir()
    refuses("cannot be read")


# --- where a training starts -----------------------------------------------------------------


def make_config(**changes) -> ConnectConfig:
    paths = {"store": Path("s"), "out": Path("o"), "ends": (Path("a"), Path("b"))}
    return ConnectConfig(**paths, **changes)


def moments_between(pair: SAEPair) -> Moments:
    """Of activations that a random layer makes of others."""
    x1 = torch.randn(512, 6, generator=torch.Generator().manual_seed(5))
    x2 = make_linear()(x1).detach()
    with torch.no_grad():
        z1, z2 = pair.latents(dict(zip(pair.sites, (x1, x2), strict=True)))
    z1, z2, x1, x2 = (t.double().numpy() for t in (z1, z2, x1, x2))
    return make_moments(z1, z2, x1=x1, x2=x2)


def same(one, other) -> bool:
    return torch.equal(one.W, other.W) and torch.equal(one.b, other.b)


def test_a_random_start_is_a_tenth_of_what_torch_starts_a_linear_layer_with_by_its_seed_alone():
    coders = (make_sae(d_in=8, expansion=expansion) for expansion in (64, 48))
    pair = SAEPair(**dict(zip(("source", "target"), coders, strict=True)), sites=("a", "b"))
    config = make_config(start="random", seed=3)
    connector = start_connector(config, pair, None)
    theirs = torch.nn.Linear(512, 384).weight.detach()
    W = connector.W.detach().T
    assert W.shape == theirs.shape and not connector.b.any() and not needs_moments(config)
    assert float(W.std()) == pytest.approx(0.1 * float(theirs.std()), rel=0.02)
    assert float(W.abs().max()) == pytest.approx(0.1 * float(theirs.abs().max()), rel=0.01)
    assert abs(float(W.mean())) < 0.01 * float(W.std())
    torch.manual_seed(99)
    for changes, alike in ({"bias": False}, True), ({"seed": 4}, False):
        assert same(start_connector(replace(config, **changes), pair, None), connector) == alike


@pytest.mark.parametrize("start", ["random", "weights", "regression"])
def test_every_start_has_the_bias_and_the_activation_asked_for(start):
    pair = make_pair()
    moments = moments_between(pair)
    plain = start_connector(make_config(start=start), pair, moments)
    assert plain.activation == "relu" and bool(plain.b.any()) == (start != "random")
    config = make_config(start=start, bias=False, activation="linear")
    changed = start_connector(config, pair, moments)
    assert changed.activation == "linear" and not changed.b.any()
    assert changed.W.shape == (18, 12) and changed.W.dtype == torch.float32
    assert torch.equal(changed.W, plain.W) == (start != "regression")


def test_a_regression_start_is_the_ridge_and_one_from_weights_has_the_layer_given_or_that_fits(
    tmp_path,
):
    pair = make_pair()
    moments = moments_between(pair)
    for bias in (True, False):
        config = make_config(start="regression", bias=bias)
        assert needs_moments(config)
        assert same(start_connector(config, pair, moments), ridge_connector(moments, bias=bias))

    path = tmp_path / "layer.safetensors"
    save_file(dict(make_linear().state_dict()), path)
    given, fitted = make_config(start="weights", layer=path), make_config(start="weights")
    assert (needs_moments(given), needs_moments(fitted)) == (False, True)
    expected = weights_connector(pair, read_layer(path, d_1=6, d_2=4))
    assert same(start_connector(given, pair, None), expected)
    expected = weights_connector(pair, fit_layer(moments.activations))
    assert same(start_connector(fitted, pair, moments), expected)
