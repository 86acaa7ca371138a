"""Sites that join a complete store, whatever happens on the way."""

import random
import shutil
from dataclasses import replace
from itertools import count, cycle
from pathlib import Path

import numpy as np
import pytest
from numcodecs.blosc import Blosc

from actstore import ledger, merge, shardwriter
from actstore.addition import adding, under_way
from actstore.codec import CRC_BYTES, checksum
from actstore.errors import StoreError
from actstore.files import partial_of
from actstore.reader import ActStore, peek
from actstore.settle import settled
from actstore.verify import verify
from actstore.writer import ActWriter
from tests.helpers import crashing
from tests.helpers.crashing import Crash, crash_before, files_up_to
from tests.helpers.slow import slow
from tests.helpers.stores import column, files_of, make_spec, shard_file, shard_of

OLD, NEW = "mlp_out.1", "resid_pre.0"
WIDTHS = {OLD: 16, NEW: 24}


@pytest.fixture(scope="module")
def nursery():
    with crashing.nursery("tests.actstore.test_addition:add_or_find") as writers:
        yield writers


def both_sites(**spec):
    return make_spec(widths=WIDTHS, **spec)


def only(whole, *sites):
    return replace(whole, sites=tuple(site for site in whole.sites if site.name in sites))


def fill(writer, whole, *, stop=None, finish=True) -> None:
    """Write what is missing: of each site the rows that a store of all of them would have."""
    for k in range(writer.next_shard, writer.n_shards if stop is None else stop):
        shard = shard_of(whole, k, writer.rows_in(k))
        acts = {site.name: shard.acts[site.name] for site in writer.spec.sites}
        writer.write_shard(replace(shard, acts=acts))
    if stop is None and finish:
        writer.finish()


def write(path: Path, whole, *sites, n_rows=200, stop=None) -> Path:
    spec = only(whole, *(sites or WIDTHS))
    with ActWriter.create_or_resume(path, spec, n_rows=n_rows, threads=2) as writer:
        fill(writer, whole, stop=stop)
    return path


def add(path: Path, whole, *sites, stop=None, finish=True) -> Path:
    widths = {name: whole.width(name) for name in sites or (NEW,)}
    with adding(path, widths, threads=2) as writer:
        fill(writer, whole, stop=stop, finish=finish)
    return path


def same_as_at_once(path: Path, whole, at_once: Path) -> None:
    """Bytes of all shards, statistics, fingerprint; and nothing is left over."""
    got, wanted = ActStore.open(path), ActStore.open(at_once)
    assert got.manifest == replace(wanted.manifest, generation=got.manifest.generation)
    shards = [
        {name: data for name, data in files_of(p).items() if name.split("/")[0] in whole.arrays}
        for p in (path, at_once)
    ]
    assert shards[0] == shards[1]
    for site in wanted.sites:
        np.testing.assert_array_equal(got.mean(site), wanted.mean(site))
        np.testing.assert_array_equal(got.var(site), wanted.var(site))
        np.testing.assert_array_equal(got.rounding(site), wanted.rounding(site))
    assert verify(path) == []
    assert {p.name for p in path.iterdir()} == {"data.zarr", "journal.jsonl", "moments", "LOCK"}
    groups = {name.split("/")[0] for name in files_of(path)}
    assert groups == {"zarr.json", f"summary-{got.manifest.generation}", *whole.arrays}


@pytest.mark.parametrize(
    "spec", [{}, {"codec": "bitround:3"}, {"dtype": "float32", "codec": "raw"}], ids=str
)
@pytest.mark.parametrize("n_rows", [200, slow(256), slow(8)])
def test_a_site_that_is_added_gives_what_writing_both_at_once_gives(tmp_path, n_rows, spec):
    whole = both_sites(**spec)
    at_once = write(tmp_path / "once", whole, n_rows=n_rows)
    path = write(tmp_path / "s", whole, OLD, n_rows=n_rows)
    same_as_at_once(add(path, whole), whole, at_once)


