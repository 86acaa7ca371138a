import math
from pathlib import Path

import numpy as np
import pytest
import torch

from actstore.reader import ActStore
from pipeline.config.architectures import ReluConfig
from pipeline.sae.sae import SAE
from tests.bench.superposition import SITE, Found, Truth, best_cosines, sweep, write_rows
from tests.helpers.stores import column

pytestmark = pytest.mark.usefixtures("one_thread")

N, D, ACTIVE = 32, 20, 2.0


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth.make(n_features=N, d=D, active=ACTIVE, decay=0.98, seed=0)


@pytest.fixture(scope="module")
def store(truth, tmp_path_factory) -> Path:
    return write_rows(tmp_path_factory.mktemp("known") / "a.actstore", truth, n_rows=2**15)


def learn(store: Path, truth: Truth, arch: dict[str, object], out: Path) -> list[Found]:
    settings = {
        "arch": arch, "expansion": 4, "batch_size": 256, "tokens": 256 * 300, "lr": 1e-2,
        "lr_decay": "30%", "stack": "off", "log_every": 300, "normalize": "none",
    }  # fmt: skip
    return sweep(store, truth, settings, out=out)


def codes(truth: Truth, n_rows: int) -> np.ndarray:
    """The sizes that rows are made of: more features than dimensions, so features are made axes."""
    axes = Truth(features=torch.eye(N), probability=truth.probability, factors=truth.factors)
    return axes.rows(n_rows, seed=5).numpy().astype(np.float64)


@pytest.mark.slow
def test_the_known_features_are_found_out_of_superposition(store, truth, tmp_path):
    """32 features in 20 dimensions; a random dictionary as large comes to 0.6."""
    grid = {"kind": ["relu", "topk"], "l1": [0.003, 0.15], "k": 3}
    barely, sparse, competing = learn(store, truth, grid, tmp_path / "sweep")
    assert sparse.mmcs > 0.97
    assert competing.mmcs > 0.98
    assert barely.mmcs < 0.75, "nothing asks for features if activity has no price"
    assert float(sparse.cosines.min()) > 0.85, "even the rarest"


@pytest.mark.parametrize("seed", [0, 1])
def test_a_sae_that_has_learned_nothing_knows_nothing_of_the_truth(truth, seed):
    """Also of the truth's own seed: else it would begin with the features it is to find."""
    sae = SAE(ReluConfig(), d_in=D, d_sae=4 * D, seed=seed)
    assert 0.4 < float(best_cosines(truth.features, sae.W_dec.detach()).mean()) < 0.7


def test_cosines_are_those_of_every_pair_compared_one_by_one(truth):
    rng = np.random.default_rng(0)
    dictionary = rng.standard_normal((7, D)) * rng.uniform(0.1, 9, (7, 1))
    found = best_cosines(truth.features.double(), torch.from_numpy(dictionary))
    for feature, cosine in zip(truth.features.double().numpy(), found.tolist(), strict=True):
        each = [d @ feature / math.sqrt((d @ d) * (feature @ feature)) for d in dictionary]
        assert math.isclose(cosine, max(each), rel_tol=1e-9)


def test_features_are_as_often_active_as_they_are_said_to_be_and_uniform_in_size(truth):
    z = codes(truth, 40_000)
    assert math.isclose(float(truth.probability.sum()), ACTIVE, rel_tol=1e-6)
    often = (z > 0).mean(0)
    error = np.sqrt(truth.probability.numpy() / 40_000)
    assert (np.abs(often - truth.probability.numpy()) < 5 * error).all()
    sizes = z[z > 0]
    assert sizes.max() <= 1
    assert abs(sizes.mean() - 1 / 2) < 0.01
    assert abs(sizes.var() - 1 / 12) < 0.002


def test_rows_of_the_store_are_sums_of_features(truth, store):
    z, rows = codes(truth, 64), truth.rows(64, seed=5)
    expected = z @ truth.features.double().numpy()
    np.testing.assert_allclose(rows.double().numpy(), expected, atol=1e-6)
    stored = ActStore.open(store)
    assert (stored.n_rows, stored.width(SITE)) == (2**15, D)
    mean = truth.probability.numpy() / 2 @ truth.features.numpy()
    assert np.abs(stored.mean(SITE) - mean).max() < 0.01


def test_no_row_of_the_store_comes_twice_but_the_empty_one(store):
    rows = column(ActStore.open(store), SITE)
    rows = rows[rows.any(-1)]
    assert len(np.unique(rows, axis=0)) > 0.99 * len(rows)
