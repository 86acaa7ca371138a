"""What stands in a sweep's folder, taken for its runs."""

import json
import shutil
from pathlib import Path

import pytest

from pipeline.errors import CheckpointError, ConfigError
from pipeline.runs.sweep import SweepDocument, runs_at
from tests.golden.make_store import OLD
from tests.helpers.refusals import refused

RUN = OLD.parent / "runs" / "read"
STATES = {
    "c": {}, "a": {}, "b": {"sha256": ""}, "d": {"sha256": "", "failure": "the loss is NaN"},
}  # fmt: skip


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Of five members: two are done, one is not, one diverged, one is no longer there."""
    folder = tmp_path / "s"
    for name, changes in STATES.items():
        shutil.copytree(RUN, folder / name)
        told = json.loads((RUN / "run.json").read_text())
        (folder / name / "run.json").write_text(json.dumps(told | changes))
    SweepDocument(members=(*STATES, "gone"), varies=("seed",)).write(folder)
    for name in ("sweep.csv", "frontier.png"):
        (folder / name).touch()
    return folder


def test_a_sweep_is_its_finished_runs_and_the_others_are_told(sweep):
    told = list[str]()
    assert runs_at([sweep], note=told.append) == (sweep / "c", sweep / "a")
    assert told == [
        f"{sweep}/b is left out: unfinished",
        f"{sweep}/d is left out: diverged: the loss is NaN",
        f"{sweep}/gone is left out: not there",
    ]


def test_what_a_shell_makes_of_all_in_a_sweep_is_its_runs(sweep):
    assert runs_at(sorted(sweep.iterdir())) == tuple(sweep / name for name in "abcd")


def test_runs_and_files_that_are_of_no_sweep_stay(sweep, tmp_path):
    (tmp_path / "ae.pt").touch()
    given = (tmp_path / "ae.pt", tmp_path / "nowhere", sweep / "b")
    assert runs_at(given) == given
    assert runs_at([given[0], sweep, RUN], note=lambda _: None) == (
        given[0], sweep / "c", sweep / "a", RUN,
    )  # fmt: skip


def test_a_sweep_of_which_nothing_is_done_and_a_damaged_one_are_one_line(sweep):
    SweepDocument(members=("b", "d")).write(sweep)
    with refused(ConfigError, "no run of the sweep .*s is finished; b: unfinished$"):
        runs_at([sweep])
    (sweep / "sweep.json").write_text("[")
    with refused(CheckpointError, "sweep.json is damaged"):
        runs_at([sweep])


def test_a_sweep_of_no_run_is_one_line(tmp_path):
    (tmp_path / "sweep.json").write_text("{}")
    with refused(CheckpointError, "sweep.json is damaged: it names no run"):
        runs_at([tmp_path])