def test_a_store_goes_on_with_all_its_sites(tmp_path):
    """Extended after and before the addition, by steps that end inside shards and between them."""
    whole = both_sites()
    for first, second, third in ((8, 200, 300), (64, 128, 264), (200, 200, 400), (130, 136, 144)):
        path = write(tmp_path / f"{first}-{third}", whole, OLD, n_rows=first)
        add(write(path, whole, OLD, n_rows=second), whole)
        at_once = write(tmp_path / f"once-{third}", whole, n_rows=third)
        same_as_at_once(write(path, whole, n_rows=third), whole, at_once)


def test_readers_see_the_old_store_until_the_sites_join_it(tmp_path):
    whole = both_sites()
    path = write(tmp_path / "s", whole, OLD)
    before = ActStore.open(path)
    rows = column(before, OLD)
    with adding(path, {NEW: 24}) as writer:
        fill(writer, whole)
        during = ActStore.open(path)
        assert during.sites == (OLD,)
    for store in (before, during):
        np.testing.assert_array_equal(column(store, OLD), rows)
    assert ActStore.open(path).sites == (OLD, NEW)


def test_an_addition_goes_on_after_any_shard(tmp_path):
    whole = both_sites()
    at_once = write(tmp_path / "once", whole)
    for stop in range(5):
        path = write(tmp_path / str(stop), whole, OLD)
        add(path, whole, stop=stop)
        assert under_way(path).state == "writing"
        assert ActStore.open(path).sites == (OLD,)
        with adding(path, {NEW: 24}) as writer:
            assert writer.next_shard == stop
        same_as_at_once(add(path, whole), whole, at_once)
        assert under_way(path) is None


def test_a_store_may_grow_before_an_addition_goes_on(tmp_path):
    whole = both_sites()
    for stop in (0, 2, 4):
        path = write(tmp_path / str(stop), whole, OLD)
        add(path, whole, stop=stop)
        write(path, whole, OLD, n_rows=400)
        at_once = write(tmp_path / f"once-{stop}", whole, n_rows=400)
        same_as_at_once(add(path, whole), whole, at_once)


@pytest.mark.parametrize(("stop", "n_rows"), [(3, 200), slow(4, 256), slow(6, 384), (7, 400)])
def test_an_unfinished_extension_ends_with_what_it_has(tmp_path, stop, n_rows):
    whole = both_sites()
    path = write(tmp_path / "s", whole, OLD)
    write(path, whole, OLD, n_rows=400, stop=stop)
    same_as_at_once(add(path, whole), whole, write(tmp_path / "once", whole, n_rows=n_rows))
    at_once = write(tmp_path / "more", whole, n_rows=500)
    same_as_at_once(write(path, whole, n_rows=500), whole, at_once)


def test_a_shard_of_an_extension_that_was_not_committed_does_not_join(tmp_path):
    """Its files wait to replace the last shard, and nothing vouches for them."""
    whole = both_sites()
    path = write(tmp_path / "s", whole, OLD)
    write(path, whole, OLD, n_rows=400, stop=4)
    journal = path / "journal.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:3]))
    same_as_at_once(add(path, whole), whole, write(tmp_path / "once", whole))


def test_asking_for_no_more_loses_nothing_of_an_unfinished_extension(tmp_path):
    whole = both_sites()
    path = write(tmp_path / "s", whole, n_rows=200)
    write(path, whole, n_rows=400, stop=6)
    write(path, whole, n_rows=200)
    with ActWriter.create_or_resume(path, whole, n_rows=400) as writer:
        assert writer.next_shard == 6


def joins_next(path) -> bool:
    """Whether the addition has all its rows, so that the next writer completes it."""
    told = under_way(path)
    return told is not None and told.state == "complete"


def again_with_both(path, whole) -> None:
    if len(peek(path).spec.sites) == 1 and not joins_next(path):
        add(path, whole)
    write(path, whole, n_rows=72)


def again_with_the_old(path, whole) -> None:
    """Which cannot write all sites any more: it is refused, after the addition was completed."""
    if len(peek(path).spec.sites) == 1 and not joins_next(path):
        add(write(path, whole, OLD, n_rows=72), whole)
    with pytest.raises(StoreError, match="holds another store"):
        write(path, whole, OLD, n_rows=72)


