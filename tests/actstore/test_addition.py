"""Sites that join a complete store, whatever happens on the way."""

import random
import shutil
from dataclasses import replace
from functools import cache
from itertools import count
from pathlib import Path

import numpy as np
import pytest
from numcodecs.blosc import Blosc

from actstore import encoding
from actstore.addition import adding, under_way
from actstore.codec import CRC_BYTES, checksum
from actstore.errors import StoreError
from actstore.reader import ActStore, peek
from actstore.settle import settled
from actstore.verify import verify
from actstore.writer import ActWriter
from tests.helpers.crashing import files_up_to, nursery
from tests.helpers.slow import slow
from tests.helpers.stores import (
    add_site,
    column,
    fill,
    make_spec,
    require_same_store,
    shard_file,
    shard_of,
    write_store,
)

OLD, NEW = "mlp_out.1", "resid_pre.0"
WIDTHS = {OLD: 16, NEW: 24}
BOTH = make_spec(widths=WIDTHS)


def write(path: Path, *names, n_rows=200, stop=None, whole=BOTH) -> Path:
    sites = tuple(site for site in whole.sites if not names or site.name in names)
    return write_store(path, replace(whole, sites=sites), n_rows=n_rows, stop=stop, whole=whole)


def add(path: Path, *, whole=BOTH, stop=None) -> Path:
    return add_site(path, NEW, whole=whole, stop=stop)


