"""Pairs are picked exactly: against sorting everything, over shapes, ties, dtypes and hints."""

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from pipeline.sae.select import GROUP, Picked, _in_order, above, batch_top_k, top_k

SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40))
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.bfloat16])
LEVELS = st.sampled_from([None, 2])
SEEDS = st.integers(0, 1000)


def random_pre(*shape, seed=0, dtype=torch.float32, levels=None):
    """Normal values; with `levels`, so few different ones that ties are everywhere."""
    pre = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return (pre if levels is None else (pre * levels).round() / levels).to(dtype)


def members_of(picked):
    """For each member, its pairs (row, latent) in order, by the plain reading of the CSR."""
    M, B, F = picked.shape
    crow, col = picked.crow.tolist(), picked.col.tolist()
    assert len(crow) == M * B + 1 and crow[0] == 0 and crow[-1] == len(col)
    return [
        [(b, col[j] - m * F) for b in range(B) for j in range(crow[m * B + b], crow[m * B + b + 1])]
        for m in range(M)
    ]


def as_mask(picked):
    mask = np.zeros(picked.shape, dtype=bool)
    for m, pairs in enumerate(members_of(picked)):
        for b, latent in pairs:
            assert not mask[m, b, latent], "a pair is there twice"
            mask[m, b, latent] = True
    return mask


def sorted_rows(pre):
    return pre.double().sort(-1, descending=True).values


@given(shape=SHAPES, dtype=DTYPES, seed=SEEDS, k=st.integers(1, 40), levels=LEVELS)
def test_top_k_keeps_the_largest_of_each_row(shape, dtype, seed, k, levels):
    pre = random_pre(*shape, seed=seed, dtype=dtype, levels=levels)
    k = min(k, shape[-1])
    picked = top_k(pre, k)
    assert (as_mask(picked).sum(-1) == k).all()
    kept = pre.double()[torch.from_numpy(as_mask(picked))].view(*shape[:2], k)
    assert torch.equal(sorted_rows(kept), sorted_rows(pre)[..., :k])