def add_again(path, whole) -> None:
    if (path / "adding").exists():
        add(path, whole)
    with pytest.raises(StoreError, match=r"has the site resid_pre\.0 already"):
        add(path, whole)


@pytest.mark.parametrize("every", [4, slow(1)])
def test_a_crash_between_any_two_steps_of_joining_is_made_good(tmp_path, monkeypatch, every):
    """By whoever comes next, each in turn."""
    whole = both_sites()
    old = write(tmp_path / "old", whole, OLD, n_rows=72)
    longer = write(tmp_path / "longer", whole, n_rows=136)
    comes_next = cycle((again_with_both, again_with_the_old, add_again))
    for n, go_on in zip(count(0, every), comes_next, strict=False):
        path = tmp_path / str(n)
        shutil.copytree(old, path)
        if not _crashed_joining(path, whole, monkeypatch, n):
            break
        store = ActStore.open(path)
        assert store.sites in ((OLD,), (OLD, NEW))
        assert len(column(store, store.sites[-1])) == 72
        go_on(path, whole)
        assert verify(path) == []
        same_as_at_once(write(path, whole, n_rows=136), whole, longer)
    assert n > 40


def _crashed_joining(path, whole, monkeypatch, n) -> bool:
    """Add, but crash before the n-th rename or removal of its end; whether it came to that."""
    with monkeypatch.context() as m:
        try:
            with adding(path, {NEW: 24}) as writer:
                fill(writer, whole, finish=False)
                writer._conveyor.wait()
                crash_before(m, n, (Path, "replace"), (ledger, "remove"), (merge, "remove"))
                writer.finish()
        except Crash:
            return True
    return False


def add_or_find(path: Path, n_rows: int) -> None:
    """Add what is missing to a store of so many rows, wherever the writer before was killed."""
    assert ActStore.open(path).n_rows == n_rows
    if len(settled(path).spec.sites) == 1:
        add(path, both_sites())


def test_an_addition_may_be_killed_at_any_moment(tmp_path, nursery):
    rng = random.Random(0)
    whole = both_sites()
    at_once = write(tmp_path / "once", whole, n_rows=800)
    old = write(tmp_path / "old", whole, OLD, n_rows=800)
    rows = column(ActStore.open(old), OLD)
    stores = (Path(shutil.copytree(old, tmp_path / str(n))) for n in count())
    path, kills, seconds = next(stores), 0, 0.1
    while kills < 12:
        _, killed = nursery.killed_after(rng.uniform(0, seconds), path, 800)
        kills += killed
        seconds *= 1.5 if killed else 0.5  # so that about every second addition is killed
        np.testing.assert_array_equal(column(ActStore.open(path), OLD), rows)
        if not killed:
            same_as_at_once(path, whole, at_once)
            path = next(stores)
    add_or_find(path, 800)
    same_as_at_once(write(path, whole, n_rows=800), whole, at_once)


def test_rows_of_other_tokens_are_refused_at_the_first_shard(tmp_path):
    whole = both_sites()
    path = write(tmp_path / "s", whole, OLD)
    with (
        pytest.raises(StoreError, match=r"gives the tokens it gave for shard 1; it stays"),
        adding(path, {NEW: 24}) as writer,
    ):
        for k in range(4):
            shard = shard_of(whole, k, writer.rows_in(k))
            shard = replace(shard, acts={NEW: shard.acts[NEW]}, tokens=shard.tokens + (k == 1))
            writer.write_shard(shard)
        writer.finish()
    assert ActStore.open(path).sites == (OLD,)
    same_as_at_once(add(path, whole), whole, write(tmp_path / "once", whole))


