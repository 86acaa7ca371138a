"""What one pass over a store keeps, against plain loops over all its rows, and how it does so."""

from itertools import combinations, groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import pipeline.features.collect
import pipeline.features.samples
from actstore.reader import ActStore
from pipeline.config.architectures import BatchTopKConfig, GatedConfig, TopKConfig
from pipeline.config.stages import FeaturesConfig
from pipeline.errors import DataError
from pipeline.features.collect import sample_store
from pipeline.features.feature import AFTER, BEFORE
from pipeline.features.samples import (
    CONTEXTS,
    FEATURES,
    ROWS,
    Leaders,
    Samples,
    entry_dtype,
    keys_of,
    paired,
)
from pipeline.sae.sae import TunedSAE
from tests.helpers.refusals import refused
from tests.helpers.stores import CTX_LEN, as_numbers
from tests.helpers.tiny import make_sae

SITE = "mlp_out.1"
TRIALS = 100


def config_of(**changes) -> FeaturesConfig:
    return FeaturesConfig(run=Path("run"), **{"n_top": 3, "n_spread": 4, "n_values": 5, **changes})


def sampled(store: ActStore, coder) -> tuple[Samples, np.ndarray, np.ndarray]:
    """What is kept of a store, and all of it: latents and tokens, context after context."""
    contexts = store.contexts(np.arange(store.n_contexts))
    acts = np.stack([as_numbers(c.acts[SITE]) for c in contexts])
    with torch.no_grad():
        z = coder.encode(torch.from_numpy(acts).float()).numpy()
    found = sample_store(config_of(), store, SITE, coder)
    return found, z, np.stack([c.tokens for c in contexts])


def places(entries: np.ndarray, feature: int) -> list[tuple[int, int]]:
    own = entries[entries["feature"] == feature]
    return list(zip(own["context"].tolist(), own["position"].tolist(), strict=True))


def assert_same(one: Samples, other: Samples) -> None:
    """Equal, but for how a product of matrices of another height is rounded."""
    assert one.n_tokens == other.n_tokens
    np.testing.assert_array_equal(one.n_active, other.n_active)
    np.testing.assert_allclose(one.total, other.total, rtol=1e-6)
    for name in ("top", "spread", "values"):
        ours, theirs = getattr(one, name), getattr(other, name)
        for field in ("feature", "context", "position"):
            np.testing.assert_array_equal(ours[field], theirs[field])
        for field in set(ours.dtype.names) - {"score"}:
            np.testing.assert_allclose(ours[field], theirs[field], rtol=1e-5, atol=1e-6)


@pytest.fixture
def store(make_store) -> ActStore:
    return ActStore.open(make_store(n_rows=50 * CTX_LEN))


ARCHS = {"topk": TopKConfig(k=4), "batchtopk": BatchTopKConfig(k=4), "gated": GatedConfig()}


@pytest.mark.parametrize("kind", ["relu", *ARCHS, "tuned"])
def test_numbers_of_every_feature_are_those_of_all_rows(store, kind):
    coder = make_sae(arch=ARCHS.get(kind))
    if kind == "tuned":
        coder = TunedSAE(coder)
        torch.nn.init.normal_(coder.c, 1, 0.3, generator=torch.Generator().manual_seed(1))
    found, z, _ = sampled(store, coder)
    flat = z.reshape(-1, coder.d_sae).astype(np.float64)
    assert found.n_tokens == len(flat) == store.n_rows
    np.testing.assert_array_equal(found.n_active, (flat > 0).sum(0))
    np.testing.assert_allclose(found.total, flat.sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.max, flat.max(0), rtol=1e-5)
    assert found.n_active.dtype == np.int64
    assert found.total.dtype == np.float64


def test_top_contexts_are_those_of_largest_activation_each_counted_once(store):
    coder = make_sae()
    found, z, _ = sampled(store, coder)
    for feature in range(coder.d_sae):
        peak = z[..., feature].max(1)
        order = [c for c in np.argsort(-peak, kind="stable").tolist() if peak[c] > 0][:3]
        at = z[order, :, feature].argmax(1).tolist()
        assert places(found.top, feature) == list(zip(order, at, strict=True))
        own = found.top[found.top["feature"] == feature]
        np.testing.assert_allclose(own["value"], peak[order], rtol=1e-5)


@pytest.mark.parametrize("ctx_len", [8, 64])
def test_windows_hold_the_tokens_around_and_nothing_beyond_the_context(make_store, ctx_len):
    store = ActStore.open(make_store(n_rows=12 * ctx_len, ctx_len=ctx_len, shard_rows=4 * ctx_len))
    coder = make_sae()
    found, z, tokens = sampled(store, coder)
    assert len(found.top) > 100
    for entry in (*found.top, *found.spread):
        context, at, feature = entry["context"], entry["position"], entry["feature"]
        for place in range(-BEFORE, AFTER + 1):
            there = 0 <= at + place < ctx_len
            token = tokens[context, at + place] if there else -1
            value = z[context, at + place, feature] if there else 0
            assert entry["tokens"][place + BEFORE] == token
            assert entry["values"][place + BEFORE] == pytest.approx(value, rel=1e-4, abs=1e-6)
        assert entry["value"] == entry["values"][BEFORE]


