import math

import numpy as np
import pytest

from pipeline.evaluate import intervals as module
from pipeline.evaluate.intervals import intervals
from pipeline.evaluate.metrics import METRICS, OfSums

BOUNDED = [m.name for m in METRICS.values() if isinstance(m, OfSums) and m.interval]


def make_sums(n_contexts: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Contexts of several lengths, each harder or easier as a whole."""
    n = rng.integers(20, 40, n_contexts).astype(float)
    means = {
        "nll_clean": 3.0, "nll_spliced": 3.4, "nll_zero": 5.0, "nll_mean": 4.5, "kl_spliced": 0.4,
        "kl_zero": 2, "error": 2, "spread": 8, "cosine": 0.9, "square_hat": 6, "product": 7,
        "norm_ratio": 0.9, "l0": 12, "l1": 9,
    }  # fmt: skip
    sums = {name: n * rng.normal(mean, mean / 10, n_contexts) for name, mean in means.items()}
    return {"n_tokens": n + 1, "n_predictions": n} | sums


def by_name(sums, **options) -> dict[str, tuple[float, float]]:
    found = intervals(sums, **({"n": 200, "seed": 0} | options))
    return {interval.metric: (interval.low, interval.high) for interval in found}


def test_intervals_are_those_of_a_plain_loop_over_resamplings():
    sums, rng = make_sums(13, np.random.default_rng(3)), np.random.default_rng(7)
    drawn: dict[str, list[float]] = {name: [] for name in BOUNDED}
    for _ in range(50):
        chosen = rng.integers(13, size=13)
        totals = {name: np.array([math.fsum(values[chosen])]) for name, values in sums.items()}
        for name, values in drawn.items():
            values.append(METRICS[name].formula(totals).item())
    found = by_name(sums, n=50, seed=7)
    assert list(found) == BOUNDED
    for name, values in drawn.items():
        ordered = sorted(values)  # a bound lies 0.225 from one of them on the way to the next
        low = ordered[1] + 0.225 * (ordered[2] - ordered[1])
        high = ordered[48] - 0.225 * (ordered[48] - ordered[47])
        assert found[name] == pytest.approx((low, high), rel=1e-10), name


def test_nineteen_of_twenty_intervals_hold_the_truth():
    truth = {"ce_patched": 3.4, "loss_recovered": 1.6 / 2, "explained_variance": 1 - 2 / 8}
    held, rng = dict.fromkeys(truth, 0), np.random.default_rng(0)
    for _ in range(300):
        found = by_name(make_sums(60, rng), n=300)
        for name, value in truth.items():
            held[name] += found[name][0] <= value <= found[name][1]
    assert all(0.90 <= n / 300 <= 0.98 for n in held.values()), held


def test_all_metrics_and_runs_share_their_resamplings():
    sums = make_sums(20, np.random.default_rng(1))
    sums["l0"], sums["error"] = 3 * sums["kl_spliced"], 6 * sums["kl_spliced"]
    one = by_name(sums)
    assert one["mse"] == pytest.approx(tuple(2 * bound for bound in one["l0"]), rel=1e-12)
    other_run = by_name(sums | {"cosine": sums["l0"]})
    assert other_run["cosine"] == pytest.approx(one["l0"], rel=1e-12)
    assert other_run["mse"] == pytest.approx(one["mse"], rel=1e-12)


def test_the_seed_chooses_the_resamplings_and_the_memory_does_not(monkeypatch):
    sums = make_sums(20, np.random.default_rng(1))
    whole = by_name(sums)
    assert by_name(sums, seed=1) != whole
    monkeypatch.setattr(module, "_BLOCK", 50)
    for name, bounds in by_name(sums).items():
        assert bounds == pytest.approx(whole[name], rel=1e-12), name


def test_without_resamplings_or_with_one_context_there_are_no_intervals():
    for n_contexts, n in ((9, 0), (1, 100)):
        assert intervals(make_sums(n_contexts, np.random.default_rng(0)), n=n, seed=0) == ()


def test_a_metric_that_some_resampling_leaves_undefined_has_no_interval():
    sums = make_sums(2, np.random.default_rng(0))
    sums["spread"] = np.array([0.0, 5.0])
    assert set(BOUNDED) - set(by_name(sums)) == {"explained_variance"}
