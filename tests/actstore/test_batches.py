import subprocess
import sys
from itertools import islice, pairwise
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from actstore.batches import Batches
from actstore.errors import StoreError
from actstore.manifest import ROW_ARRAYS
from actstore.reader import ActStore
from tests.helpers.stores import (
    TWO_SITES,
    as_numbers,
    column,
    decoding,
    flip,
    make_spec,
    shard_file,
    write_store,
)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """200 rows in 4 shards of 8 chunks; the last shard is short, and its last chunk too."""
    path = tmp_path_factory.mktemp("stores") / "s"
    spec = make_spec(widths=TWO_SITES, shard_rows=192, ctx_len=12)
    return ActStore.open(write_store(path, spec, n_rows=468))


def batches_of(store, **settings) -> Batches:
    given = {"sites": ("mlp_out.1",), "batch_size": 20, "seed": 0, "window_rows": 100, **settings}
    return Batches(store=store, **given)


def take(batches: Batches, n: int, step: int = 0) -> np.ndarray:
    stream = islice(batches.start_at(step), n)
    return np.stack([batch[batches.sites[0]] for batch in stream])


def keys(rows: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in rows.reshape(-1, rows.shape[-1])]


@settings(max_examples=25)
@given(
    batch_size=st.integers(1, 700),
    window_rows=st.integers(1, 700),
    seed=st.integers(0, 9),
    step=st.integers(0, 12),
)
def test_the_stream_is_the_epochs_one_after_another(store, batch_size, window_rows, seed, step):
    batches = batches_of(store, batch_size=batch_size, window_rows=window_rows, seed=seed)
    got = keys(take(batches, step + 2))
    assert len(got) == (step + 2) * batch_size
    everything = sorted(keys(column(store, "mlp_out.1")))
    for start in range(0, len(got) - 467, 468):
        assert sorted(got[start : start + 468]) == everything
    rest = got[len(got) // 468 * 468 :]
    assert len(set(rest)) == len(rest)
    assert keys(take(batches, 1, step)) == got[step * batch_size : (step + 1) * batch_size]


@settings(max_examples=25)
@given(
    window_rows=st.integers(1, 700), step=st.integers(0, 60), n=st.integers(0, 60),
    batch_size=st.sampled_from([1, 13, 52, 78]),
    lanes=st.sampled_from([1, 13]),
)  # fmt: skip
def test_a_stream_that_ends_is_the_start_of_the_endless_one_and_reads_no_further(
    store, window_rows, step, n, batch_size, lanes
):
    lanes = lanes if batch_size % lanes == 0 else 1
    batches = batches_of(store, window_rows=window_rows, batch_size=batch_size, lanes=lanes)
    n_read, read = [], ActStore.read_chunk_into

    def noted(self, site, chunk, out, *, skip=0):
        n_read.append(len(out))
        read(self, site, chunk, out, skip=skip)

    with patch.object(ActStore, "read_chunk_into", noted):
        ended = [batch["mlp_out.1"] for batch in batches.start_at(step, n)]
    assert len(ended) == n
    if n:
        assert np.array_equal(np.stack(ended), take(batches, n, step))
    epoch, per_step = batches.epochs.lane_rows, batch_size // lanes
    first, last = step * per_step, (step + n) * per_step
    windows = [
        (start + i * epoch, stop + i * epoch)
        for i in range(last // epoch + 1)
        for start, stop in pairwise(batches.epochs.cuts)
    ]
    needed = [stop - start for start, stop in windows if start < last and first < stop and n]
    assert sum(n_read) == lanes * sum(needed)


def test_seed_and_epoch_change_the_order(store):
    first, second = np.split(take(batches_of(store, batch_size=468), 2), 2)
    other = take(batches_of(store, batch_size=468, seed=1), 1)
    assert len({tuple(keys(rows)) for rows in (first, second, other)}) == 3


def test_runs_of_a_chunk_are_spread_over_their_window(store):
    """Neighbours of the store are no likelier to be neighbours in the stream than by chance."""
    batches = batches_of(store, batch_size=468, window_rows=468)
    place = {key: i for i, key in enumerate(keys(column(store, "mlp_out.1")))}
    order = np.array([place[key] for key in keys(take(batches, 1))])
    assert batches.run == 8
    steps = np.diff(order)
    within = steps == 1
    assert within.mean() > 0.8  # rows were mixed when they were written: they stay in runs
    assert 110 < np.abs(steps[~within]).mean() < 200  # 468 / 3 = 156 for a uniform order


@pytest.mark.parametrize(
    ("width", "run"), [(16, 8), (512, 8), (513, 4), (768, 4), (2048, 2), (4096, 1), (50_000, 1)]
)
def test_runs_are_some_kib(tmp_path, width, run):
    spec = make_spec(widths={"mlp_out.1": width, "x": 8})
    store = ActStore.open(write_store(tmp_path / "s", spec, n_rows=8))
    assert batches_of(store, sites=("mlp_out.1", "x"), batch_size=8).run == run
    assert batches_of(store, sites=("x",), batch_size=8).run == run, (
        "the order is that of any sites"
    )


def test_batches_may_be_kept(store):
    stream = batches_of(store).start_at(0)
    first = next(stream)["mlp_out.1"]
    copy = first.copy()
    list(islice(stream, 80))
    np.testing.assert_array_equal(first, copy)


def test_closing_the_stream_stops_its_threads(store):
    stream = batches_of(store, threads=3).start_at(0)
    assert not decoding()  # nothing runs before the first batch is asked for
    next(stream)
    assert decoding()
    stream.close()
    assert not decoding()


def test_impossible_batches_are_refused(store):
    for change, told in [
        ({"sites": ("nothing",)}, "has no site 'nothing'"),
        ({"sites": ()}, "batches need sites"),
        ({"sites": ("mlp_out.1", "mlp_out.1")}, "each once"),
        ({"metadata": ("mlp_out.1",)}, "metadata is token_id, context_id, position, document_id"),
        ({"metadata": ("position", "position")}, "each once, got"),
        ({"batch_size": 0}, "batch_size must be positive"),
        ({"window_rows": 0}, "window_rows must be positive"),
        ({"threads": 0}, "threads must be positive"),
        ({"seed": -1}, "seed must not be negative"),
        ({"lanes": 8}, "8 lanes cannot share 468 rows in batches of 20 .*: choose lanes that di"),
        ({"lanes": 8, "batch_size": 40}, "choose lanes that divide 4"),
        ({"lanes": 3}, "choose lanes that divide 4"),
        ({"lanes": 0}, "lanes must be positive"),
        ({"lanes": 4, "world_size": 3}, "choose a world_size that divides lanes"),
        ({"lanes": 4, "world_size": 2, "rank": 2}, "shared by rank 2 of 2"),
        ({"world_size": 2}, "1 lanes cannot be shared by rank 0 of 2"),
    ]:
        with pytest.raises(StoreError, match=told):
            batches_of(store, **change)
    with pytest.raises(StoreError, match="step must not be negative"):
        next(batches_of(store).start_at(-1))


def test_a_window_has_at_most_a_gib(store):
    chunks = batches_of(store, window_rows=2**40).epochs.window_chunks
    assert chunks == 2**30 // (48 * store.spec.chunk_rows)  # of the widest site
    both = batches_of(store, window_rows=2**40, sites=("mlp_out.1", "resid.0"), batch_size=36)
    assert both.epochs.window_chunks == chunks
    labelled = batches_of(store, window_rows=2**40, metadata=("document_id",))
    assert labelled.epochs.window_chunks == chunks
    shared = batches_of(store, window_rows=2**40, lanes=4)
    assert shared.epochs.window_chunks == chunks // 4


@settings(max_examples=20)
@given(
    lanes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    share=st.integers(1, 5),
    window_rows=st.integers(1, 700),
    seed=st.integers(0, 3),
    step=st.integers(0, 30),
)
def test_ranks_together_give_the_batch_of_one_process(store, lanes, share, window_rows, seed, step):
    """For every world size that divides the lanes, from every step, across epochs."""
    given = {"batch_size": 36 * share, "window_rows": window_rows, "seed": seed, "lanes": lanes}
    whole = take(batches_of(store, **given), 3, step)
    for world_size in (n for n in range(1, lanes + 1) if lanes % n == 0):
        ranks = [
            take(batches_of(store, **given, world_size=world_size, rank=rank), 3, step)
            for rank in range(world_size)
        ]
        np.testing.assert_array_equal(np.concatenate(ranks, axis=1), whole)


@settings(max_examples=40)
@given(
    lanes=st.sampled_from([1, 2, 3, 4, 6, 12]),
    window_rows=st.integers(1, 700),
    seed=st.integers(0, 9),
    threads=st.integers(1, 4),
    step=st.integers(0, 40),
)
def test_every_lane_count_has_every_row_once_an_epoch(
    store, lanes, window_rows, seed, threads, step
):
    given = {"window_rows": window_rows, "seed": seed, "lanes": lanes, "batch_size": 12}
    whole = take(batches_of(store, **given, threads=threads), 2 * 39)
    everything = sorted(keys(column(store, "mlp_out.1")))
    for epoch in np.split(whole, 2):  # 39 batches of 12 are the 468 rows
        assert sorted(keys(epoch)) == everything
    np.testing.assert_array_equal(take(batches_of(store, **given), 78 - step, step), whole[step:])


def test_lanes_and_windows_are_mixed_each_in_its_own_order(store):
    epochs = batches_of(store, lanes=2, window_rows=200, batch_size=20).epochs
    for first, second in epochs.windows(0, range(2)):
        assert first.n_rows == second.n_rows > 60
        assert first.order(1).tolist() != second.order(1).tolist()
    orders = [tuple(lane.order(1)[:40]) for w in epochs.windows(0, range(2)) for lane in w]
    assert len(set(orders)) == 6


@settings(max_examples=25)
@given(
    lanes=st.sampled_from([1, 2, 3, 12]),
    window_rows=st.integers(1, 700),
    threads=st.integers(1, 4),
    step=st.integers(0, 40),
)
def test_sites_and_metadata_stay_aligned_and_metadata_leaves_the_order_alone(
    store, lanes, window_rows, threads, step
):
    names = tuple(ROW_ARRAYS)
    told = {name: column(store, name) for name in (*TWO_SITES, *names)}
    place = {key: i for i, key in enumerate(keys(column(store, "mlp_out.1")))}
    given = {
        "sites": tuple(TWO_SITES), "batch_size": 12, "lanes": lanes, "window_rows": window_rows,
        "threads": threads,
    }  # fmt: skip
    stream = batches_of(store, **given, metadata=names).start_at(step)
    for batch, plain in zip(
        islice(stream, 5), batches_of(store, **given).start_at(step), strict=False
    ):
        assert list(batch) == [*TWO_SITES, *names]
        rows = [place[key] for key in keys(batch["mlp_out.1"])]
        for name, values in told.items():
            assert batch[name].dtype == values.dtype
            np.testing.assert_array_equal(batch[name], values[rows])
        for site in TWO_SITES:
            np.testing.assert_array_equal(batch[site], plain[site])


@pytest.mark.parametrize("array", ["mlp_out.1", "token_id"])
def test_what_is_damaged_stops_the_stream_with_its_name(make_store, array):
    store = ActStore.open(make_store())
    flip(shard_file(store.path, array, 1), 20)
    if array == "token_id":  # which is not looked at if it is not asked for
        list(islice(batches_of(store, metadata=("position",)).start_at(0), 20))
    with pytest.raises(
        StoreError, match=rf"{array}, shard 1: .*c/1.* is damaged in chunk 0: its b"
    ):
        list(islice(batches_of(store, metadata=("position", "token_id")).start_at(0), 20))
    assert not decoding()


def test_a_store_gives_batches_as_float32_each_row_once(make_store):
    store = ActStore.open(make_store(widths=TWO_SITES))
    stream = Batches(store=store, sites=("mlp_out.1", "resid.0"), batch_size=64, seed=5).start_at(0)
    stored = list(islice(stream, 6))
    stream.close()
    one = list(store.batches("mlp_out.1", 64, seed=5))
    assert len(one) == 3  # whole ones alone
    several = list(store.batches(["mlp_out.1", "resid.0", "token_id"], 64, seed=5, epochs=2))
    assert len(several) == 6
    for batch, as_stored in zip(several, stored, strict=True):
        assert list(batch) == ["mlp_out.1", "resid.0", "token_id"]
        for site, rows in as_stored.items():
            assert batch[site].dtype == np.float32
            np.testing.assert_array_equal(batch[site], as_numbers(rows))
    for batch, among in zip(one, several, strict=False):
        np.testing.assert_array_equal(batch, among["mlp_out.1"])
    assert len(list(islice(store.batches("resid.0", 50, epochs=None, window_rows=64), 9))) == 9


def test_batches_of_what_a_store_does_not_have_are_refused_at_once(make_store):
    store = ActStore.open(make_store())
    with pytest.raises(StoreError, match="has no site 'mlp_out.9'.*mlp_out.1, token_id"):
        store.batches("mlp_out.9", 64)
    with pytest.raises(StoreError, match="batch_size must be positive, got 0"):
        store.batches("mlp_out.1", 0)


LEFT_OPEN = """
import sys
import numpy as np
from actstore.batches import Batches
from actstore.reader import ActStore

store = ActStore.open(sys.argv[1])
np.left_open = Batches(store=store, sites=("mlp_out.1",), batch_size=20, seed=0).start_at(0)
next(np.left_open)
"""


def test_a_stream_that_is_left_open_makes_no_noise_at_exit(make_store):
    """A module of others lets go of it when what stops threads is gone already."""
    path = make_store()
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", LEFT_OPEN, path],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
