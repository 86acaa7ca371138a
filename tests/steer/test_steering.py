"""What is made of activations, held to the formula in float64."""

import numpy as np
import pytest
import saepipe as sp
import torch

from pipeline.config.architectures import ReluConfig, TopKConfig
from pipeline.errors import ConfigError
from pipeline.sae.sae import SAE, TunedSAE
from tests.helpers.refusals import refused
from tests.helpers.tiny import WIDTH, identity_sae, make_sae

ROWS = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(0))


def tuned() -> TunedSAE:
    """Whose scales and biases are not those it starts with."""
    its = TunedSAE(make_sae())
    with torch.no_grad():
        its.c.normal_(mean=1.0, std=0.5, generator=torch.Generator().manual_seed(1))
        its.d.normal_(std=0.5, generator=torch.Generator().manual_seed(2))
    return its


def expected(sae, x, *, add=(), clamp=(), ablate=()) -> np.ndarray:
    """A loop over features; z of an independent formula in float64."""
    plain = sae.sae if isinstance(sae, TunedSAE) else sae
    one = {name: p.detach().double().numpy() for name, p in plain.named_parameters()}
    rows = x.double().numpy()
    pre = (rows - one["b_dec"]) @ one["W_enc"] + one["b_enc"]
    if isinstance(sae, TunedSAE):
        pre = sae.c.detach().double().numpy() * pre + sae.d.detach().double().numpy()
    z = np.maximum(pre, 0)
    if isinstance(plain.arch, TopKConfig):
        least = np.sort(z, axis=-1)[..., -plain.arch.k, None]
        z = np.where(z >= least, z, 0)
    made = rows.copy()
    for i, s in dict(add).items():
        made += s * one["W_dec"][i]
    for i, v in {**dict(clamp), **dict.fromkeys(ablate, 0.0)}.items():
        made += (v - z[..., i, None]) * one["W_dec"][i]
    return made


EDITS = {
    "add": {"add": {3: 2.5}},
    "negative": {"add": {3: -2.5}},
    "clamp": {"clamp": {4: 1.5}},
    "ablate": {"ablate": [6]},
    "several": {"add": {1: 2.0, 2: -1.0}, "clamp": {3: 0.5, 11: 2.0}, "ablate": [4, 7]},
}
CODERS = {
    "relu": make_sae, "tuned": tuned,
    "topk": lambda: make_sae(arch=TopKConfig(k=7)),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("edit", EDITS)
def test_sums_are_those_of_the_formula(coder, edit):
    sae = CODERS[coder]()
    made = sp.Steering(sae, **EDITS[edit])(ROWS)
    np.testing.assert_allclose(made.numpy(), expected(sae, ROWS, **EDITS[edit]), atol=1e-5)
    assert not torch.equal(made, ROWS)


@torch.no_grad()
def test_ablating_is_clamping_to_zero_and_edits_add_up():
    sae = make_sae()
    ablated = sp.Steering(sae, ablate=[6, 8])(ROWS)
    assert torch.equal(ablated, sp.Steering(sae, clamp={6: 0.0, 8: 0.0})(ROWS))
    parts = [sp.Steering(sae, ablate=[i])(ROWS) - ROWS for i in (6, 8)]
    torch.testing.assert_close(ablated, ROWS + parts[0] + parts[1])


@torch.no_grad()
def test_of_an_orthogonal_dictionary_a_clamped_feature_has_the_value():
    sae = SAE(ReluConfig(), d_in=WIDTH, d_sae=WIDTH)
    directions, _ = torch.linalg.qr(torch.randn(WIDTH, WIDTH, generator=torch.manual_seed(3)))
    sae.W_dec.copy_(directions)
    sae.W_enc.copy_(directions.T)
    z = ROWS.relu()  # of what it explains, half is off
    x = sae.decode(z)
    torch.testing.assert_close(sae.encode(x), z)
    after = sae.encode(sp.Steering(sae, clamp={2: 3.5}, ablate=[5])(x))
    wanted = z.clone()
    wanted[..., 2], wanted[..., 5] = 3.5, 0.0
    torch.testing.assert_close(after, wanted)


@torch.no_grad()
def test_what_the_sae_does_not_explain_is_kept():
    """Of a bad SAE, whose reconstruction is nothing like x, x stays but for the one feature."""
    sae = make_sae()
    silent = sae.encode(ROWS)[..., 5]
    assert not silent.any()
    assert torch.equal(sp.Steering(sae, ablate=[5])(ROWS), ROWS)
    assert (sae(ROWS) - ROWS).abs().max() > 0.5


def test_adding_nothing_gives_x_itself():
    assert sp.Steering(make_sae(), add={3: 0.0, 4: 0})(ROWS) is ROWS


def test_a_steering_is_a_value():
    sae = identity_sae()
    given = {np.int64(3): np.float32(2)}
    one, other = sp.Steering(sae, add=given), sp.Steering(sae, {3: 2.0})
    assert one == other and hash(one) == hash(other)
    assert one != sp.Steering(sae, clamp={3: 2.0})
    assert one.latents == (3,) and one.d_in == WIDTH
    given[np.int64(4)] = np.float32(1)
    assert one == other
    assert repr(one).startswith("Steering(add={3: 2.0}; of SAE(")
    with pytest.raises(AttributeError):
        one.add = {}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "nothing is steered"),
        ({"add": {64: 1.0}}, "has features 0 to 63, got 64"),
        ({"ablate": [-1]}, "has features 0 to 63, got -1"),
        ({"add": {1: 1.0}, "ablate": [1]}, "feature 1 is steered twice"),
        ({"ablate": [1, 1]}, "feature 1 is steered twice"),
        ({"add": {1: float("nan")}}, "by a number, got nan"),
        ({"add": {1: "5x"}}, "by a number, got '5x'"),
        ({"add": {1.5: 1}}, "whole numbers, got 1.5"),
        ({"add": [1]}, "takes values by latent"),
    ],
)
def test_what_is_no_steering_is_one_line(given, told):
    with refused(ConfigError, told):
        sp.Steering(make_sae(), **given)


def test_no_sae_and_other_widths_are_one_line():
    with refused(ConfigError, "takes an SAE, got str: of a run, give run.sae"):
        sp.Steering("runs/topk", ablate=[1])
    with refused(ConfigError, r"takes \[\.\.\., 16\] of its SAE, got \[3, 4\]"):
        sp.Steering(make_sae(), ablate=[1])(torch.zeros(3, 4))
