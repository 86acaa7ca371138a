"""Where connectors start."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from actstore.reader import ActStore
from pipeline.config.training import ConnectConfig
from pipeline.connect.connector import SAEPair
from pipeline.connect.moments import find_moments
from pipeline.connect.start import (
    fit_layer,
    needs_moments,
    read_layer,
    ridge_connector,
    start_connector,
    weights_connector,
)
from pipeline.errors import ConfigError
from tests.helpers.tiny import make_sae
from tests.helpers.training import make_training_store

SITES = ("resid_post.0", "mlp_out.0")


def make_config(**changes) -> ConnectConfig:
    paths = {"store": Path("s"), "out": Path("o"), "ends": (Path("a"), Path("b"))}
    return ConnectConfig(**paths, **changes)


def make_pair(*, expansions: tuple[int, int] = (4, 6)) -> SAEPair:
    source, target = (
        make_sae(d_in=8, expansion=expansion, seed=seed)
        for seed, expansion in enumerate(expansions)
    )
    return SAEPair(source=source, target=target, sites=SITES)


def moments_of(pair: SAEPair, folder: Path):
    store = ActStore.open(make_training_store(folder / "acts.actstore", n_rows=512))
    return find_moments(pair, store, device=torch.device("cpu"))


def test_a_random_start_is_a_tenth_of_what_torch_starts_a_linear_layer_with():
    connector = start_connector(make_config(start="random"), make_pair(expansions=(64, 48)), None)
    theirs = torch.nn.Linear(512, 384).weight.detach()
    W = connector.W.detach().T
    assert W.shape == theirs.shape and not connector.b.any()
    assert float(W.std()) == pytest.approx(0.1 * float(theirs.std()), rel=0.02)
    assert float(W.abs().max()) == pytest.approx(0.1 * float(theirs.abs().max()), rel=0.01)
    assert abs(float(W.mean())) < 0.01 * float(W.std())


def test_a_random_start_depends_on_the_seed_alone():
    assert not needs_moments(make_config(start="random"))
    pair = make_pair()
    first = start_connector(make_config(start="random", seed=3), pair, None)
    torch.manual_seed(99)
    same = start_connector(make_config(start="random", seed=3, bias=False), pair, None)
    assert torch.equal(first.W, same.W)
    assert not torch.equal(
        first.W, start_connector(make_config(start="random", seed=4), pair, None).W
    )


@pytest.mark.parametrize("start", ["random", "weights", "regression"])
def test_every_start_has_the_bias_and_the_activation_asked_for(tmp_path, start):
    pair = make_pair()
    moments = moments_of(pair, tmp_path)
    plain = start_connector(make_config(start=start), pair, moments)
    assert plain.activation == "relu" and bool(plain.b.any()) == (start != "random")
    changed = start_connector(
        make_config(start=start, bias=False, activation="linear"), pair, moments
    )
    assert changed.activation == "linear" and not changed.b.any()
    assert changed.W.shape == (32, 48) and changed.W.dtype == torch.float32


def test_a_regression_start_is_the_ridge(tmp_path):
    pair = make_pair()
    moments = moments_of(pair, tmp_path)
    for bias in (True, False):
        config = make_config(start="regression", bias=bias)
        found, expected = (
            start_connector(config, pair, moments), ridge_connector(moments, bias=bias),
        )  # fmt: skip
        assert torch.equal(found.W, expected.W) and torch.equal(found.b, expected.b)
        assert needs_moments(config)


def test_a_start_from_weights_takes_the_layer_given_else_the_one_that_fits(tmp_path):
    pair = make_pair()
    path = tmp_path / "layer.safetensors"
    save_file(dict(torch.nn.Linear(8, 8).state_dict()), path)
    given = make_config(start="weights", layer=path)
    expected = weights_connector(pair, read_layer(path, d_1=8, d_2=8))
    assert not needs_moments(given)
    assert torch.equal(start_connector(given, pair, None).W, expected.W)

    fitted, moments = make_config(start="weights"), moments_of(pair, tmp_path)
    expected = weights_connector(pair, fit_layer(moments.activations))
    assert needs_moments(fitted)
    assert torch.equal(start_connector(fitted, pair, moments).W, expected.W)


def test_a_layer_must_lead_from_the_first_site_to_the_second(tmp_path):
    path = tmp_path / "layer.safetensors"
    config = make_config(start="weights", layer=path)
    pair = SAEPair(source=make_sae(d_in=8), target=make_sae(d_in=6), sites=SITES)
    save_file(dict(torch.nn.Linear(8, 6).state_dict()), path)
    assert start_connector(config, pair, None).W.shape == (32, 24)
    save_file(dict(torch.nn.Linear(6, 8).state_dict()), path)
    with pytest.raises(ConfigError, match="between sites of width 8 and 6"):
        start_connector(config, pair, None)
