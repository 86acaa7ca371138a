"""Another kind of run takes a file of its own and one line: every command takes its runs."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from actstore.reader import ActStore
from pipeline.config.grid import expand
from pipeline.config.stages import EvalConfig, FeaturesConfig, ReportConfig
from pipeline.errors import CheckpointError
from pipeline.evaluate.evaluate import draw
from pipeline.runs.curves import StepReport
from pipeline.runs.kinds import KINDS, RunKind, kind_named, kind_of
from pipeline.terminal.commands import run_eval, run_features, run_report
from pipeline.terminal.screen import Screen
from pipeline.training.train import train, train_all
from pipeline.verbs import plot
from tests.helpers.toy_kind import MEANS, OTHERS, MeanConfig, MeanRun, OtherRun, make_run
from tests.helpers.training import result, write_rows


@pytest.fixture
def store(tmp_path) -> ActStore:
    x = np.random.default_rng(0).standard_normal((1024, 8)).astype(np.float32) + 3
    return ActStore.open(write_rows(tmp_path / "a.actstore", x))


@pytest.fixture
def runs(store, tmp_path, monkeypatch) -> list[Path]:
    monkeypatch.setitem(KINDS, "mean", "tests.helpers.toy_kind:MEANS")  # the one line
    return [make_run(tmp_path / name, store).path for name in ("one", "two")]


def test_it_is_trained_alone_in_a_sweep_and_after_a_stop(store, tmp_path, monkeypatch):
    monkeypatch.setitem(KINDS, "mean", "tests.helpers.toy_kind:MEANS")
    settings = {
        "store": str(store.path), "batch_size": 64, "tokens": 2560, "lr": [0.2, 0.0002],
        "log_every": 1, "device": "cpu", "checkpoint_every": 40,
    }  # fmt: skip
    swift, slow = expand(settings, out=tmp_path / "grid", kind=MeanConfig)
    whole = train(replace(swift.config, out=tmp_path / "whole"))
    mean = load_file(tmp_path / "whole" / MeanRun.WEIGHTS)["mean"]
    np.testing.assert_allclose(mean, store.mean(store.sites[0]), atol=0.2)
    assert (whole.step, whole.reused) == (40, False) and whole.loss < 9
    assert train(replace(swift.config, out=tmp_path / "whole")).reused

    def stop(report: StepReport) -> None:
        if report.step == 7:
            raise KeyboardInterrupt

    stopped = replace(swift.config, out=tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        train(stopped, on_step=stop)
    train(stopped)
    assert result(stopped.out) == result(tmp_path / "whole")

    outcomes = train_all([swift.config, slow.config])
    assert outcomes[0].loss == whole.loss < outcomes[1].loss
    assert result(swift.config.out) == result(tmp_path / "whole")


def test_eval_evaluates_shows_and_draws_it(runs, capsys):
    one, two = run_eval(EvalConfig(runs=tuple(runs)), screen=Screen())
    assert (one.run, two.run) == tuple(runs) and one.norm == pytest.approx(3 * 8**0.5, rel=0.05)
    out = capsys.readouterr().out
    assert "2 means" in out and "means.csv, norms.svg" in out
    assert "its norm" in out and "note: a mean is one vector" in out
    assert not (runs[1] / "norm.svg").exists()
    drawn = {path.name for path in plot(runs)}
    assert drawn == {"norm.svg", "norms.svg"}
    run_eval(EvalConfig(runs=(runs[0],)), screen=Screen())
    assert "report and figures" in capsys.readouterr().out


def test_tables_of_several_kinds_lie_where_all_their_runs_do(
    runs, store, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(KINDS, "other", "tests.helpers.toy_kind:OTHERS")
    below = [make_run(tmp_path / "below" / name, store, OtherRun).path for name in ("a", "b")]
    config = EvalConfig(runs=(below[0], runs[0], below[1]))
    reports = run_eval(config, screen=Screen())
    assert f"2 means: {tmp_path}/means.csv, norms.svg" in capsys.readouterr().out
    assert [report.run for report in reports] == list(config.runs)
    assert (tmp_path / "means.csv").read_text() == "a\nb"
    assert not (tmp_path / "below" / "means.csv").exists()
    drawn = {MEANS: (runs[0] / "norm.svg",), OTHERS: (tmp_path / "norms.svg",)}
    assert draw(config, reports) == drawn


def test_features_finds_and_shows_it(runs, capsys):
    config = FeaturesConfig(run=runs[0])
    (document,) = run_features(config, [7], order="max", rows=5, screen=Screen())
    assert document == {"chosen": [7]}
    assert "5 rows of one by max" in capsys.readouterr().out


def test_a_page_makes_what_is_missing_and_shows_it(runs, tmp_path):
    page = run_report(ReportConfig(runs=(runs[0],), out=tmp_path / "page.html"), screen=Screen())
    assert (runs[0] / "norm.txt").exists() and (runs[0] / "found.txt").exists()
    text = page.read_text()
    assert "Report of means" in text and "one is 8.4" in text


def test_without_its_line_it_is_refused_by_name(runs, monkeypatch):
    monkeypatch.delitem(KINDS, "mean")
    with pytest.raises(CheckpointError, match="is a mean run, and this saepipe knows sae, "):
        kind_of(runs[0])


@pytest.mark.parametrize("name", KINDS)
def test_everything_that_a_kind_names_is_there(name):
    kind = kind_named(name)
    assert isinstance(kind, RunKind)
    wanted = RunKind.__annotations__
    assert set(wanted) <= set(dir(kind))
    for attribute, hint in wanted.items():
        if "Lazy" in str(hint):
            assert callable(getattr(kind, attribute).get()), attribute
