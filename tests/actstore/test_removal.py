"""Removing a store: the store and nothing else, whole or in pieces."""

from pathlib import Path

import pytest

from actstore import removal
from actstore.errors import StoreError
from actstore.files import remove, writing
from actstore.ledger import JOURNAL
from actstore.reader import ActStore, peek
from actstore.removal import removable, remove_rowless, remove_store
from tests.helpers.refusals import refused
from tests.helpers.stores import edit_json

ROOT_FILE = "data.zarr/zarr.json"


def everything(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def assert_refused(path: Path, message: str) -> None:
    before = everything(path.parent)
    with pytest.raises(StoreError, match=message):
        remove_store(path)
    assert everything(path.parent) == before


def test_a_removed_store_leaves_nothing_and_its_neighbours_stay(make_store, tmp_path):
    path, other = make_store(), make_store(name="other")
    (tmp_path / "notes.txt").write_text("kept")
    n_bytes = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    told = removable(path)
    assert (told.n_bytes, told.target, told.manifest) == (n_bytes, None, peek(path))
    remove_store(path)
    assert not path.exists()
    ActStore.open(other)
    assert (tmp_path / "notes.txt").exists()


def test_who_has_it_open_goes_on_reading(make_store):
    store = ActStore.open(make_store(n_rows=40))
    before = store.shard("mlp_out.1", 0)
    remove_store(store.path)
    assert (store.shard("mlp_out.1", 0) == before).all()


DAMAGE = {
    "no JSON": lambda path: (path / ROOT_FILE).write_text("{"),
    "altered": lambda path: edit_json(
        path / ROOT_FILE, lambda root: root["attributes"]["actstore"].update(n_rows=8)
    ),
    "no root": lambda path: (path / ROOT_FILE).unlink(),
    "group alone": lambda path: [remove(file) for file in path.glob("[!d]*")],
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_store_that_is_damaged_can_be_removed(make_store, tmp_path, damage):
    """What a kill leaves of one can, too: `test_leftovers`."""
    path = make_store()
    damage(path)
    remove_store(path)
    assert not list(tmp_path.iterdir())


def test_what_holds_more_than_a_store_is_left_alone(make_store):
    path = make_store()
    for file, message in (
        ("thesis.tex", "holds thesis.tex, which no store does"),
        ("data.zarr/labels", "holds labels, which is not the store's"),
    ):
        (path / file).mkdir()
        assert_refused(path, message)
        (path / file).rmdir()


def test_what_is_no_store_is_left_alone(tmp_path):
    path, message = tmp_path / "acts.actstore", "is no activation store"
    assert_refused(path, message)
    path.write_text("not a folder")
    assert_refused(path, message)
    path.unlink()
    path.mkdir()
    assert_refused(path, message)
    (path / "data.zarr/labels").mkdir(parents=True)
    (path / ROOT_FILE).write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    assert_refused(path, message)


def test_a_store_that_is_being_written_is_left_alone(make_store):
    path = make_store()
    with writing(path):
        assert_refused(path, "is being written by process")
    ActStore.open(path)


def test_files_that_its_writer_moves_meanwhile_are_in_nobodys_way(make_store, monkeypatch):
    path = make_store()
    n_bytes, moved = removable(path).n_bytes, path / "data.zarr" / "0.partial"
    files = [*removal._files(path), moved]
    monkeypatch.setattr(removal, "_files", lambda _: iter(files))
    assert removable(path).n_bytes == n_bytes
    with writing(path):
        assert_refused(path, "is being written by process")


def test_a_store_that_has_come_to_rows_meanwhile_stays(make_store):
    path = make_store()
    before = everything(path)
    assert not remove_rowless(path)
    assert everything(path) == before
    (path / JOURNAL).write_bytes(b"")
    assert remove_rowless(path)
    assert not path.exists()


def test_of_a_link_the_link_goes_and_the_store_stays(make_store, tmp_path):
    path, link = make_store(), tmp_path / "link.actstore"
    link.symlink_to(path, target_is_directory=True)
    assert removable(link).target == path
    remove_store(link)
    assert not link.is_symlink()
    ActStore.open(path)


def test_a_store_that_links_lead_to_stays(make_store, tmp_path):
    path, known = make_store(), tmp_path / "known"
    known.mkdir()
    (known / "whole.actstore").symlink_to("../acts.actstore", target_is_directory=True)
    (known / "group.actstore").mkdir()
    (known / "group.actstore/data.zarr").symlink_to(path / "data.zarr", target_is_directory=True)
    (tmp_path / "same").symlink_to(tmp_path, target_is_directory=True)  # the store itself is there
    folders = (known, tmp_path / "same", tmp_path / "gone")
    with refused(StoreError, "is where .*group.actstore, .*whole.actstore lead: .* rm .*group.act"):
        remove_store(path, folders)
    ActStore.open(path)
    for link in ("group", "whole"):
        remove_store(known / f"{link}.actstore", folders)
    (tmp_path / "beside").symlink_to(path, target_is_directory=True)
    assert_refused(path, "is where .*beside leads: remove that first")
    remove_store(tmp_path / "beside")
    remove_store(path, folders)
    assert not path.exists()


def test_of_a_linked_group_the_link_goes_and_the_group_stays(make_store, tmp_path):
    path, other = make_store(), tmp_path / "other.actstore"
    other.mkdir()
    (other / "data.zarr").symlink_to(path / "data.zarr", target_is_directory=True)
    ActStore.open(other)
    remove_store(other)
    assert not other.exists()
    ActStore.open(path)


def test_the_folder_one_stands_in_can_be_removed(make_store, monkeypatch):
    path = make_store()
    monkeypatch.chdir(path)
    remove_store(Path())
    assert not path.exists()
