"""A disk that is full: which file, how large it is, and how to go on."""

import errno
from unittest.mock import Mock

import pytest

import cli
from actstore.files import write_file
from pipeline.disk import full_disk_told, why_unwritable, writing
from pipeline.errors import CheckpointError
from tests.helpers.crashing import files_up_to
from tests.helpers.refusals import refused

GO_ON = "make room there, then the same command goes on; what was written before is whole and kept"
FULL = OSError(errno.ENOSPC, "No space left on device")
GONE = FileNotFoundError(errno.ENOENT, "No such file or directory", "b")


def test_a_file_that_did_not_fit_is_named_with_its_size(tmp_path):
    with (
        files_up_to(1000),
        refused(CheckpointError, f"^{tmp_path / 'a'}: File too large \\(3,000 bytes\\): {GO_ON}$"),
        full_disk_told(),
    ):
        write_file(tmp_path / "a", [b"0" * 2000, b"1" * 1000])
    assert not [*tmp_path.iterdir()]


def test_a_file_in_the_place_of_a_folder_is_not_for_the_same_command_to_mend(tmp_path):
    (tmp_path / "file").touch()
    told = f"^{tmp_path / 'file'} is a file where a folder is needed: name another path$"
    with refused(CheckpointError, told), writing(tmp_path / "file" / "x"):
        (tmp_path / "file" / "x").write_text("")


def test_what_else_a_system_says_is_not_taken_for_a_full_disk():
    with pytest.raises(FileNotFoundError), full_disk_told():
        raise GONE


def test_a_folder_on_a_full_disk_is_not_one_that_may_only_be_read(tmp_path, monkeypatch):
    """The one is said, and mended; the other is gone without."""
    monkeypatch.setattr("pipeline.disk.TemporaryFile", Mock(side_effect=FULL))
    with refused(CheckpointError, f"^{tmp_path}: No space left on device: {GO_ON}$"):
        why_unwritable(tmp_path)
    monkeypatch.setattr("pipeline.disk.TemporaryFile", Mock(side_effect=GONE))
    assert why_unwritable(tmp_path) == "No such file or directory"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (FULL, f"No space left on device: {GO_ON}"),
        (GONE, "b: No such file or directory"),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", f"{__file__}/x/y"),
            f"{__file__} is a file where a folder is needed: name another path",
        ),
    ],
    ids=["full", "gone", "file"],
)
def test_the_command_line_says_it_in_one_line(saepipe, monkeypatch, error, said):
    def app(**_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "app", app)
    assert saepipe("eval", "r") == (1, "", f"error: {said}\n")
