import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.evaluate.metrics import METRICS, Latents, of_sums, perplexity_of, recovered
from pipeline.evaluate.report import QUANTILES
from pipeline.evaluate.sums import (
    CLEAN,
    RECONSTRUCTION,
    Sparsity,
    losses,
    quantiles,
    reconstruction,
    sum_kept,
)
from pipeline.lm import cross_entropy

CPU = torch.device("cpu")


class Head:
    """Hidden states are the logits."""

    def logits(self, hidden, /):
        return hidden


def test_what_a_row_adds_agrees_with_float64_far_from_zero():
    torch.manual_seed(0)
    x, x_hat = torch.randn(30, 5) + 100, torch.randn(30, 5) + 100
    mean = x.double().mean(0)
    found = dict(zip(RECONSTRUCTION, reconstruction(x, x_hat, mean), strict=True))
    xd, xd_hat = x.double(), x_hat.double()
    plain = {
        "error": (xd - xd_hat).square().sum(1),
        "spread": (xd - mean).square().sum(1),
        "cosine": F.cosine_similarity(xd, xd_hat),
        "square_hat": xd_hat.square().sum(1),
        "product": (xd * xd_hat).sum(1),
        "norm_ratio": xd_hat.norm(dim=1) / xd.norm(dim=1),
    }
    for name, values in plain.items():
        torch.testing.assert_close(found[name], values, rtol=1e-6, atol=0, msg=name)
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]])  # a row of zeros is like nothing
    found = dict(zip(RECONSTRUCTION, reconstruction(x, x.flip(0), mean[:2]).tolist(), strict=True))
    assert found["cosine"] == found["norm_ratio"] == [0, 0]


def test_ratios_over_nothing_are_not_numbers():
    names = "n_tokens", "n_predictions", "nll_spliced", "kl_spliced", "l0", "l1", *RECONSTRUCTION
    equal, nothing = ("nll_clean", "nll_zero", "nll_mean"), ("spread", "product", "kl_zero")
    sums = dict.fromkeys(names, 1) | dict.fromkeys(equal, 2) | dict.fromkeys(nothing, 0)
    found = of_sums({name: np.array([float(value)]) for name, value in sums.items()})
    undefined = {name for name, value in found.items() if np.isnan(value)}
    assert undefined == {
        "explained_variance", "relative_bias", "loss_recovered", "loss_recovered_mean",
        "kl_recovered",
    }  # fmt: skip


def test_nothing_is_recovered_where_ablating_does_not_hurt():
    """Or a better SAE would read as a worse one."""
    hurts, helps = (
        recovered(np.array([floor]), np.array([2.0]), np.array([1.5])) for floor in (3.0, 1.0)
    )
    assert hurts == pytest.approx(2 / 3) and np.isnan(helps)
    x = torch.tensor([[3e-10, 4e-10]])
    found = dict(zip(RECONSTRUCTION, reconstruction(x, x, torch.zeros(2).double()), strict=True))
    assert found["cosine"].item() == pytest.approx(1)


def test_a_perplexity_beyond_all_numbers_is_the_largest():
    assert perplexity_of(np.array([0.0, 2.0])) == pytest.approx([1, math.exp(2)])
    assert np.isfinite(perplexity_of(np.array([1e4]))).all()


def test_losses_of_each_prediction_are_those_of_its_own_pass(monkeypatch):
    monkeypatch.setattr(cross_entropy, "CPU_ROWS", 9)  # slices do not end where contexts do
    torch.manual_seed(0)
    clean, edited = torch.randn(5, 8, 11), torch.randn(5, 8, 11)
    tokens = torch.randint(11, (5, 8))
    passes = {"edit": edited, "same": clean, 7: edited}
    found = losses(Head(), clean, passes, tokens, diverging=["edit", "same"])
    p, q = clean.double().log_softmax(-1)[:, :-1], edited.double().log_softmax(-1)[:, :-1]
    targets = tokens[:, 1:, None]
    assert set(found.nll) == {CLEAN, "edit", "same", 7}
    assert set(found.kl) == {"edit", "same"}
    for name, logp in ((CLEAN, p), ("edit", q), ("same", p), (7, q)):
        wide = found.nll[name].double()
        torch.testing.assert_close(wide, -logp.gather(2, targets)[..., 0], rtol=1e-6, atol=1e-6)
    kl = (p.exp() * (p - q)).sum(-1)
    torch.testing.assert_close(found.kl["edit"].double(), kl, rtol=1e-5, atol=1e-6)
    assert not found.kl["same"].any()


def test_sums_leave_out_rows_whatever_they_hold():
    values = torch.tensor([[1.0, math.nan, 2.0], [math.inf, 4.0, 0.5]])
    kept = torch.tensor([[True, False, True], [False, True, True]])
    assert sum_kept(values, kept).tolist() == [3.0, 4.5]


def test_sparsity_counts_what_is_above_zero():
    sums = Sparsity(4, device=CPU)
    first = sums.add(torch.tensor([[1.0, 0.0, 2.0, 0.0]]))
    more = sums.add(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0], [0.0] * 4]))
    assert torch.cat([first, more], 1).tolist() == [[2, 1, 1, 0], [3.0, 1.0, 0.5, 0.0]]
    assert sums.density.tolist() == [0.75, 0.0, 0.25, 0.0]
    assert sums.dead.tolist() == [False, True, False, True]
    assert sums.l0_quantiles == pytest.approx(np.quantile([2, 1, 1, 0], QUANTILES))


def test_quantiles_of_a_histogram_are_those_of_its_values():
    rng = np.random.default_rng(0)
    for n, top in itertools.product((1, 2, 3, 20, 21, 1000), (1, 3, 40)):
        values = rng.integers(top, size=n)
        histogram = np.bincount(values, minlength=50)
        assert quantiles(histogram) == pytest.approx(np.quantile(values, QUANTILES)), (n, top)


def test_rare_and_frequent_are_strictly_below_and_above():
    sums = Sparsity(5, device=CPU)
    z = torch.zeros(1_000_000, 5)
    z[:1, 1] = z[:2, 2] = z[:100_000, 3] = z[:100_001, 4] = 1
    sums.add(z)
    assert sums.density.tolist() == [0, 1e-6, 2e-6, 0.1, 0.100001]
    latents = Latents(
        density=sums.density, dead=sums.dead, dead_cosine=None, others_cosine=None,
        encoder_decoder_cosine=sums.density, max_cosine=sums.density,
    )  # fmt: skip
    assert [METRICS[name].formula(latents) for name in ("n_rare", "n_frequent")] == [1, 1]