def test_what_is_drawn_is_active_of_another_place_each_and_of_all_there_are(store):
    coder = make_sae()
    found, z, tokens = sampled(store, coder)
    for feature in range(coder.d_sae):
        active = np.argwhere(z[..., feature] > 0).tolist()
        contexts = {c for c, _ in active}
        drawn, spread = places(found.values, feature), places(found.spread, feature)
        assert len(set(drawn)) == len(drawn) == min(5, len(active))
        assert {c for c, _ in spread} <= contexts
        assert len({c for c, _ in spread}) == len(spread) == min(4, len(contexts))
        values = found.spread[found.spread["feature"] == feature]["value"]
        assert (np.diff(values) <= 0).all()
    for entry in found.values:
        place = entry["context"], entry["position"]
        assert entry["token"] == tokens[place]
        assert entry["value"] == pytest.approx(z[(*place, entry["feature"])], rel=1e-4)
        assert entry["value"] > 0


def test_every_active_token_is_drawn_as_often_as_another(make_store):
    store, coder = ActStore.open(make_store(n_rows=8 * CTX_LEN)), make_sae(expansion=1)
    z = sampled(store, coder)[1]
    feature = int(np.argsort((z > 0).sum((0, 1)))[-3])
    active = np.argwhere(z[..., feature] > 0)
    counts, contexts = np.zeros(z.shape[:2]), np.zeros(len(z))
    for seed in range(TRIALS):
        samples = sample_store(config_of(seed=seed, n_spread=2), store, SITE, coder)
        for place in places(samples.values, feature):
            counts[place] += 1
        for context, _ in places(samples.spread, feature):
            contexts[context] += 1
    assert counts.sum() == 5 * TRIALS
    there = np.unique(active[:, 0])
    for n_drawn, found in ((5, counts[tuple(active.T)]), (2, contexts[there])):
        share = n_drawn / len(found)
        deviation = np.sqrt(TRIALS * share * (1 - share))
        assert np.abs(found - TRIALS * share).max() < 4.5 * deviation


def test_neither_blocks_nor_shards_change_what_is_found(make_store, monkeypatch):
    coder, found = make_sae(), list[Samples]()
    for name, shard_rows, block, part in [
        ("a", 64, 2**22, 2**22),
        ("b", 64, 1, 1),
        ("c", 400, 3 * CTX_LEN * coder.d_sae, 5 * coder.d_sae),
        ("d", 40, 2 * CTX_LEN * coder.d_sae, 2**22),
    ]:
        monkeypatch.setitem(pipeline.features.collect.BLOCK, "cpu", block)
        monkeypatch.setattr(pipeline.features.samples, "_PART", part)
        store = ActStore.open(make_store(name=name, n_rows=400, shard_rows=shard_rows))
        found.append(sample_store(config_of(), store, SITE, coder))
    for other in found[1:]:
        assert_same(found[0], other)


def test_only_the_first_contexts_are_read_where_that_was_asked_for(make_store):
    coder = make_sae()
    long = ActStore.open(make_store(name="long", n_rows=50 * CTX_LEN))
    short = ActStore.open(make_store(name="short", n_rows=21 * CTX_LEN))
    seen = []
    config = config_of(tokens=20 * CTX_LEN + 1)
    found = sample_store(config, long, SITE, coder, on_progress=seen.append)
    assert_same(found, sample_store(config_of(), short, SITE, coder))
    assert found.n_tokens == 21 * CTX_LEN == seen[-1].done == seen[-1].total
    assert {(p.stage, p.unit) for p in seen} == {("features", "tokens")}
    assert sample_store(config_of(tokens=10**9), short, SITE, coder).n_tokens == 21 * CTX_LEN


@pytest.mark.parametrize("where", ["W_enc", "b_enc"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(store, where, value):
    coder = make_sae()
    getattr(coder, where).data[..., 3] = value
    with refused(DataError, "features of run are not finite"):
        sample_store(config_of(), store, SITE, coder)


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


def plainly(entries: np.ndarray, n: int) -> np.ndarray:
    """The best `n` of each feature, by Python's sort."""

    def rank(i: int) -> tuple[float, ...]:
        feature, score, context, position, *_ = entries[i].item()
        return feature, -score, context, position

    order = sorted(range(len(entries)), key=rank)
    of_features = groupby(order, key=lambda i: entries["feature"][i])
    return entries[np.array([i for _, own in of_features for i in list(own)[:n]], int)]


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
        for part in np.array_split(entries, sorted(cuts)):
            leaders.add(part)
            held = len(leaders._best) + sum(map(len, leaders._buffer))
            assert held <= n_features * n + max(buffer, n_features * n) + len(part)
    np.testing.assert_array_equal(leaders.best(), plainly(entries, n))


def test_of_what_cannot_be_among_the_best_no_entry_need_be_made():
    leaders = Leaders(2, 2, DTYPES["float"])
    entries = np.zeros(3, DTYPES["float"])
    entries["score"], entries["context"] = [5, 3, 1], [0, 1, 2]
    leaders.add(entries)
    leaders.best()
    feature, score = np.array([0, 0, 0, 1]), np.array([2, 3, 4, 0.5], np.float32)
    np.testing.assert_array_equal(leaders.admits(feature, score), [False, True, True, True])


def test_what_is_drawn_for_one_feature_tells_nothing_of_another():
    n, n_rows = 100, 1000
    rows = keys_of(np.arange(n_rows), seed=3, use=ROWS)
    scores = paired(rows, keys_of(np.arange(40), seed=3, use=FEATURES)[:, None])
    samples = [set(of[-n:]) for of in np.argsort(scores).tolist()]
    shared = np.mean([len(a & b) for a, b in combinations(samples, 2)])
    assert abs(shared - n * n / n_rows) < 0.5  # 780 pairs, deviation 2.8 each


def test_keys_differ_by_seed_and_by_what_they_are_for():
    numbers = np.arange(1000)
    keys = [keys_of(numbers, seed=seed, use=use) for seed in (0, 1, -1) for use in (ROWS, CONTEXTS)]
    assert len(set(np.concatenate(keys).tolist())) == 6 * 1000
