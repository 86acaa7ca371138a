import math

import numpy as np
import pytest

from pipeline.evaluate import intervals as module
from pipeline.evaluate.intervals import intervals
from pipeline.evaluate.metrics import METRICS, OfSums

BOUNDED = [m.name for m in METRICS.values() if isinstance(m, OfSums) and m.interval]
CLEAN, ZERO, MEAN, SPLICED = 3.0, 5.0, 4.5, 3.4


def make_sums(n_contexts: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Contexts of several lengths, each harder or easier as a whole."""
    n = rng.integers(20, 40, n_contexts).astype(float)

    def column(mean: float, spread: float = 0.3) -> np.ndarray:
        return n * (mean + spread * rng.standard_normal(n_contexts))

    return {
        "n_tokens": n + 1, "n_predictions": n,
        "nll_clean": column(CLEAN), "nll_spliced": column(SPLICED),
        "nll_zero": column(ZERO), "nll_mean": column(MEAN),
        "kl_spliced": column(0.4, 0.1), "kl_zero": column(2),
        "error": column(2), "spread": column(8), "cosine": column(0.9, 0.05),
        "square_hat": column(6), "product": column(7), "norm_ratio": column(0.9, 0.05),
        "l0": column(12, 2), "l1": column(9),
    }  # fmt: skip


def by_name(sums, **options) -> dict[str, tuple[float, float]]:
    found = intervals(sums, **({"n": 200, "seed": 0} | options))
    return {interval.metric: (interval.low, interval.high) for interval in found}


def test_intervals_are_those_of_a_plain_loop_over_resamplings():
    sums = make_sums(13, np.random.default_rng(3))
    drawn: dict[str, list[float]] = {name: [] for name in BOUNDED}
    rng = np.random.default_rng(7)
    for _ in range(50):
        chosen = [int(i) for i in rng.integers(13, size=13)]
        s = {name: math.fsum(float(values[i]) for i in chosen) for name, values in sums.items()}
        ce = {p: s[f"nll_{p}"] / s["n_predictions"] for p in ("clean", "spliced", "zero", "mean")}
        plain = {
            "ce_patched": ce["spliced"],
            "loss_recovered": (ce["zero"] - ce["spliced"]) / (ce["zero"] - ce["clean"]),
            "loss_recovered_mean": (ce["mean"] - ce["spliced"]) / (ce["mean"] - ce["clean"]),
            "kl": s["kl_spliced"] / s["n_predictions"],
            "explained_variance": 1 - s["error"] / s["spread"],
            "mse": s["error"] / s["n_tokens"],
            "cosine": s["cosine"] / s["n_tokens"],
            "l0": s["l0"] / s["n_tokens"],
        }
        for name, value in plain.items():
            drawn[name].append(value)
    found = by_name(sums, n=50, seed=7)
    assert list(found) == BOUNDED == list(drawn)
    for name, values in drawn.items():
        ordered = sorted(values)

        def at(q: float, ordered: list[float] = ordered) -> float:
            rank = q * (len(ordered) - 1)
            low = int(rank)
            return ordered[low] + (rank - low) * (ordered[min(low + 1, 49)] - ordered[low])

        assert found[name] == pytest.approx((at(0.025), at(0.975)), rel=1e-10), name


def test_nineteen_of_twenty_intervals_hold_the_truth():
    truth = {
        "ce_patched": SPLICED,
        "loss_recovered": (ZERO - SPLICED) / (ZERO - CLEAN),
        "loss_recovered_mean": (MEAN - SPLICED) / (MEAN - CLEAN),
        "explained_variance": 1 - 2 / 8,
    }
    held = dict.fromkeys(truth, 0)
    rng = np.random.default_rng(0)
    for _ in range(300):
        found = by_name(make_sums(60, rng), n=300)
        for name, value in truth.items():
            low, high = found[name]
            held[name] += low <= value <= high
    for name, n in held.items():
        assert 0.90 <= n / 300 <= 0.98, (name, n)


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
    assert intervals(make_sums(9, np.random.default_rng(0)), n=0, seed=0) == ()
    assert intervals(make_sums(1, np.random.default_rng(0)), n=100, seed=0) == ()


def test_a_metric_that_some_resampling_leaves_undefined_has_no_interval():
    sums = make_sums(2, np.random.default_rng(0))
    sums["spread"] = np.array([0.0, 5.0])
    assert set(BOUNDED) - set(by_name(sums)) == {"explained_variance"}
