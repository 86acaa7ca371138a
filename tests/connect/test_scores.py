from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pipeline.connect.connector import Connector, PairLatents
from pipeline.connect.report import QUANTILES
from pipeline.connect.scores import SPARSE, OutputStats, predict, scores_of, squared_errors

N_IN, N_OUT, N_ROWS = 24, 15, 219
DEAD, CONSTANT = 4, 9
"""Outputs that are never active, and always equally."""


def make_latents(*, density: float = 0.3, seed: int = 0) -> PairLatents:
    """Sparse latents above zero; of the outputs one is dead and one constant."""
    generator = torch.Generator().manual_seed(seed)

    def sparse(width: int) -> torch.Tensor:
        active = torch.rand(N_ROWS, width, generator=generator) < density
        return active * torch.rand(N_ROWS, width, generator=generator).add_(0.5)

    z1, z2 = sparse(N_IN), sparse(N_OUT) + 0
    z2[:, DEAD], z2[:, CONSTANT] = 0, 0.7  # whose variance rounds to above zero
    return PairLatents(z1=z1, z2=z2)


def make_map(*, seed: int = 0, activation: str = "relu", scale: float = 0.15) -> Connector:
    """Random weights, half of them zero."""
    generator = torch.Generator().manual_seed(seed)
    W = scale * torch.randn(N_IN, N_OUT, generator=generator)
    W[torch.rand(W.shape, generator=generator) < 0.5] = 0
    return Connector(W, 0.2 * torch.randn(N_OUT, generator=generator), activation=activation)


def score(connector: Connector, latents: PairLatents, *, tau: float = 0.1) -> SimpleNamespace:
    """What errors and weights say of a map on these rows."""
    outputs = OutputStats(latents.z2.shape[1], device=torch.device("cpu"))
    outputs.add(latents.z2)
    errors = squared_errors(latents.z2, predict(connector, latents)).sum(0)
    return SimpleNamespace(**scores_of(connector, errors, outputs, tau=tau))


def plain_scores(connector: Connector, latents: PairLatents, *, tau: float) -> dict[str, object]:
    """The definitions, output by output, in float64."""
    W, b = connector.W.detach().double().numpy(), connector.b.detach().double().numpy()
    z1, z2 = latents.z1.double().numpy(), latents.z2.double().numpy()
    z2_hat = z1 @ W + b
    if connector.activation == "relu":
        z2_hat = np.maximum(z2_hat, 0)
    unexplained = total = square = 0.0
    explained, nonzero, above = [], [], []
    for o in range(N_OUT):
        sse = sum((z2[:, o] - z2_hat[:, o]) ** 2)
        square += sse
        if not (z2[:, o] > 0).any():
            continue
        sst = sum((z2[:, o] - z2[:, o].mean()) ** 2)
        unexplained += sse
        total += sst
        if o != CONSTANT:
            explained.append(1 - sse / sst)
        nonzero.append(np.count_nonzero(W[:, o]))
        above.append(sum(abs(w) > tau for w in W[:, o]))
    return {
        "fvu": unexplained / total,
        "mse": square / (N_ROWS * N_OUT),
        "l1": np.abs(W).sum() / (N_IN * N_OUT),
        "explained_quantiles": np.quantile(explained, QUANTILES),
        "n_nonzero": np.count_nonzero(W),
        "nonzero_mean": np.mean(nonzero),
        "nonzero_quantiles": np.quantile(nonzero, QUANTILES),
        "n_above": (np.abs(W) > tau).sum(),
        "above_mean": np.mean(above),
        "above_quantiles": np.quantile(above, QUANTILES),
        "above_max": (np.abs(W) > tau).sum(0).max(),
    }


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_every_score_agrees_with_a_plain_float64_computation(activation):
    latents, connector = make_latents(), make_map(activation=activation)
    found = score(connector, latents, tau=0.12)
    expected = plain_scores(connector, latents, tau=0.12)
    assert vars(found).keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=2e-6, err_msg=name)


def test_the_error_of_a_dead_or_constant_output_counts_where_it_has_a_meaning():
    """Of a dead one in the mean squared error alone; of a constant one in the FVU, too."""
    latents, connector = make_latents(), make_map()
    before = score(connector, latents)
    with torch.no_grad():
        connector.b[DEAD] = 100.0
    dead = score(connector, latents)
    assert dead.fvu == before.fvu
    assert dead.mse > 100 * before.mse
    with torch.no_grad():
        connector.b[CONSTANT] += 50.0
    constant = score(connector, latents)
    assert constant.fvu > before.fvu
    for after in (dead, constant):
        assert after.explained_quantiles == before.explained_quantiles


def test_outputs_that_are_all_dead_leave_no_ratio():
    z1 = make_latents().z1
    scored = score(make_map(), PairLatents(z1=z1, z2=torch.zeros(N_ROWS, N_OUT)))
    assert scored.fvu is scored.above_mean is scored.nonzero_mean is None
    assert scored.explained_quantiles == scored.above_quantiles == ()
    assert scored.n_above > 0 < scored.mse


def test_a_weight_at_tau_is_not_above_it_and_a_negative_one_can_be():
    W = torch.zeros(N_IN, N_OUT)
    W[0, 0], W[1, 0], W[2, 1], W[0, DEAD] = 0.25, -0.5, 0.1, -9.0
    scored = score(Connector(W, torch.zeros(N_OUT)), make_latents(), tau=0.25)
    assert (scored.n_nonzero, scored.n_above, scored.above_max) == (4, 2, 1)
    assert scored.above_mean == pytest.approx(1 / (N_OUT - 1))
    assert scored.nonzero_mean == pytest.approx(3 / (N_OUT - 1))


@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("density", [0.01, 0.5])
def test_few_active_inputs_and_many_give_what_the_map_gives(density, activation):
    latents, connector = make_latents(density=density), make_map(activation=activation)
    assert (latents.density > SPARSE) == (density > SPARSE)
    with torch.no_grad():
        expected = connector(latents.z1)
    torch.testing.assert_close(predict(connector, latents), expected, rtol=1e-5, atol=1e-6)
    assert (expected < 0).any() == (activation == "linear")
