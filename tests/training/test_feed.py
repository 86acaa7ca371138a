import math
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.config.training import TrainConfig
from pipeline.errors import ConfigError
from pipeline.training.assemble import b_dec_start, geometric_median
from pipeline.training.batches import as_tensor
from pipeline.training.feed import Feed, Feeder, sample_rows
from tests.helpers.stores import as_numbers, column, make_spec, write_rows, write_store

CPU = torch.device("cpu")
A, B = "mlp_out.1", "resid.0"
N_ROWS = 400


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    spec = make_spec(widths={A: 16, B: 6})
    return ActStore.open(write_store(tmp_path_factory.mktemp("stores") / "s", spec, n_rows=N_ROWS))


def feeder_of(store, *feeds) -> Feeder:
    return Feeder(store, feeds, device=CPU)


def batch_of(store, feeder, *, n_rows=N_ROWS, step=0):
    """What the stream of these feeds delivers."""
    batches = Batches(
        store=store, sites=feeder.sites, batch_size=n_rows, seed=3, metadata=feeder.metadata
    )
    with closing(batches.start_at(step)) as stream:
        return {
            name: as_tensor(values).float() if name in store.sites else torch.from_numpy(values)
            for name, values in next(stream).items()
        }


def numbers(store, site) -> np.ndarray:
    return as_numbers(column(store, site))


