import json
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from unittest.mock import Mock

import pytest

from pipeline.config.grid import Point, expand
from pipeline.errors import CheckpointError, ConfigError
from pipeline.runs.curves import NOT_IN_LINES, Curves, TrainReport
from pipeline.runs.folder import training_in
from pipeline.training import sweep
from pipeline.training.sweep import write_table
from tests.helpers.training import make_report, read_table


def make_points(out: Path, **settings: object) -> tuple[Point, ...]:
    swept = settings or {"arch": {"kind": ["relu", "topk"], "l1": [0.1, 0.2]}}
    return expand({"store": "s.actstore"} | swept, out=out)


def enter_sweep(path: Path, points: tuple[Point, ...]) -> None:
    with ExitStack() as locks:
        sweep.enter_sweep(path, points, locks=locks)


def append_line(folder: Path, *, step: int, **changes: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.jsonl"
    with Curves(path, keep=path.stat().st_size if path.exists() else 0) as curves:
        curves.append(make_report(folder, step, **changes))


def states_of(points: tuple[Point, ...], **states: str) -> dict[str, str]:
    return {point.name: "running" for point in points} | states


def test_a_sweep_is_entered_again_and_what_a_kill_left_of_its_file_is_no_obstacle(tmp_path):
    (tmp_path / "sweep.json.partial").write_text('{"form')
    for _ in range(2):
        enter_sweep(tmp_path, make_points(tmp_path))
        assert json.loads((tmp_path / "sweep.json").read_text()) == {
            "format": 1, "kind": "sweep", "varies": ["arch", "l1"],
            "members": ["relu+l1=0.1", "relu+l1=0.2", "topk"],
        }  # fmt: skip


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"seed": [0, 1]}, "only there: seed=2; only now: seed=1"),
        ({"seed": [0, 1, 2]}, "only now: seed=1"),
        ({"seed": list(range(9))}, r"only now: seed=1, seed=3, seed=4 and 4 more"),
    ],
)
def test_another_sweep_in_the_folder_is_refused_in_one_line(tmp_path, other, said):
    out = tmp_path / "sweep"
    enter_sweep(out, make_points(out, seed=[0, 2]))
    before = (out / "sweep.json").read_bytes()
    with pytest.raises(ConfigError, match=rf"sweep of other members \({said}\): choose [^\n]*$"):
        enter_sweep(out, make_points(out, **other))
    assert (out / "sweep.json").read_bytes() == before


def test_a_sweep_that_is_being_trained_is_left_alone(tmp_path):
    with training_in(tmp_path), pytest.raises(ConfigError, match="trained into by process"):
        enter_sweep(tmp_path, make_points(tmp_path))
    assert not (tmp_path / "sweep.json").exists()


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path):
    points = make_points(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a single run, not a sweep: choose another --out"):
        enter_sweep(tmp_path, points)
    (tmp_path / "run.json").rename(tmp_path / "thesis.tex")
    with pytest.raises(ConfigError, match="exists and is not a sweep: choose another --out"):
        enter_sweep(tmp_path, points)
    with pytest.raises(ConfigError, match="exists and is not a sweep"):
        enter_sweep(tmp_path / "thesis.tex", points)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "sweep.json is damaged: "),
        ('{"format": 1, "kind": "sae"}', "sweep.json is damaged: sweep.json.kind must be"),
        ('{"format": 2, "members": []}', "is a sweep of format 2, this saepipe reads 1"),
        ('{"members": [3]}', "damaged: sweep.json.members[0] must be text, got 3"),
    ],
)
def test_a_damaged_sweep_is_one_line(tmp_path, content, message):
    (tmp_path / "sweep.json").write_text(content)
    with pytest.raises(CheckpointError) as caught:
        enter_sweep(tmp_path, make_points(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_table_has_a_line_a_member_with_what_varies_and_its_last_curves(tmp_path):
    points = make_points(tmp_path)
    for step in (1, 5):
        append_line(points[0].config.out, step=step, loss=0.1 + step)
    append_line(points[2].config.out, step=3, loss=0.1 + 0.2)
    with (points[2].config.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # a line that is being written
    told = 'diverged: the loss is nan, at "step" 4'
    states = states_of(points, topk=told) | {points[0].name: "complete"}
    write_table(tmp_path, points, states=states)
    complete, running, diverged = read_table(tmp_path)
    measured = ["last_" + f.name for f in fields(TrainReport) if f.name not in NOT_IN_LINES]
    assert list(complete) == ["folder", "state", "arch", "l1", *measured]
    assert (complete["folder"], complete["state"]) == ("relu+l1=0.1", "complete")
    assert (complete["arch"], complete["l1"]) == ("relu", "0.1")
    line = json.loads((points[0].config.out / "metrics.jsonl").read_text().splitlines()[-1])
    assert {k[5:]: v for k, v in complete.items() if k in measured} == {
        name: str(value) for name, value in line.items()
    }
    assert (running["state"], running["l1"], running["last_step"]) == ("running", "0.2", "")
    assert (diverged["state"], diverged["last_step"], diverged["l1"]) == (told, "3", "")
    assert float(diverged["last_loss"]) == 0.1 + 0.2


def test_lists_and_what_is_left_open_have_cells_too(tmp_path):
    points = make_points(tmp_path, ema=[0.5, None], exclude_positions=[[], [0, 1]])
    write_table(tmp_path, points, states=states_of(points))
    cells = [(row["ema"], row["exclude_positions"]) for row in read_table(tmp_path)]
    assert cells == [("0.5", ""), ("none", ""), ("0.5", "0 1"), ("none", "0 1")]


def test_only_the_end_of_long_curves_is_read(tmp_path):
    points = make_points(tmp_path, seed=[0, 1])
    folder = points[0].config.out
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("not JSON\n" + '{"step": 7}\n' * 20_000 + '{"step": 8}\n')
    write_table(tmp_path, points, states=states_of(points))
    assert [row["last_step"] for row in read_table(tmp_path)] == ["8", ""]


def test_damaged_curves_are_one_line(tmp_path):
    points = make_points(tmp_path, seed=[0, 1])
    append_line(points[0].config.out, step=1)
    (points[0].config.out / "metrics.jsonl").write_text("not JSON\n")
    with pytest.raises(CheckpointError, match=r"cannot read the curves in .*metrics\.jsonl"):
        write_table(tmp_path, points, states=states_of(points))


def test_a_table_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    points = make_points(tmp_path, seed=[0, 1])
    write_table(tmp_path, points, states=states_of(points))
    before = (tmp_path / "sweep.csv").read_bytes()
    append_line(points[0].config.out, step=1)
    full = Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr("actstore.files.write_all", full)
    with pytest.raises(OSError, match="No space left"):
        write_table(tmp_path, points, states=states_of(points))
    assert (tmp_path / "sweep.csv").read_bytes() == before