@pytest.mark.parametrize("n_rows", [128, 136], ids=["between shards", "inside a shard"])
def test_a_source_that_gives_fewer_rows_than_before_is_refused(tmp_path, n_rows):
    whole = both_sites()
    path = write(tmp_path / "s", whole, OLD)
    with (
        pytest.raises(StoreError, match=r"tokens it gave for shard 2"),
        adding(path, {NEW: 24}) as writer,
    ):
        for k in range(-(-n_rows // 64)):
            shard = shard_of(whole, k, min(64, n_rows - 64 * k))
            writer.write_shard(replace(shard, acts={NEW: shard.acts[NEW]}))
        writer.finish(source_exhausted=True)
    assert ActStore.open(path).sites == (OLD,)
    write(path, whole, OLD, n_rows=300)
    same_as_at_once(add(path, whole), whole, write(tmp_path / "once", whole, n_rows=300))


def test_another_release_of_the_compressor_changes_nothing(tmp_path, monkeypatch):
    """The same tokens in other bytes: those of the store stay."""
    whole = both_sites()
    path = write(tmp_path / "s", whole, OLD)
    real = shardwriter.encode

    def otherwise(values, codec):
        if codec != "zstd":
            return real(values, codec)
        payload = Blosc(cname="zstd", clevel=1, shuffle=Blosc.NOSHUFFLE).encode(values)
        return payload, checksum(payload).to_bytes(CRC_BYTES, "little")

    with monkeypatch.context() as m:
        m.setattr(shardwriter, "encode", otherwise)
        add(path, whole, stop=2)
        tokens, added = (shard_file(p, "token_id", 0) for p in (path, path / "adding"))
        assert added.read_bytes() != tokens.read_bytes()
        add(path, whole)
    same_as_at_once(path, whole, write(tmp_path / "once", whole))


def test_a_full_disk_is_survived(tmp_path):
    whole = both_sites()
    path = write(tmp_path / "s", whole, OLD)
    for limit in (1500, 4000, 7000):
        told = "could not be written: File too large"
        with files_up_to(limit), pytest.raises(StoreError, match=told):
            add(path, whole)
        assert verify(path) == []
    add(path, whole)
    same_as_at_once(path, whole, write(tmp_path / "once", whole))


def test_what_cannot_be_added_is_told(tmp_path):
    whole = both_sites()
    nowhere, begun = tmp_path / "nowhere", write(tmp_path / "begun", whole, OLD, stop=1)
    path = write(tmp_path / "s", whole, OLD)
    for store, site, told in (
        (nowhere, NEW, "there is no activation store at .*nowhere; make it: saepipe harvest"),
        (begun, NEW, "begun is not finished: go on with the saepipe harvest that began it"),
        (path, OLD, r"has the site mlp_out\.1 already"),
    ):
        with pytest.raises(StoreError, match=told):
            add(store, whole, site)
    assert not nowhere.exists()
    assert not (begun / "adding").exists() and not (path / "adding").exists()


def test_sites_are_added_one_after_another_and_wait_for_the_one_under_way(tmp_path):
    whole = make_spec(widths={**WIDTHS, "resid_pre.1": 8})
    path = write(tmp_path / "s", whole, OLD)
    add(path, whole, stop=1)
    with pytest.raises(
        StoreError,
        match=r"given resid_pre\.0: .*\(--site resid_pre\.0\), or remove .*/adding",
    ):
        add(path, whole, "resid_pre.1")
    add(add(path, whole), whole, "resid_pre.1")
    at_once = write(tmp_path / "once", whole, *(site.name for site in whole.sites))
    same_as_at_once(path, whole, at_once)


def test_nobody_else_writes_during_an_addition(tmp_path):
    whole = both_sites()
    path = write(tmp_path / "s", whole, OLD)
    with adding(path, {NEW: 24}):
        with pytest.raises(StoreError, match="is being written by"):
            write(path, whole, OLD, n_rows=400)
        with pytest.raises(StoreError, match="is being written by"):
            add(path, whole)


def test_a_lost_addition_leaves_nothing_behind_that_matters(tmp_path):
    """Someone stopped the removal of what had joined: the next writer goes on with it."""
    whole = both_sites()
    path = add(write(tmp_path / "s", whole, OLD), whole)
    gone = partial_of(path / "adding")
    gone.mkdir()
    (gone / "LOCK").touch()
    same_as_at_once(write(path, whole), whole, write(tmp_path / "once", whole))
