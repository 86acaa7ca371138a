"""A store behind torch's DataLoader: the same batches, in this process or in a worker's."""

import gc
import multiprocessing
import pickle
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.errors import ConfigError
from pipeline.training.batches import StoreBatches
from tests.helpers.slow import slow
from tests.helpers.stores import as_numbers, decoding

WIDTHS = {"mlp_out.1": 16, "resid_post.0": 8}
SITES = tuple(WIDTHS)
# Newer Pythons warn of it; DataLoader does so by default, and that is what is tested.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def dataset(make_store):
    """`dataset(start=3, ...)` on a store of 200 rows, whose windows are smaller than it."""
    path = make_store(n_rows=200, widths=WIDTHS)

    def make(**given) -> StoreBatches:
        settings = {"sites": SITES, "batch_size": 10, "seed": 3, "window_rows": 64, **given}
        return StoreBatches(store=path, **settings)

    return make


def expected(dataset: StoreBatches, n: int) -> list[dict[str, np.ndarray]]:
    """What `Batches` itself gives, as numbers."""
    batches = Batches(
        store=ActStore.open(dataset.store),
        sites=dataset.sites,
        batch_size=dataset.batch_size,
        seed=dataset.seed,
        window_rows=dataset.window_rows,
    )
    first = islice(batches.start_at(0), n)
    return [{site: as_numbers(rows) for site, rows in batch.items()} for batch in first]


def assert_same(got, wanted):
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert set(one) == set(other)
        for site, rows in one.items():
            assert rows.dtype == torch.float32
            np.testing.assert_array_equal(rows.double().numpy(), other[site])


def test_batches_are_those_of_the_store_in_their_order(dataset):
    whole = dataset(n_batches=45)  # more than two epochs of 20
    assert_same(list(DataLoader(whole, batch_size=None)), expected(whole, 45))


@FORKS
@pytest.mark.parametrize("method", ["fork", slow("spawn")])
def test_a_worker_process_gives_the_same_batches(dataset, method):
    whole = dataset(n_batches=25)
    loader = DataLoader(whole, batch_size=None, num_workers=1, multiprocessing_context=method)
    assert_same(list(loader), expected(whole, 25))


@pytest.mark.parametrize("start", [0, 1, 7, 20, 33])
def test_a_later_start_gives_the_rest_of_the_same_stream(dataset, start):
    wanted = expected(dataset(), 40)[start:]
    assert_same(list(dataset(start=start, n_batches=40 - start)), wanted)


def test_every_iteration_begins_at_the_start_again(dataset):
    loader = DataLoader(dataset(start=2, n_batches=5), batch_size=None)
    first = [batch["mlp_out.1"] for batch in loader]
    assert all(map(torch.equal, first, (batch["mlp_out.1"] for batch in loader)))


def test_ranks_together_see_the_whole_batch(dataset):
    lanes = {"lanes": 2, "n_batches": 25}
    whole = list(dataset(**lanes))
    parts = [list(dataset(**lanes, rank=rank, world_size=2)) for rank in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [len(share["mlp_out.1"]) for share in shares] == [5, 5]
        for site in SITES:
            assert torch.equal(batch[site], torch.cat([share[site] for share in shares]))


def test_leaving_early_stops_the_threads(dataset):
    for batch in DataLoader(dataset(threads=2), batch_size=None):
        assert decoding()
        assert batch["mlp_out.1"].shape == (10, 16)
        break
    gc.collect()
    assert not decoding()


@FORKS
def test_leaving_a_worker_early_ends_its_process(dataset):
    endless = dataset()
    for _ in DataLoader(endless, batch_size=None, num_workers=1, multiprocessing_context="fork"):
        assert multiprocessing.active_children()
        break
    gc.collect()
    assert not multiprocessing.active_children()


@FORKS
def test_two_workers_are_refused_with_what_to_do_instead(dataset, monkeypatch):
    # Seconds that a DataLoader gives each worker to end by itself, which after an error none does.
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    loader = DataLoader(dataset(), batch_size=None, num_workers=2, multiprocessing_context="fork")
    with pytest.raises(ConfigError, match="raise `threads` of StoreBatches"):
        next(iter(loader))
    gc.collect()
    assert not multiprocessing.active_children()


def test_a_negative_number_of_batches_is_refused(dataset):
    with pytest.raises(ConfigError, match="n_batches must not be negative, got -1"):
        dataset(n_batches=-1)


def test_a_dataset_can_be_sent_elsewhere_before_and_after_it_was_read(dataset):
    one = dataset(n_batches=3)
    before = list(pickle.loads(pickle.dumps(one)))
    after = list(one) and list(pickle.loads(pickle.dumps(one)))
    assert_same(before, expected(one, 3))
    assert_same(after, expected(one, 3))


def test_batches_are_the_callers_to_keep(dataset):
    kept = list(dataset(n_batches=20))
    copies = [batch["mlp_out.1"].clone() for batch in kept]
    for batch in kept[:10]:
        batch["mlp_out.1"].zero_()
    assert all(torch.equal(a["mlp_out.1"], b) for a, b in zip(kept[10:], copies[10:], strict=True))
