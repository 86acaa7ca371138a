import numpy as np
from hypothesis import given, strategies as st

from actstore.layout import chunk_order, row_permutation, window_permutation


@given(n=st.integers(0, 3000), seed=st.integers(0, 2**40), shard=st.integers(0, 10**6))
def test_a_permutation_holds_every_row_once(n, seed, shard):
    order = row_permutation(n, seed=seed, shard=shard)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(n))


def test_every_part_of_the_key_changes_the_order():
    orders = []
    for make, parts in (
        (row_permutation, ("seed", "shard")),
        (chunk_order, ("seed", "epoch")),
        (window_permutation, ("seed", "epoch", "window", "lane")),
    ):
        zeros = dict.fromkeys(parts, 0)
        orders += [make(64, **key) for key in (zeros, *(zeros | {part: 1} for part in parts))]
    assert len({tuple(order.tolist()) for order in orders}) == len(orders)


def test_orders_are_uniform():
    """Each row lands in each place equally often: chi-squared against its 1 in 10,000 bound."""
    n, trials = 7, 7000
    counts = np.zeros((n, n))
    for shard in range(trials):
        counts[np.arange(n), row_permutation(n, seed=3, shard=shard)] += 1
    chi2 = ((counts - trials / n) ** 2 / (trials / n)).sum()
    assert chi2 < 78  # 36 degrees of freedom


def test_orders_stay_what_they_were():
    """A harvest that is resumed, and a run that is resumed, rely on these numbers."""
    window = window_permutation(10, seed=5, epoch=2, window=1, lane=3)
    assert row_permutation(10, seed=0, shard=0).tolist() == [0, 8, 9, 3, 7, 5, 1, 2, 6, 4]
    assert chunk_order(10, seed=0, epoch=0).tolist() == [2, 0, 1, 4, 5, 6, 7, 8, 3, 9]
    assert window.tolist() == [1, 5, 6, 2, 9, 3, 4, 7, 0, 8]
