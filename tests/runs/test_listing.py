"""The runs below a folder, told at a glance."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import ConfigError
from pipeline.runs.listing import list_runs
from pipeline.terminal.runs import runs_table
from pipeline.verbs import runs
from tests.golden.make_store import OLD

GOLDEN = OLD.parent


@pytest.fixture
def folder(tmp_path) -> Path:
    """Runs of all states, in the order in which they were made."""
    shutil.copytree(GOLDEN / "runs", tmp_path, dirs_exist_ok=True)
    shutil.copy(GOLDEN / "eval.json", tmp_path / "read")
    told = json.loads((tmp_path / "read/run.json").read_text())
    made = {
        "sweep/begun": json.dumps(told | {"sha256": ""}),
        "sweep/lost": json.dumps(told | {"sha256": "", "failure": "the loss is NaN"}),
        "cut": json.dumps(told)[:50],
        "foreign": '{"config": {}}',
        "list": "[]",
        ".hidden": "{",
        "acts.actstore/data.zarr/site": "{",
        "read/checkpoints/inside": "{",
    }
    for name, content in made.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").write_text(content)
    (tmp_path / "sweep/begun/metrics.jsonl").write_text('{"step": 12}\n')
    for second, name in enumerate(("read", "map", *made)):
        os.utime(tmp_path / name / "run.json", (second, second))
    return tmp_path


def test_each_run_is_a_row_and_what_is_damaged_says_so(folder):
    found = list_runs(folder)
    names = [str(run.path.relative_to(folder)) for run in found]
    assert names == ["read", "map", "sweep/begun", "sweep/lost", "cut", "foreign", "list"]
    states = [run.state for run in found]
    assert states[:4] == ["finished", "finished", "unfinished", "diverged: the loss is NaN"]
    assert all(state.startswith("damaged: ") and "\n" not in state for state in states[4:])
    read, between, begun = found[:3]
    assert (read.kind, read.arch, read.site) == ("sae", "topk", "mlp_out.1")
    assert (between.kind, between.site) == ("connector", "resid.0 to mlp_out.1")
    assert read.l0 == 12.202380952380953, "of its evaluation"
    assert (read.loss_recovered, read.loss_added) == (2.3902541479425805, None)
    assert (begun.l0, begun.steps) == (None, 12)
    (folder / "read/eval.json").unlink()
    assert list_runs(folder)[0].l0 == 3.0, "of its curves"
    assert runs(folder / "sweep") == found[2:4]
    with pytest.raises(ConfigError, match="is not a folder"):
        list_runs(folder / "read/run.json")


def test_what_an_interrupted_fine_tuning_left_is_told_whatever_state_it_is_in(tmp_path):
    out = tmp_path / "tuned.partial"
    for step in ("step-000000003", "step-000000007.partial"):
        (out / "checkpoints" / step).mkdir(parents=True)
    for begun, state in (("{}", "unfinished"), ("[]", "damaged: begun.json is not that of a run")):
        (out / "begun.json").write_text(begun)
        (one,) = list_runs(tmp_path)
        assert (one.path, one.state) == (out, state)
    (out / "begun.json").write_text("{}")
    for curves in ("", '{"step": 9}\n'):  # the curves are written when it is over
        (out / "metrics.jsonl").write_text(curves)
        assert [(one.kind, one.steps) for one in list_runs(tmp_path)] == [("finetune", 3)]


def test_the_command_shows_them_and_gives_them_to_programs(folder, succeeds, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    out, _ = succeeds("runs", folder)
    (line,) = (line for line in out.splitlines() if line.startswith("map "))
    assert "connector relu resid.0 to mlp_out.1 1970-01-01" in line, "in a file, a line is a run"
    assert "unfinished, 12 steps made" in out
    monkeypatch.setenv("COLUMNS", "80")
    out, _ = succeeds("runs", folder)
    assert max(map(len, out.splitlines())) <= 80
    for words in ("sweep/begun", "unfinished", "resid.0", "12.2", "2.39"):
        assert words in out
    found = json.loads(succeeds("runs", folder, "--json", "-")[0])
    assert [one["state"] for one in found[:3]] == ["finished", "finished", "unfinished"]
    empty = folder / "empty"
    empty.mkdir()
    assert f"no run in {empty}" in succeeds("runs", empty)[0]


def test_what_runs_were_evaluated_on_is_said_once_or_of_each(folder):
    report = (folder / "read/eval.json").read_text()
    for name, text in (("read", "one.txt"), ("sweep/lost", "one.txt")):
        (folder / name / "eval.json").write_text(report.replace('"a.txt"', f'"{text}"'))
    same = runs_table(folder, list_runs(folder))
    assert same.title == f"runs in {folder}; evaluated on one.txt"
    (folder / "read/eval.json").write_text(report)
    table = runs_table(folder, list_runs(folder))
    assert (table.title, table.columns[-1].head) == (f"runs in {folder}", "on")
    on = {str(row[0]): row[-1] for row in table.sections[0]}
    assert (on["read"], on["sweep/lost"], on["map"]) == ("a.txt", "one.txt", "-")


def test_they_are_read_without_what_is_slow_to_import():
    heavy = {"torch", "numpy", "numcodecs"}
    code = f"import pipeline.terminal.runs, sys; sys.exit(bool({heavy!r} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_numbers_of_another_run_are_not_its_own(folder):
    read, told = folder / "read", json.loads((folder / "read/run.json").read_text())
    report = (read / "eval.json").read_text()

    def shown(*, of: str, curves: str) -> float | None:
        (read / "eval.json").write_text(report.replace("{\n", f'{{\n"sha256": "{of}",\n', 1))
        (read / "run.json").write_text(json.dumps(told | {"curves_sha256": curves}))
        (run,) = list_runs(read)
        return run.l0

    own = hashlib.sha256((read / "metrics.jsonl").read_bytes()).hexdigest()
    assert shown(of=told["sha256"], curves=own) == 12.202380952380953
    assert shown(of="0" * 64, curves=own) == 3.0, "of its curves"
    assert shown(of="0" * 64, curves="") == 3.0, "it does not say whether they are"
    assert shown(of="0" * 64, curves="0" * 64) is None