def left(store, feed: Feed) -> np.ndarray:
    """The rows of the store that a feed leaves, one by one, in float64."""
    rows = numbers(store, feed.site)
    norms = [math.sqrt(sum(v * v for v in row)) for row in rows]
    median = sorted(norms)[(len(norms) - 1) // 2]
    told = zip(column(store, "position"), column(store, "token_id"), norms, strict=True)
    keep = [
        position not in feed.exclude_positions
        and token not in feed.exclude_tokens
        and (feed.exclude_norms is None or norm <= feed.exclude_norms * median)
        for position, token, norm in told
    ]
    return rows[keep]


def as_set(rows) -> list[bytes]:
    return sorted(row.astype(np.float32).tobytes() for row in np.asarray(rows))


@settings(max_examples=25)
@given(
    site=st.sampled_from([A, B]),
    positions=st.lists(st.integers(0, 7), max_size=4, unique=True),
    tokens=st.lists(st.integers(0, 499), max_size=200, unique=True),
    norms=st.none() | st.floats(0.9, 1.6),
    normalize=st.sampled_from(["none", "rms"]),
)
def test_a_member_is_fed_the_rows_that_nothing_excludes(
    store, site, positions, tokens, norms, normalize
):
    feed = Feed(
        site=site, normalize=normalize, exclude_positions=tuple(positions),
        exclude_tokens=tuple(tokens), exclude_norms=norms,
    )  # fmt: skip
    feeder = feeder_of(store, feed)
    x = feeder.fed(batch_of(store, feeder))[feed]
    expected = left(store, feed)
    assert len(x) == len(expected)
    rms = math.sqrt(np.square(expected).mean())
    if normalize == "rms":
        assert feeder.scale(feed) == pytest.approx(rms, rel=1e-6)
        assert float(x.double().square().mean()) == pytest.approx(1, rel=1e-6)
        assert feeder.rms(feed) == 1
        order = np.lexsort(expected.T)
        found = x.double().numpy() * rms
        np.testing.assert_allclose(found[np.lexsort(found.T)], expected[order], rtol=1e-6)
    else:
        assert as_set(x) == as_set(expected)
        assert feeder.scale(feed) == 1
        assert feeder.rms(feed) == pytest.approx(rms, rel=1e-6)


def test_rows_keep_the_order_of_their_batch(store):
    feed = Feed(site=A, exclude_positions=(0, 5))
    feeder = feeder_of(store, feed)
    batch = batch_of(store, feeder, n_rows=64, step=2)
    kept = [i for i, p in enumerate(batch["position"].tolist()) if p not in (0, 5)]
    assert 40 < len(kept) < 60
    assert torch.equal(feeder.fed(batch)[feed], batch[A][kept])


def test_the_scale_without_exclusions_is_that_of_the_statistics(store):
    feed = Feed(site=B, normalize="rms")
    rms = math.sqrt(np.square(numbers(store, B)).mean())
    assert feeder_of(store, feed).scale(feed) == pytest.approx(rms, rel=1e-12)


def test_members_that_are_fed_alike_share_one_tensor(store):
    config = TrainConfig(store=Path("s"), out=Path("o"), normalize="rms", exclude_positions=(3, 0))
    same = replace(config, exclude_positions=(0, 3, 3), seed=5, lr=1.0, expansion=9)
    other = replace(config, normalize="none")
    feeds = [Feed.of(each, site=A) for each in (config, same, other)] + [Feed.of(same, site=B)]
    assert feeds[0] == feeds[1]
    assert len(set(feeds)) == 3
    feeder = feeder_of(store, *feeds)
    assert feeder.sites == (A, B)
    assert len(feeder.fed(batch_of(store, feeder))) == 3


def test_the_stream_is_asked_for_what_the_exclusions_need_and_no_more(store):
    plain, norms = Feed(site=A), Feed(site=A, exclude_norms=2.0)
    positions, tokens = Feed(site=A, exclude_positions=(0,)), Feed(site=B, exclude_tokens=(1,))
    assert feeder_of(store, plain, norms).metadata == ()
    assert feeder_of(store, tokens, norms).metadata == ("token_id",)
    both = feeder_of(store, positions, tokens, plain)
    assert both.metadata == ("position", "token_id")
    assert both.sites == (A, B)
    batch = batch_of(store, both)
    assert both.fed(batch)[plain] is batch[A], "without a copy"


def test_a_batch_of_excluded_rows_is_fed_as_no_rows(store):
    feed = Feed(site=A, normalize="rms", exclude_positions=(0, 1, 2, 3, 4, 5, 6))
    feeder = feeder_of(store, feed)
    sizes = []
    whole = batch_of(store, feeder)
    for i in range(0, N_ROWS, 4):
        batch = {name: values[i : i + 4] for name, values in whole.items()}
        x = feeder.fed(batch)[feed]
        assert x.shape == ((batch["position"] == 7).sum(), 16)
        sizes.append(len(x))
    assert 0 in sizes and sum(sizes) == N_ROWS // 8


def test_the_only_feed_of_a_site_scales_the_batch_itself(store):
    alone, other, plain = Feed(site=A, normalize="rms"), Feed(site=B), Feed(site=A)
    for feeds, own in (([alone], True), ([alone, other], True), ([alone, plain], False)):
        feeder = feeder_of(store, *feeds)
        batch = batch_of(store, feeder)
        rows = batch[A].clone()
        fed = feeder.fed(batch)
        assert torch.equal(fed[alone], rows / feeder.scale(alone))
        assert (fed[alone].data_ptr() == batch[A].data_ptr()) is own
        if not own:
            assert torch.equal(fed[plain], rows)


def test_what_a_member_is_fed_does_not_depend_on_the_others(store):
    feed = Feed(site=B, normalize="rms", exclude_norms=1.1, exclude_positions=(2,))
    others = (Feed(site=A, exclude_norms=1.3, exclude_tokens=(1, 2)), Feed(site=B))
    alone, together = feeder_of(store, feed), feeder_of(store, others[0], feed, others[1])
    assert alone.scale(feed) == together.scale(feed)
    batch = batch_of(store, together)
    assert torch.equal(alone.fed(batch)[feed], together.fed(batch)[feed])
    assert torch.equal(alone.sample(feed, n_rows=99), together.sample(feed, n_rows=99))


def test_nor_does_what_is_looked_up_in_a_sample(tmp_path, monkeypatch):
    """Batches of a wide site come in another order, which no other member may notice."""
    spec = make_spec(widths={A: 16, "wide": 1024})
    store = ActStore.open(write_store(tmp_path / "s", spec, n_rows=N_ROWS))
    monkeypatch.setattr("pipeline.training.feed.sample_rows", partial(sample_rows, n_rows=64))
    feed, wide = (Feed(site=site, normalize="rms", exclude_norms=1.1) for site in (A, "wide"))
    alone, together = feeder_of(store, feed), feeder_of(store, wide, feed)
    assert alone.scale(feed) == together.scale(feed)


def test_impossible_exclusions_are_told_in_one_line(store):
    for change, told in [
        ({"exclude_positions": tuple(range(8))},
         "^exclude_positions 0, 1, 2, 3, 4, 5, 6, 7 leaves none of 400 rows of mlp_out.1: excl"),
        ({"exclude_norms": 0.1, "exclude_tokens": (4, 5)},
         "^exclude_tokens 4, 5 and exclude_norms 0.1 leaves none of 400 rows"),
        ({"exclude_tokens": tuple(range(500))}, r"6, 7, \.\.\. leaves none"),
        ({"exclude_positions": (8,)}, "^exclude_positions 8 is no position: they are 0 to 7$"),
        ({"exclude_positions": (-1,)}, "^exclude_positions -1 is no position"),
        ({"exclude_tokens": (2**31,)}, "^exclude_tokens 2147483648 is no token id"),
        ({"exclude_tokens": (-5,)}, "^exclude_tokens -5 is no token id"),
    ]:  # fmt: skip
        with pytest.raises(ConfigError, match=told):
            feeder_of(store, Feed(site=A, **change))


def test_zeros_cannot_be_scaled(tmp_path):
    zeros = [np.zeros((64, 16), np.uint16)]
    store = ActStore.open(write_rows(tmp_path / "s", make_spec(), zeros, n_rows=64))
    for change in ({}, {"exclude_positions": (0,)}):
        assert feeder_of(store, Feed(site=A, **change)).scale(Feed(site=A, **change)) == 1
        with pytest.raises(ConfigError, match="^mlp_out.1 is zero in every row and cannot be"):
            feeder_of(store, Feed(site=A, normalize="rms", **change))


def rows_of(store, **given) -> np.ndarray:
    return np.concatenate([b[A].numpy() for b in sample_rows(store, sites=(A,), **given)])


@pytest.mark.parametrize("block_rows", [64, 2**12])
def test_a_sample_is_seeded_and_never_has_a_row_twice(store, monkeypatch, block_rows):
    monkeypatch.setattr("pipeline.training.feed.BLOCK_ROWS", block_rows)
    everything = as_set(numbers(store, A))
    assert as_set(rows_of(store)) == everything
    some = rows_of(store, n_rows=150)
    assert some.shape == (150, 16)
    assert len({*as_set(some)}) == 150
    assert {*as_set(some)} <= {*everything}
    np.testing.assert_array_equal(rows_of(store, n_rows=150), some)
    assert as_set(rows_of(store, n_rows=150, seed=1)) != as_set(some)


def test_a_sample_brings_its_metadata_along(store):
    place = {row.tobytes(): i for i, row in enumerate(numbers(store, A).astype(np.float32))}
    (block,) = sample_rows(store, sites=(A,), metadata=("token_id",), n_rows=70)
    rows = [place[row.tobytes()] for row in block[A].numpy()]
    np.testing.assert_array_equal(block["token_id"], column(store, "token_id")[rows])


def test_a_feeds_sample_is_of_what_is_fed(store):
    feed = Feed(site=A, normalize="rms", exclude_positions=(0, 1))
    feeder = feeder_of(store, feed)
    found = feeder.sample(feed, n_rows=10_000)
    assert found.shape == (300, 16)
    assert as_set(found) == as_set(feeder.fed(batch_of(store, feeder))[feed])
    common = int(column(store, "token_id")[0])
    rare = Feed(site=A, exclude_tokens=tuple({*range(500)} - {common}))
    feeder = feeder_of(store, rare)
    assert len(feeder.sample(rare, n_rows=N_ROWS)) > 0
    with pytest.raises(ConfigError, match="leaves none of 4 rows of mlp_out.1: exclude less"):
        feeder.sample(rare, n_rows=4)


@pytest.mark.parametrize("normalize", ["none", "rms"])
@pytest.mark.parametrize("positions", [(), (0, 4)])
def test_b_dec_starts_in_the_middle_of_what_is_fed(store, normalize, positions):
    feed = Feed(site=A, normalize=normalize, exclude_positions=positions)
    feeder = feeder_of(store, feed)
    rows = left(store, feed) / feeder.scale(feed)
    mean, median, zero = (b_dec_start(feeder, feed, how) for how in ("mean", "median", "zero"))
    assert mean.dtype == median.dtype == zero.dtype == torch.float64
    np.testing.assert_allclose(mean, rows.mean(0), atol=1e-7)
    np.testing.assert_allclose(median, by_newton(rows), atol=1e-6)
    assert zero.tolist() == [0] * 16
    assert float((mean - median).norm()) > 1e-3


def by_newton(x: np.ndarray) -> np.ndarray:
    """Minimise the sum of distances by damped Newton steps."""

    def value(y):
        return np.linalg.norm(x - y, axis=1).sum()

    y = x.mean(0) + 1e-3
    for _ in range(100):
        away = y - x
        r = np.linalg.norm(away, axis=1)
        unit = away / r[:, None]
        gradient = unit.sum(0)
        hessian = (1 / r).sum() * np.eye(x.shape[1]) - (unit / r[:, None]).T @ unit
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while value(y - size * step) > value(y) and size > 1e-12:
            size /= 2
        y = y - size * step
    return y


@pytest.mark.parametrize(("n", "d", "seed"), [(3, 2, 0), (50, 1, 1), (200, 5, 2), (3000, 8, 3)])
def test_the_geometric_median_has_the_smallest_sum_of_distances(n, d, seed):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * rng.exponential(2, (n, 1)) + rng.exponential(3, d)
    found = geometric_median(torch.from_numpy(x)).numpy()
    if d == 1:
        assert sum(abs(x[:, 0] - found)) == pytest.approx(
            sum(abs(x[:, 0] - np.median(x))), rel=1e-6
        )
    else:
        np.testing.assert_allclose(found, by_newton(x), atol=1e-6)


def test_the_geometric_median_may_be_a_row():
    cross = torch.tensor([[0.0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])  # the mean is on a row
    assert geometric_median(cross).tolist() == [0, 0]
    pulled = torch.tensor([[0.0, 0], [3, 3], [3, 3], [3, 3], [0, 6], [9, 0]])
    np.testing.assert_allclose(geometric_median(pulled), [3, 3], atol=1e-4)


def test_a_mean_on_a_row_is_not_taken_for_the_geometric_median():
    skew = torch.tensor([[0.0, 0], [2, 1], [2, -1], [2, 0], [-6, 0]])
    best = min(
        np.linspace(-6, 2, 8001), key=lambda x: (skew - torch.tensor([x, 0])).norm(dim=1).sum()
    )
    assert best > 1
    np.testing.assert_allclose(geometric_median(skew), [best, 0], atol=1e-3)


def test_the_geometric_median_of_equal_rows_is_that_row():
    for n in (1, 2, 7):
        assert geometric_median(torch.full((n, 3), 0.25)).tolist() == [0.25] * 3
