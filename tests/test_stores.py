"""The store of a run is found again where both, or one of them, were moved."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from actstore.reader import ActStore
from pipeline.config.training import TrainConfig
from pipeline.runs.folder import Provenance
from pipeline.runs.names import from_here, public
from pipeline.runs.sae_run import SAERun
from pipeline.stores import looked_for
from tests.helpers.stores import make_spec, write_store

SITE = "mlp_out.1"


@pytest.fixture
def home(make_store, tmp_path) -> Path:
    """A folder with a store, acts.actstore, and a run from it, runs/a."""
    home = tmp_path / "home"
    home.mkdir()
    store = ActStore.open(shutil.move(make_store(), home))
    run = home / "runs/a"
    run.mkdir(parents=True)
    config = TrainConfig(store=store.path, out=run, site=SITE, batch_size=8)
    SAERun(path=run, config=config, provenance=Provenance.of(store, site=SITE)).write()
    return home


def found_by(run: Path) -> Path | None:
    return SAERun.read(run).provenance.find(run)


def test_a_run_and_its_store_may_move(home, tmp_path):
    assert str(tmp_path) not in (home / "runs/a/run.json").read_text()
    moved = home.rename(tmp_path / "moved")
    config = SAERun.read(moved / "runs/a").config
    assert (config.store, config.out) == (moved / "acts.actstore", moved / "runs/a")
    assert found_by(moved / "runs/a") == moved / "acts.actstore"


@pytest.mark.parametrize("place", ["away/acts.actstore", "known", "known/renamed"])
def test_a_store_beside_the_run_or_in_a_known_folder_is_told_by_its_fingerprint(
    home, tmp_path, monkeypatch, place
):
    run = Path(shutil.copytree(home / "runs/a", tmp_path / "away/a"))
    write_store(tmp_path / "away/another.actstore", make_spec(seed=1), n_rows=200)
    monkeypatch.setenv(
        "SAEPIPE_STORES", os.pathsep.join([str(tmp_path / "no"), f"{tmp_path}/known"])
    )
    assert found_by(run) is None
    (tmp_path / place).parent.mkdir(exist_ok=True)
    shutil.move(home / "acts.actstore", tmp_path / place)
    assert found_by(run) == tmp_path / place


def test_a_store_that_was_given_rows_is_still_the_one_and_another_is_not(home):
    run, store = home / "runs/a", home / "acts.actstore"
    write_store(store, make_spec(), n_rows=400)
    assert found_by(run) == store
    source = SAERun.read(run).provenance
    for change in ({"n_rows": 401}, {"text": "other"}, {"ctx_len": 4}, {"d_in": 3}, {"site": "x"}):
        assert replace(source, **change).find(run) is None, change
    told = looked_for(source.path, source.fingerprint)
    assert told.startswith("another is at") and source.fingerprint[:12] in told
    shutil.rmtree(store)
    assert looked_for(source.path, source.fingerprint).startswith("nothing is at")


def test_a_run_of_before_with_absolute_paths_finds_its_store(home, tmp_path):
    file = home / "runs/a/run.json"
    told = json.loads(file.read_text())
    told["store"]["path"] = told["config"]["store"] = str(home / "acts.actstore")
    file.write_text(json.dumps(told))
    assert found_by((home / "runs/a").rename(tmp_path / "a")) == home / "acts.actstore"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("/home/me/book.txt", "book.txt"),
        ("evaluated on ~/x/book.txt, and /a/b c", "evaluated on book.txt, and b c"),
        ("a/pythia-70m at https://a.org/b/c", "a/pythia-70m at https://a.org/b/c"),
        ("runs/a and ../acts.actstore", "runs/a and acts.actstore"),
        ("of ./my-neox, ../../me/b.txt, .hidden/c", "of my-neox, b.txt, .hidden/c"),
        ("<b>no</b> path: 1/2, and/or, ../", "<b>no</b> path: 1/2, and/or, "),
    ],
)  # fmt: skip
def test_words_for_everybody_name_no_folder_of_this_machine(words, told):
    assert public(words) == told


def test_a_path_in_this_folder_is_told_from_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert from_here(tmp_path / "a/b") == Path("a/b")
    assert from_here(tmp_path.parent) == tmp_path.parent
