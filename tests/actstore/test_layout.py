from math import log2

import numpy as np
import pytest
from hypothesis import example, given, strategies as st

from actstore.layout import (
    Layout,
    chunk_order,
    plan_layout,
    row_permutation,
    window_permutation,
)

MIB = 2**20


@given(
    widths=st.lists(st.integers(1, 16384), min_size=1, max_size=4),
    itemsize=st.sampled_from([2, 4]),
    ctx_len=st.integers(1, 5000),
    shard_rows=st.none() | st.integers(1, 300_000),
)
def test_shards_hold_whole_chunks_and_whole_contexts(widths, itemsize, ctx_len, shard_rows):
    chunk, shard = plan_layout(
        widths=widths, itemsize=itemsize, ctx_len=ctx_len, shard_rows=shard_rows
    )
    assert shard % chunk == 0 and shard % ctx_len == 0


@given(width=st.integers(128, 8192), ctx_len=st.integers(1, 2048))
@example(width=5840, ctx_len=1048)
@example(width=5793, ctx_len=381)
def test_shards_are_near_64_mib_and_chunks_near_1_mib(width, ctx_len):
    chunk, shard = plan_layout(widths=[8, width], itemsize=2, ctx_len=ctx_len)
    assert abs(log2(shard * width * 2 / (64 * MIB))) < 1
    # Half an octave to the next power of two, and one that a chunk may be bent by. A long context
    # with few factors leaves no choice but a factor of it.
    assert abs(log2(chunk * width * 2 / MIB)) <= 1.5 or ctx_len % chunk == 0


@pytest.mark.parametrize(
    ("width", "ctx_len", "expected"),
    [
        (512, 128, (1024, 65536)),
        (512, 2048, (1024, 65536)),
        (768, 1024, (512, 32768)),
        (4096, 256, (128, 8192)),
        (64, 128, (4096, 262144)),
    ],
)
def test_usual_models_get_round_numbers(width, ctx_len, expected):
    assert plan_layout(widths=[width], itemsize=2, ctx_len=ctx_len) == expected


@given(ctx_len=st.integers(1, 64), n=st.integers(1, 200))
def test_a_wanted_shard_of_whole_contexts_is_kept_nearly(ctx_len, n):
    _, shard = plan_layout(widths=[64], itemsize=2, ctx_len=ctx_len, shard_rows=n * ctx_len)
    assert abs(log2(shard / (n * ctx_len))) < 0.2


def test_a_small_shard_is_still_several_chunks():
    assert plan_layout(widths=[512], itemsize=2, ctx_len=16, shard_rows=512) == (64, 512)


layouts = st.builds(
    lambda n, chunk, per_shard: Layout(n_rows=n, chunk_rows=chunk, shard_rows=chunk * per_shard),
    st.integers(1, 500),
    st.integers(1, 20),
    st.integers(1, 9),
)


@given(layouts)
def test_every_row_has_its_own_place(layout: Layout):
    assert sum(map(layout.rows_in, range(layout.n_shards))) == layout.n_rows
    chunks_in = [-(-layout.rows_in(s) // layout.chunk_rows) for s in range(layout.n_shards)]
    assert all(0 < n <= layout.chunks_per_shard for n in chunks_in)
    places = [layout.locate(chunk) for chunk in range(layout.n_chunks)]
    assert places == [(s, c) for s, n in enumerate(chunks_in) for c in range(n)]


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
