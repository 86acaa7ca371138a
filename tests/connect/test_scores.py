import numpy as np
import pytest
import torch

from pipeline.connect.connector import Connector, PairLatents
from pipeline.connect.report import QUANTILES, MapScores
from pipeline.connect.scores import SPARSE, predict, score

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


def rows_of(latents: PairLatents, *sizes: int) -> list[PairLatents]:
    """The same rows in blocks."""
    return [
        PairLatents(z1=z1, z2=z2)
        for z1, z2 in zip(latents.z1.split(sizes), latents.z2.split(sizes), strict=True)
    ]


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


def assert_scores(found: MapScores, expected: dict[str, object]) -> None:
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=2e-6, err_msg=name)


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_every_score_agrees_with_a_plain_float64_computation(activation):
    latents, tau = make_latents(), 0.12
    maps = {"connector": make_map(activation=activation), "other": make_map(seed=5)}
    scored = score(maps, [latents], tau=tau)
    assert [one.name for one in scored] == ["connector", "other"]
    for one, connector in zip(scored, maps.values(), strict=True):
        assert_scores(one, plain_scores(connector, latents, tau=tau))
    assert scored[0].fvu != pytest.approx(scored[1].fvu)
    assert scored[0].ce is scored[0].kl is scored[0].loss_recovered is None
    assert scored[0].intervals == ()


def test_blocks_of_rows_change_no_score():
    latents, maps = make_latents(), {"connector": make_map()}
    (whole,), (parts,) = (score(maps, rows_of(latents, *n)) for n in ([N_ROWS], [1, 120, 98]))
    assert whole.n_above == parts.n_above
    for name in ("fvu", "mse", "explained_quantiles"):
        assert getattr(parts, name) == pytest.approx(getattr(whole, name), rel=1e-6), name


def test_the_mean_explains_nothing_and_a_perfect_map_everything():
    latents = make_latents()
    eye = torch.eye(N_OUT)
    maps = {
        "mean": Connector(torch.zeros(N_OUT, N_OUT), latents.z2.double().mean(0).float()),
        "perfect": Connector(eye, torch.zeros(N_OUT)),
    }
    mean, perfect = score(maps, [PairLatents(z1=latents.z2, z2=latents.z2)])
    assert mean.fvu == pytest.approx(1, rel=1e-6)
    assert mean.explained_quantiles == pytest.approx([0] * 5, abs=1e-6)
    assert (perfect.fvu, perfect.mse) == (0, 0)
    assert perfect.explained_quantiles == (1,) * 5
    assert (perfect.n_above, perfect.above_mean, perfect.above_max) == (N_OUT, 1, 1)


def test_what_is_predicted_of_a_dead_output_counts_in_the_mean_squared_error_alone():
    latents, connector = make_latents(), make_map()
    (before,) = score({"connector": connector}, [latents])
    with torch.no_grad():
        connector.b[DEAD] = 100.0
    (after,) = score({"connector": connector}, [latents])
    assert after.fvu == before.fvu
    assert after.explained_quantiles == before.explained_quantiles
    assert after.mse > 100 * before.mse


def test_a_constant_output_has_no_share_of_variance_but_its_error_counts():
    latents, connector = make_latents(), make_map()
    (before,) = score({"connector": connector}, [latents])
    with torch.no_grad():
        connector.b[CONSTANT] += 50.0
    (after,) = score({"connector": connector}, [latents])
    assert after.explained_quantiles == before.explained_quantiles
    assert after.fvu > before.fvu


def test_outputs_that_are_all_dead_leave_no_ratio():
    z1 = make_latents().z1
    (scored,) = score(
        {"connector": make_map()}, [PairLatents(z1=z1, z2=torch.zeros(N_ROWS, N_OUT))]
    )
    assert scored.fvu is scored.above_mean is scored.nonzero_mean is None
    assert scored.explained_quantiles == scored.above_quantiles == ()
    assert scored.n_above > 0 < scored.mse


def test_a_weight_at_tau_is_not_above_it_and_a_negative_one_can_be():
    W = torch.zeros(N_IN, N_OUT)
    W[0, 0], W[1, 0], W[2, 1], W[0, DEAD] = 0.25, -0.5, 0.1, -9.0
    (scored,) = score({"connector": Connector(W, torch.zeros(N_OUT))}, [make_latents()], tau=0.25)
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