@pytest.fixture(scope="module")
def killed_after():
    with nursery("tests.actstore.test_addition:add_or_find") as killed:
        yield killed


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Stores of some rows, sites and settings, that nobody changes."""
    folder, number = tmp_path_factory.mktemp("written"), count()

    @cache
    def made(*names, n_rows=200, **spec) -> Path:
        whole = make_spec(widths=WIDTHS, **spec)
        return write(folder / str(next(number)), *names, n_rows=n_rows, whole=whole)

    return made


@pytest.fixture
def old_store(written, tmp_path):
    """New copies of a store of the old site alone."""
    number = count()

    def copied(**settings) -> Path:
        return Path(shutil.copytree(written(OLD, **settings), tmp_path / f"s{next(number)}"))

    return copied


@pytest.fixture
def same_as_at_once(written):
    return lambda path, **settings: require_same_store(path, written(**settings))


@pytest.mark.parametrize(
    "spec", [{}, {"codec": "bitround:3"}, {"dtype": "float32", "codec": "raw"}], ids=str
)
@pytest.mark.parametrize("n_rows", [200, slow(256), slow(8)])
def test_a_site_that_is_added_gives_what_writing_both_at_once_gives(
    old_store, same_as_at_once, n_rows, spec
):
    path = old_store(n_rows=n_rows, **spec)
    same_as_at_once(add(path, whole=make_spec(widths=WIDTHS, **spec)), n_rows=n_rows, **spec)


@pytest.mark.parametrize("rows", [(8, 200, 300), (64, 128, 264), (200, 200, 400), (130, 136, 144)])
def test_a_store_goes_on_with_all_its_sites(old_store, same_as_at_once, rows):
    """Extended after and before the addition, by steps that end inside shards and between them."""
    first, second, third = rows
    path = add(write(old_store(n_rows=first), OLD, n_rows=second))
    same_as_at_once(write(path, n_rows=third), n_rows=third)


def test_readers_see_the_old_store_until_the_sites_join_it(old_store):
    path = old_store()
    before = ActStore.open(path)
    rows = column(before, OLD)
    with adding(path, {NEW: 24}) as writer:
        fill(writer, whole=BOTH)
        during = ActStore.open(path)
        assert during.sites == (OLD,)
    for store in (before, during):
        np.testing.assert_array_equal(column(store, OLD), rows)
    assert ActStore.open(path).sites == (OLD, NEW)


@pytest.mark.parametrize(
    ("stop", "n_rows", "goes_on_at"),
    [*((k, 200, k) for k in range(5)), (0, 400, 0), (2, 400, 2), (4, 400, 3)],
)
def test_an_addition_goes_on_after_any_shard(old_store, same_as_at_once, stop, n_rows, goes_on_at):
    """Even if the store has grown meanwhile, beyond a short shard."""
    path = add(old_store(), stop=stop)
    assert under_way(path).state == "writing"
    assert ActStore.open(path).sites == (OLD,)
    write(path, OLD, n_rows=n_rows)
    with adding(path, {NEW: 24}) as writer:
        assert writer.next_shard == goes_on_at
    same_as_at_once(add(path), n_rows=n_rows)
    assert under_way(path) is None


@pytest.mark.parametrize(("stop", "n_rows"), [(3, 200), slow(4, 256), slow(6, 384), (7, 400)])
def test_an_unfinished_extension_ends_with_what_it_has(old_store, same_as_at_once, stop, n_rows):
    path = write(old_store(), OLD, n_rows=400, stop=stop)
    same_as_at_once(add(path), n_rows=n_rows)
    same_as_at_once(write(path, n_rows=500), n_rows=500)


def test_a_shard_of_an_extension_that_was_not_committed_does_not_join(old_store, same_as_at_once):
    """Its files wait to replace the last shard, and nothing vouches for them."""
    path = write(old_store(), OLD, n_rows=400, stop=4)
    journal = path / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]))
    same_as_at_once(add(path))


def test_asking_for_no_more_loses_nothing_of_an_unfinished_extension(old_store):
    path = write(old_store(), OLD, n_rows=400, stop=6)
    write(path, OLD, n_rows=200)
    with ActWriter.create_or_resume(path, peek(path).spec, n_rows=400) as writer:
        assert writer.next_shard == 6


def add_or_find(path: Path, n_rows: int) -> None:
    """Add what is missing to a store of so many rows, wherever the writer before was killed."""
    assert ActStore.open(path).n_rows == n_rows
    if len(settled(path).spec.sites) == 1:
        add(path)


def test_an_addition_may_be_killed_at_any_moment(old_store, same_as_at_once, killed_after):
    rng = random.Random(0)
    path = old_store(n_rows=264)
    rows, kills, seconds = column(ActStore.open(path), OLD), 0, 0.1
    while kills < 12:
        killed = killed_after(rng.uniform(0, seconds), path, 264)
        kills += killed
        seconds *= 1.5 if killed else 0.5  # so that about every second addition is killed
        np.testing.assert_array_equal(column(ActStore.open(path), OLD), rows)
        if not killed:
            same_as_at_once(path, n_rows=264)
            path = old_store(n_rows=264)
    add_or_find(path, 264)
    same_as_at_once(path, n_rows=264)


def test_rows_of_other_tokens_are_refused_at_the_first_shard(old_store, same_as_at_once):
    path = old_store()
    with (
        pytest.raises(StoreError, match=r"gives the tokens it gave for shard 1; it stays"),
        adding(path, {NEW: 24}) as writer,
    ):
        for k in range(4):
            shard = shard_of(writer.spec, k, writer.rows_in(k), whole=BOTH)
            writer.write_shard(replace(shard, tokens=shard.tokens + (k == 1)))
        writer.finish()
    assert ActStore.open(path).sites == (OLD,)
    same_as_at_once(add(path))


@pytest.mark.parametrize("n_rows", [128, 136], ids=["between shards", "inside a shard"])
def test_a_source_that_gives_fewer_rows_than_before_is_refused(old_store, same_as_at_once, n_rows):
    path = old_store()
    with (
        pytest.raises(StoreError, match=r"tokens it gave for shard 2"),
        adding(path, {NEW: 24}) as writer,
    ):
        for k in range(-(-n_rows // 64)):
            writer.write_shard(shard_of(writer.spec, k, min(64, n_rows - 64 * k), whole=BOTH))
        writer.finish(source_exhausted=True)
    assert ActStore.open(path).sites == (OLD,)
    same_as_at_once(add(write(path, OLD, n_rows=300)), n_rows=300)


def test_another_release_of_the_compressor_changes_nothing(old_store, same_as_at_once, monkeypatch):
    """The same tokens in other bytes: those of the store stay."""
    path, real = old_store(), encoding.encode

    def otherwise(values, codec):
        if codec != "zstd":
            return real(values, codec)
        payload = Blosc(cname="zstd", clevel=1, shuffle=Blosc.NOSHUFFLE).encode(values)
        return payload, checksum(payload).to_bytes(CRC_BYTES, "little")

    with monkeypatch.context() as m:
        m.setattr(encoding, "encode", otherwise)
        add(path, stop=2)
        tokens, added = (shard_file(p, "token_id", 0) for p in (path, path / "adding"))
        assert added.read_bytes() != tokens.read_bytes()
        add(path)
    same_as_at_once(path)


def test_a_full_disk_is_survived(old_store, same_as_at_once):
    path = old_store()
    for limit in (1500, 4000, 7000):
        told = "could not be written: File too large"
        with files_up_to(limit), pytest.raises(StoreError, match=told):
            add(path)
        assert verify(path) == []
    same_as_at_once(add(path))


def test_what_cannot_be_added_is_told(tmp_path, old_store):
    nowhere, begun = tmp_path / "nowhere", write(tmp_path / "begun", OLD, stop=1)
    path = old_store()
    for store, site, told in (
        (nowhere, NEW, "there is no activation store at .*nowhere; make it: saepipe harvest"),
        (begun, NEW, "begun is not finished: go on with the saepipe harvest that began it"),
        (path, OLD, r"has the site mlp_out\.1 already"),
        (path, OLD.upper(), "'mlp_out.1' and 'MLP_OUT.1' differ in case alone"),
        (path, "zarr.json", "'zarr.json' cannot name a site"),
    ):
        with pytest.raises(StoreError, match=told), adding(store, {site: 16}):
            pass
    assert not nowhere.exists()
    assert not (begun / "adding").exists() and not (path / "adding").exists()


def test_sites_are_added_one_after_another_and_wait_for_the_one_under_way(tmp_path):
    whole = make_spec(widths={**WIDTHS, "resid_pre.1": 8})
    path = add(write(tmp_path / "s", OLD, whole=whole), whole=whole, stop=1)
    told = r"given resid_pre\.0: .*\(--site resid_pre\.0\), or remove .*/adding"
    with pytest.raises(StoreError, match=told):
        add_site(path, "resid_pre.1", whole=whole)
    added = add_site(add(path, whole=whole), "resid_pre.1", whole=whole)
    require_same_store(added, write(tmp_path / "once", whole=whole))


def test_nobody_else_writes_during_an_addition(old_store):
    path = old_store()
    with adding(path, {NEW: 24}):
        for write_too in (lambda: write(path, OLD, n_rows=400), lambda: add(path)):
            with pytest.raises(StoreError, match="is being written by"):
                write_too()