@pytest.mark.parametrize("F", [GROUP * 8, GROUP * 64, GROUP * GROUP * 8, GROUP * 64 + 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("levels", [None, 1])
def test_top_k_of_wide_rows_searches_groups_and_stays_exact(F, dtype, levels):
    for k in (1, 2, 15, 16, 17, F):
        pre = random_pre(2, 9, F, seed=k, dtype=dtype, levels=levels)
        pre[0, 0] = 1.0  # all equal
        pre[0, 1, ::GROUP] += 9.0  # the largest are all neighbours of one kind
        pre[0, 2, : F // GROUP] += 9.0
        pre[0, 3, F // 2 :: F // GROUP] += 9.0  # the largest share a group
        picked = top_k(pre, k)
        kept = picked.values(pre).view(2, 9, k)
        assert torch.equal(sorted_rows(kept), sorted_rows(pre)[..., :k])
        assert (as_mask(picked).sum(-1) == k).all()


def test_top_k_is_the_same_every_time():
    pre = random_pre(2, 20, 512, levels=1)
    first = top_k(pre, 12)
    for _ in range(5):
        assert torch.equal(top_k(pre, 12).col, first.col)


def largest_of_batch(values, n):
    """By sorting: positive ones from the largest, of equal ones the first."""
    order = sorted((i for i, v in enumerate(values) if v > 0), key=lambda i: (-values[i], i))
    return sorted(order[:n])


@given(
    shape=SHAPES,
    dtype=DTYPES,
    seed=SEEDS,
    n=st.integers(1, 60),
    levels=LEVELS,
    hint=st.sampled_from([-1.0, 0.0, 0.4, 1.0, 50.0, float("inf"), float("nan")]),
)
def test_batch_top_k_is_exact_whatever_the_hint(shape, dtype, seed, n, levels, hint):
    pre = random_pre(*shape, seed=seed, dtype=dtype, levels=levels)
    picked, smallest = batch_top_k(pre, n, hint=torch.full((shape[0],), hint))
    F = shape[-1]
    for m, pairs in enumerate(members_of(picked)):
        values = pre[m].flatten().tolist()
        expected = largest_of_batch(values, n)
        assert [b * F + latent for b, latent in pairs] == expected
        assert smallest[m].item() == min((values[i] for i in expected), default=0.0)


def test_a_hint_that_is_the_cut_itself_loses_nothing():
    pre = random_pre(2, 50, 64, levels=4)
    picked, smallest = batch_top_k(pre, 100, hint=torch.zeros(2))
    again, same = batch_top_k(pre, 100, hint=smallest)
    assert torch.equal(again.col, picked.col) and torch.equal(smallest, same)


@given(shape=SHAPES, dtype=DTYPES, seed=SEEDS, per_latent=st.booleans())
def test_above_keeps_what_is_larger_and_nothing_equal(shape, dtype, seed, per_latent):
    pre = random_pre(*shape, seed=seed, dtype=dtype, levels=2)
    threshold = random_pre(shape[0], shape[2], seed=seed + 1, levels=2) if per_latent else 0.5
    expected = pre.double() > (threshold[:, None].double() if per_latent else 0.5)
    assert np.array_equal(as_mask(above(pre, threshold)), expected.numpy())


@given(shape=SHAPES, seed=SEEDS, bound=st.sampled_from([-9.0, 0.0, 1.0, 9.0]))
def test_the_views_of_a_selection_agree(shape, seed, bound):
    M, B, F = shape
    pre = random_pre(*shape, seed=seed)
    picked = above(pre, bound)
    pairs = [(m, b, i) for m, own in enumerate(members_of(picked)) for b, i in own]
    assert picked.row.tolist() == [m * B + b for m, b, _ in pairs]
    assert picked.flat.tolist() == [(m * B + b) * F + i for m, b, i in pairs]
    assert picked.values(pre).tolist() == [pre[pair].item() for pair in pairs]
    assert np.array_equal(picked.mask().numpy(), as_mask(picked))
    flip = picked.transposed
    assert sorted(flip.order.tolist()) == list(range(len(pairs)))
    assert flip.row.tolist() == picked.row[flip.order].tolist()
    for latent in range(M * F):
        here = slice(int(flip.crow[latent]), int(flip.crow[latent + 1]))
        assert (picked.col[flip.order[here]] == latent).all()
        assert flip.order[here].tolist() == sorted(flip.order[here].tolist())
    assert int(flip.crow[-1]) == len(pairs)


@given(shape=SHAPES, seed=SEEDS, data=st.data())
def test_columns_are_the_pairs_of_some_latents_renumbered(shape, seed, data):
    F = shape[-1]
    start = data.draw(st.integers(0, F - 1))
    stop = data.draw(st.integers(start + 1, F))
    pre = random_pre(*shape, seed=seed)
    for picked in (above(pre, 0.0), top_k(pre, min(3, F))):  # the second has rows in any order
        part, kept = picked.columns(start, stop)
        assert part.shape == (*shape[:2], stop - start)
        assert np.array_equal(as_mask(part), as_mask(picked)[..., start:stop])
        there = part.values(pre[..., start:stop])
        assert torch.equal(there, picked.values(pre)[kept])


def test_places_beyond_31_bits_are_right():
    M, B, F = 2, 3, 2**30
    crow = torch.tensor([0, 1, 1, 2, 2, 2, 3], dtype=torch.int32)
    col = torch.tensor([5, 7, F + 9], dtype=torch.int32)
    picked = Picked(crow=crow, col=col, shape=(M, B, F))
    assert picked.flat.tolist() == [5, 2 * F + 7, 5 * F + 9]


@pytest.mark.parametrize("n_values", [1, 2, 640, 2**16, 2**16 + 1, 2**20, 2**31 - 1])
def test_numbers_are_put_in_order_digit_by_digit_equal_ones_as_they_come(n_values):
    random = torch.Generator().manual_seed(n_values)
    x = torch.randint(0, n_values, (3000,), generator=random, dtype=torch.int32)
    x[::3] = x[1::3]  # ties
    x[:2] = torch.tensor([n_values - 1, 0])
    assert torch.equal(_in_order(x, n_values=n_values), torch.argsort(x, stable=True))
    assert _in_order(x[:0], n_values=n_values).shape == (0,)
