"""A harvest that was made already is found and used, wherever it lies."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actstore.errors import StoreError
from actstore.reader import ActStore
from actstore.removal import find_stores
from actstore.writer import ActWriter
from pipeline.config.stages import HarvestConfig
from pipeline.errors import ConfigError
from pipeline.harvest.harvest import harvest
from pipeline.harvest.plan import link, make_plan
from pipeline.terminal.lines import harvest_lines
from tests.helpers.harvests import harvest_config
from tests.helpers.stores import make_spec, write_store
from tests.helpers.tiny import CTX_LEN, make_model


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> HarvestConfig:
    """A harvest that was carried out; `out` is its store."""
    folder = tmp_path_factory.mktemp("stage")
    out = folder / "stores" / "made.actstore"
    config = harvest_config(folder, out=out, tokens=16 * CTX_LEN, batch_size=None, dtype="fp32")
    harvest(config)
    return config


@pytest.fixture
def beside(stage) -> HarvestConfig:
    """The same harvest under another name in the same folder."""
    return replace(stage, out=stage.out.with_name("wanted.actstore"))


def test_a_store_beside_that_holds_the_same_is_found(stage, beside):
    plan = make_plan(beside)
    assert (plan.state, plan.found) == ("complete", stage.out)
    assert (plan.n_rows, plan.rows_to_write, plan.bytes_to_write) == (16 * CTX_LEN, 0, 0)
    assert make_plan(stage).found is None
    assert not beside.out.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"sites": ("resid_pre.0",)}, {"sites": ("resid_pre.0", "mlp_out.1")}, {"tokens": 5},
        {"codec": "zstd"}, {"codec": "raw"}, {"precision": "fp32"}, {"shard_rows": None},
        {"batch_size": 3},
    ],
    ids=str,
)  # fmt: skip
def test_what_the_store_holds_too_is_found(stage, beside, change):
    assert make_plan(replace(beside, **change)).found == stage.out


@pytest.mark.parametrize(
    "change",
    [
        {"sites": ("resid_pre.0", "mlp_out.0")}, {"tokens": 17 * CTX_LEN}, {"dtype": "bf16"},
        {"codec": "bitround:4"}, {"precision": "bf16"}, {"ctx_len": 6}, {"seed": 1},
        {"text_column": "other"},
    ],
    ids=str,
)  # fmt: skip
def test_what_differs_is_harvested(beside, change):
    plan = make_plan(replace(beside, **change))
    assert (plan.state, plan.found) == ("new", None)


def test_where_model_and_text_lie_does_not_matter_and_their_content_does(stage, beside, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(Path(stage.text).read_text())
    (tmp_path / "model").symlink_to(stage.model)
    elsewhere = replace(beside, text=str(text), model=str(tmp_path / "model"), revision="other")
    assert make_plan(elsewhere).found == stage.out
    text.write_text(text.read_text() + "x")
    assert make_plan(elsewhere).found is None
    other = make_model(tmp_path / "another", seed=1)
    assert make_plan(replace(beside, model=str(other))).found is None


def test_a_store_that_holds_all_its_text_rounded_serves_only_who_asks_for_that(stage, tmp_path):
    endless = replace(stage, out=tmp_path / "all.actstore", tokens=10_000, codec="bitround:6")
    harvest(endless)
    again = replace(endless, out=tmp_path / "again.actstore")
    plan = make_plan(again)
    assert (plan.state, plan.found) == ("complete", endless.out)
    assert plan.n_rows == 40 * CTX_LEN
    for codec in ("lz4", "bitround:7"):
        assert make_plan(replace(again, codec=codec)).found is None


def test_known_folders_are_searched_to_the_bottom(stage, tmp_path, monkeypatch):
    elsewhere = replace(stage, out=tmp_path / "wanted.actstore")
    assert make_plan(elsewhere).found is None
    folders = (tmp_path / "gone", tmp_path, "", stage.out.parent.parent)
    monkeypatch.setenv("SAEPIPE_STORES", os.pathsep.join(map(str, folders)))
    assert make_plan(elsewhere).found == stage.out


def test_what_is_not_whole_or_not_ours_is_passed_over(stage, tmp_path, monkeypatch):
    """Unfinished, damaged, foreign, or not to be looked into: none of it is in the way."""
    place = tmp_path / "place"
    write_store(place / "a foreign.actstore", make_spec(), n_rows=64)
    spec = ActStore.open(stage.out).spec
    with ActWriter.create_or_resume(place / "begun.actstore", spec, n_rows=16 * CTX_LEN):
        pass
    for name, text in (("d", "?"), ("e", "[]"), ("f", '{"attributes": []}'), ("g", "{}")):
        root = place / name / "data.zarr" / "zarr.json"
        root.parent.mkdir(parents=True)
        root.write_text(text)
    damaged = shutil.copytree(stage.out, place / "cut.actstore", symlinks=True)
    next((damaged / "data.zarr").rglob("c/0/0")).unlink()
    (place / "a file").write_text("")
    (place / "loop").symlink_to("loop")
    shut = place / "shut"
    shut.mkdir()
    monkeypatch.setenv("SAEPIPE_STORES", f"{place}{os.pathsep}{stage.out.parent}")
    real = os.scandir

    def scandir(path):
        if Path(path) == shut:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert make_plan(replace(stage, out=place / "wanted.actstore")).found == stage.out
    assert len(find_stores(place)) == 7


def test_a_link_stands_for_the_store(stage, tmp_path):
    found = write_store(tmp_path / "deep" / "found.actstore", make_spec(), n_rows=64)
    out = tmp_path / "new" / "er" / "out.actstore"
    link(found, out)
    assert str(out.readlink()) == "../../deep/found.actstore"
    assert ActStore.open(out).fingerprint == ActStore.open(found).fingerprint
    link(found, out)  # the same command, in another window, was first
    write_store(out, make_spec(), n_rows=128)
    assert ActStore.open(found).n_rows == 128
    (tmp_path / "short").symlink_to("new/er")
    link(found, tmp_path / "short" / "too.actstore")
    moved = tmp_path.rename(tmp_path.with_name(f"{tmp_path.name}-moved"))
    for name in ("new/er/out.actstore", "short/too.actstore"):
        assert ActStore.open(moved / name).n_rows == 128


def test_nothing_is_linked_over_what_is_there(stage, tmp_path):
    found = write_store(tmp_path / "found.actstore", make_spec(), n_rows=64)
    (tmp_path / "folder").mkdir()
    (tmp_path / "gone").symlink_to("nowhere")
    for name in ("folder", "gone", "found.actstore"):
        with pytest.raises(ConfigError, match="is there already: choose another --out"):
            link(found, tmp_path / name)
    assert (tmp_path / "folder").is_dir() and (tmp_path / "gone").is_symlink()
    with pytest.raises(ConfigError, match="is a link to nowhere, which is gone: remove it"):
        make_plan(replace(stage, out=tmp_path / "gone"))


def test_a_harvest_links_the_store_that_holds_the_same(stage, tmp_path, monkeypatch):
    monkeypatch.setenv("SAEPIPE_STORES", str(stage.out.parent))
    wanted = replace(stage, out=str(tmp_path / "new" / "wanted.actstore"))
    linked = harvest(wanted)
    assert (linked.reused, linked.found, linked.rows_written) == (True, stage.out, 0)
    assert linked.store == wanted.out == tmp_path / "new" / "wanted.actstore"
    assert linked.store.resolve() == stage.out.resolve()
    assert make_plan(wanted).found is None
    again = harvest(wanted)
    assert (again.reused, again.found, again.n_rows) == (True, None, 16 * CTX_LEN)
    assert not again.holds_more and "asked" not in "".join([*harvest_lines(again), repr(again)])


def test_a_store_larger_than_was_asked_for_is_told(stage, beside):
    small = harvest(replace(beside, tokens=2 * CTX_LEN, out=beside.out.with_name("small.actstore")))
    assert (small.n_rows, small.n_rows_asked) == (16 * CTX_LEN, 2 * CTX_LEN)
    (line,) = harvest_lines(small)
    assert f"{2 * CTX_LEN} were asked for: train with --tokens {2 * CTX_LEN}" in line
    assert f"more than the {2 * CTX_LEN} asked for" in repr(small)
    (line,) = harvest_lines(replace(small, reused=False))  # one that went on had them already
    assert line.endswith(f"train with --tokens {2 * CTX_LEN}") and "tokens/s" not in line
    small.store.unlink()


def test_shards_of_an_absurd_size_are_refused_before_anything_is_loaded(beside):
    with pytest.raises(StoreError, match=r"shard_rows 999,997,440 makes shards of"):
        make_plan(replace(beside, tokens=10**6, shard_rows=10**9))
