from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, strategies as st

import pipeline.features.samples
from pipeline.features.samples import CONTEXTS, ROWS, Leaders, entry_dtype, keys_of, paired

DTYPES = {
    "float": entry_dtype("f4", tag=np.int32, window=(np.int32, (3,))),
    "integer": entry_dtype("u8", tag=np.int32, window=(np.int32, (3,))),
}


def make_entries(dtype: np.dtype, *, n: int, n_features: int, seed: int, ties: bool) -> np.ndarray:
    """Entries of different places; a few scores for all of them where `ties`."""
    rng = np.random.default_rng(seed)
    places = rng.permutation(n_features * n)[:n]
    entries = np.zeros(n, dtype)
    entries["feature"], rest = places % n_features, places // n_features
    entries["context"], entries["position"] = rest // 3, rest % 3
    scores = rng.integers(1, 4, n) if ties else rng.random(n) * 1e6 + 1
    entries["score"] = scores.astype(dtype["score"])
    entries["tag"] = np.arange(n)
    entries["window"] = np.arange(n)[:, None] + np.arange(3)
    return entries


def plainly(entries: np.ndarray, n: int) -> list[tuple[object, ...]]:
    """The best `n` of each feature, by Python's sort."""
    found: list[tuple[object, ...]] = []
    for feature in sorted(set(entries["feature"].tolist())):
        own = [e for e in entries.tolist() if e[0] == feature]
        found += sorted(own, key=lambda e: (-e[1], e[2], e[3]))[:n]
    return [(*e[:5], *e[5].tolist()) if hasattr(e[5], "tolist") else e for e in found]


def told(entries: np.ndarray) -> list[tuple[object, ...]]:
    return [(*e[:5], *e[5].tolist()) if hasattr(e[5], "tolist") else e for e in entries.tolist()]


@given(
    kind=st.sampled_from(sorted(DTYPES)),
    n_entries=st.integers(0, 120),
    n_features=st.integers(1, 5),
    n=st.integers(1, 6),
    buffer=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 120), max_size=6),
    seed=st.integers(0, 2**16),
    ties=st.booleans(),
)
def test_what_is_kept_is_what_a_sort_of_all_would_keep(
    kind, n_entries, n_features, n, buffer, cuts, seed, ties
):
    entries = make_entries(DTYPES[kind], n=n_entries, n_features=n_features, seed=seed, ties=ties)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.features.samples, "_MIN_BUFFER", buffer)
        leaders = Leaders(n_features, n, DTYPES[kind])
        for start, stop in pairwise([0, *sorted(min(c, n_entries) for c in cuts), n_entries]):
            leaders.add(entries[start:stop])
    assert told(leaders.best()) == plainly(entries, n)


def test_the_order_of_the_stream_does_not_matter_where_scores_are_equal():
    entries = make_entries(DTYPES["float"], n=200, n_features=3, seed=1, ties=True)
    results = set[str]()
    for seed in range(5):
        leaders = Leaders(3, 4, DTYPES["float"])
        shuffled = np.random.default_rng(seed).permutation(len(entries))
        for part in np.array_split(entries[shuffled], seed + 1):
            leaders.add(part)
        results.add(str(leaders.best().tolist()))
    assert len(results) == 1


def test_no_more_than_twice_what_is_kept_and_one_addition_is_held(monkeypatch):
    monkeypatch.setattr(pipeline.features.samples, "_MIN_BUFFER", 1)
    leaders, part = Leaders(10, 4, DTYPES["float"]), 25
    for entries in np.array_split(
        make_entries(DTYPES["float"], n=5000, n_features=10, seed=0, ties=False), 5000 // part
    ):
        leaders.add(entries)
        assert len(leaders._best) + sum(map(len, leaders._buffer)) <= 2 * 10 * 4 + part
    assert len(leaders.best()) == 10 * 4


def test_of_what_cannot_be_among_the_best_no_entry_need_be_made():
    leaders = Leaders(2, 2, DTYPES["float"])
    entries = np.zeros(3, DTYPES["float"])
    entries["score"], entries["context"] = [5, 3, 1], [0, 1, 2]
    leaders.add(entries)
    leaders.best()
    feature, score = np.array([0, 0, 0, 1]), np.array([2, 3, 4, 0.5], np.float32)
    np.testing.assert_array_equal(leaders.admits(feature, score), [False, True, True, True])


def drawn(n: int, *, n_rows: int, feature: int, seed: int) -> set[int]:
    """The rows with the largest keys."""
    rows = keys_of(np.arange(n_rows), seed=seed, use=ROWS)
    names = keys_of(np.arange(64), seed=seed, use=2)
    return set(np.argsort(paired(rows, names[[feature]]))[-n:].tolist())


def test_every_row_is_drawn_as_often_as_another():
    n, n_rows, trials = 20, 100, 600
    counts = Counter[int]()
    for trial in range(trials):
        counts.update(drawn(n, n_rows=n_rows, feature=trial % 64, seed=trial // 64))
    expected = trials * n / n_rows
    chi2 = sum((counts[row] - expected) ** 2 / expected for row in range(n_rows))
    assert 50 < chi2 / (1 - n / n_rows) < 160  # 99 degrees of freedom: mean 99, deviation 14


def test_what_is_drawn_for_one_feature_tells_nothing_of_another():
    n, n_rows = 100, 1000
    samples = [drawn(n, n_rows=n_rows, feature=i, seed=3) for i in range(40)]
    shared = np.mean([len(a & b) for i, a in enumerate(samples) for b in samples[:i]])
    assert abs(shared - n * n / n_rows) < 0.5  # 780 pairs, deviation 2.8 each


def test_keys_differ_by_seed_and_by_what_they_are_for():
    numbers = np.arange(1000)
    keys = [keys_of(numbers, seed=seed, use=use) for seed in (0, 1, -1) for use in (ROWS, CONTEXTS)]
    assert len(set(np.concatenate(keys).tolist())) == 6 * 1000
