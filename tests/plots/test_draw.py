"""`saepipe plot`: what there is to draw of some runs, from their folders alone."""

import json
from pathlib import Path

import pytest

from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluate.report import save_report
from pipeline.plots import style
from pipeline.plots.draw import draw
from pipeline.runs.sweep import SweepDocument
from pipeline.verbs import plot
from tests.helpers.eval_reports import make_report
from tests.helpers.refusals import refused
from tests.helpers.tiny import make_sae, save_sae

LINE = json.dumps({"step": 1, "rows": 64, "l0": 3.0, "explained_variance": 0.5, "loss": 1.0})
CURVES = {"curves.png", "curves.svg"}
EVALUATION = {
    f"{name}.{end}"
    for name in ("density", "encoder_decoder", "dead_cosine")
    for end in ("png", "svg")
}


@pytest.fixture(autouse=True)
def unrendered(monkeypatch):
    """Figures are composed and not rendered, which takes most of the time."""
    monkeypatch.setattr(style, "_FORMATS", dict.fromkeys(style._FORMATS, lambda _: b"drawn"))


def make_run(path: Path, *, curves: str = f"{LINE}\n", evaluated: bool = False) -> Path:
    save_sae(path, make_sae(), model="builtin")
    (path / "metrics.jsonl").write_text(curves)
    if evaluated:
        save_report(make_report(path))
    return path


def names(files: tuple[Path, ...], folder: Path) -> set[str]:
    assert all(file.read_bytes() == b"drawn" for file in files)
    return {file.relative_to(folder).as_posix() for file in files}


def test_curves_and_the_evaluation_of_a_run_are_drawn_into_its_folder(tmp_path):
    run = make_run(tmp_path / "run")
    assert names(plot(run), run) == CURVES
    save_report(make_report(run))
    assert names(plot(str(run)), run) == CURVES | EVALUATION


def test_what_compares_several_is_drawn_where_they_lie(tmp_path):
    runs = [make_run(tmp_path / name, evaluated=True) for name in ("a", "b")]
    runs += [make_run(tmp_path / "c")]
    drawn = names(plot(runs), tmp_path)
    assert {"frontier.png", "frontier.svg", "c/curves.png", "b/density.svg"} <= drawn
    assert "c/density.png" not in drawn
    assert not any("frontier" in name for name in names(plot(runs[1:]), tmp_path))


def test_a_sweep_is_its_members_as_far_as_they_have_come(tmp_path):
    sweep = tmp_path / "sweep"
    for name, curves in (("k=1", f"{LINE}\n"), ("k=2", f"{LINE}\n" * 2), ("k=3", "")):
        make_run(sweep / name, curves=curves)
    SweepDocument(members=("k=1", "k=2", "k=3", "k=4")).write(sweep)
    told = {f"{name}/{file}" for name in ("k=1", "k=2") for file in CURVES}
    assert names(plot(sweep), sweep) == told | {"sweep.png", "sweep.svg"}


def test_what_cannot_be_drawn_says_why(tmp_path):
    bare = make_run(tmp_path / "bare", curves="")
    with refused(ConfigError, "bare has nothing to draw yet: no line of its curves"):
        draw([bare])
    empty = tmp_path / "empty"
    empty.mkdir()
    for path in (empty, tmp_path / "gone"):
        with refused(CheckpointError, f"{path.name} is not a run: type saepipe plot RUN"):
            draw([path])
    with refused(ConfigError, "there is no run to draw"):
        plot([])
    (empty / "run.json").write_text("{")
    with refused(CheckpointError, "empty is not a run: run.json is damaged"):
        draw([empty])
    (empty / "run.json").unlink()
    SweepDocument(members=("a",)).write(empty)
    with refused(ConfigError, "nothing to draw yet"):
        draw([empty])
    with refused(CheckpointError, "damaged"):
        (empty / "sweep.json").write_text("{")
        draw([empty])


@pytest.mark.parametrize("file", ["eval.json", "metrics.jsonl", "gone"])
def test_nothing_is_drawn_before_all_can_be(tmp_path, file):
    whole, run = (make_run(tmp_path / name, evaluated=True) for name in ("a", "b"))
    told = json.loads((run / "run.json").read_text()) | {"curves_sha256": "f" * 64}
    if file == "gone":
        (run / "run.json").write_text(json.dumps(told))  # its curves are others now
    else:
        (run / file).write_text('{"l0": {}}\n')
    with pytest.raises(CheckpointError) as said:
        draw([whole, run])
    assert "\n" not in str(said.value)
    assert file != "metrics.jsonl" or "metrics.jsonl is damaged" in str(said.value)
    assert file == "metrics.jsonl" or not [*whole.glob("*.png")]
