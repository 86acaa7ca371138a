"""A store behind torch's DataLoader: the same batches, in this process or in a worker's."""

import gc
import multiprocessing
import pickle
from itertools import islice

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
SETTINGS = {"sites": SITES, "batch_size": 10, "seed": 3, "window_rows": 64}
# Newer Pythons warn of it; DataLoader does so by default, and that is what is tested.
FORKS = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


@pytest.fixture
def dataset(make_store):
    """`dataset(start=3, ...)` on a store of 200 rows, whose windows are smaller than it."""
    path = make_store(n_rows=200, widths=WIDTHS)

    def make(**given) -> StoreBatches:
        return StoreBatches(store=path, **(SETTINGS | given))

    return make


def expected(dataset: StoreBatches, n: int) -> list[dict[str, torch.Tensor]]:
    """What `Batches` itself gives, as numbers."""
    batches = Batches(store=ActStore.open(dataset.store), **SETTINGS)
    return [
        {site: torch.from_numpy(as_numbers(rows)).float() for site, rows in batch.items()}
        for batch in islice(batches.start_at(0), n)
    ]


def assert_same(got, wanted):
    torch.testing.assert_close(list(got), wanted, rtol=0, atol=0)


def test_batches_are_those_of_the_store_in_their_order(dataset):
    whole = dataset(n_batches=45)  # more than two epochs of 20
    assert_same(DataLoader(whole, batch_size=None), expected(whole, 45))


@FORKS
@pytest.mark.parametrize("method", ["fork", slow("spawn")])
def test_a_worker_process_gives_the_same_batches(dataset, method):
    whole = dataset(n_batches=25)
    loader = DataLoader(whole, batch_size=None, num_workers=1, multiprocessing_context=method)
    assert_same(loader, expected(whole, 25))


@pytest.mark.parametrize("start", [0, 1, 7, 20, 33])
def test_a_later_start_gives_the_rest_of_the_same_stream_every_time(dataset, start):
    rest = dataset(start=start, n_batches=40 - start)
    for _ in range(2):
        assert_same(rest, expected(dataset(), 40)[start:])


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
    for worker in multiprocessing.active_children():
        worker.join(30)
    assert not multiprocessing.active_children()


def test_a_negative_number_of_batches_is_refused(dataset):
    with pytest.raises(ConfigError, match="n_batches must not be negative, got -1"):
        dataset(n_batches=-1)


def test_a_dataset_can_be_sent_elsewhere_before_and_after_it_was_read(dataset):
    one = dataset(n_batches=3)
    for _ in range(2):
        assert_same(pickle.loads(pickle.dumps(one)), expected(one, 3))
        assert_same(one, expected(one, 3))


def test_batches_are_the_callers_to_keep(dataset):
    first, *kept = list(dataset(n_batches=20))
    first["mlp_out.1"].zero_()
    assert_same(kept, expected(dataset(), 20)[1:])
