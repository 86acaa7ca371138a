import json
import logging
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline.config.training import TrainConfig
from pipeline.errors import ConfigError
from pipeline.runs.curves import METRICS, Curves, TrainReport
from pipeline.training import trackers as module
from pipeline.training.trackers import TOOLS, Loggers, make_loggers

ROOT = Path(__file__).parents[2]


def make_report(run: Path, step: int) -> TrainReport:
    return TrainReport(
        run=run, step=step, n_steps=99, rows=8 * step, loss=1 / step, recon=1.0, sparsity=0.0,
        aux=0.0, l0=2.0, l1=3.0, explained_variance=0.5, beta=1e-3, n_dead=4, n_resampled=0,
        lr=1e-4, sparse=step > 20, rows_per_s=100.0,
    )  # fmt: skip


def session(tool: str, runs: list[Path], steps: list[int], *, end: bool = True) -> None:
    """A process that trains: it goes on after the lines before its first step."""
    for run in runs:
        run.mkdir(parents=True, exist_ok=True)
        lines = (run / METRICS).read_bytes().splitlines(True) if (run / METRICS).exists() else []
        kept = b"".join(line for line in lines if json.loads(line)["step"] < steps[0])
        (run / METRICS).write_bytes(kept)
    configs = [TrainConfig(store=Path("s.actstore"), out=run, lr=1e-3) for run in runs]
    loggers = make_loggers([tool], configs)
    for step in steps:
        for run in runs:
            with Curves(run / METRICS, keep=2**30) as curves:
                curves.append(make_report(run, step))
            loggers.log(make_report(run, step))
    if end:
        loggers.close()


class Tiny:
    """A tool that remembers; what it has is kept by folder, as a tool on disk would."""

    package = "json"
    had: ClassVar[dict[Path, dict[int, dict[str, float]]]] = {}

    def __init__(self, config: TrainConfig, *, group: str | None, last: int) -> None:
        self.lines = self.had.setdefault(config.out, {})
        self.first = max(self.lines, default=-1) + 1
        self.group, self.last, self.closed = group, last, 0
        self.broken: Exception | None = None
        if config.seed == 13:
            raise OSError("no such\nserver")

    def put(self, values, step):
        if self.broken:
            raise self.broken
        assert step not in self.lines
        assert step > max(self.lines, default=-1)
        self.lines[step] = dict(values)

    def close(self):
        self.closed += 1
        if self.broken:
            raise self.broken


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(TOOLS, "tiny", Tiny)
    monkeypatch.setattr(Tiny, "had", {})
    return Tiny


def test_a_report_arrives_with_every_figure_of_its_line_under_its_step(tmp_path, tiny):
    run = tmp_path / "run"
    session("tiny", [run], [1, 10, 30])
    assert list(tiny.had[run]) == [1, 10, 30]
    (*_, line) = map(json.loads, (run / METRICS).read_text().splitlines())
    assert tiny.had[run][30] | {"step": 30} == line
    assert all(type(value) is float for value in tiny.had[run][30].values())


def test_each_member_of_a_sweep_is_a_run_of_its_own(tmp_path, tiny):
    runs = [tmp_path / "sweep" / f"seed={i}" for i in range(3)]
    session("tiny", runs, [1, 2])
    assert list(tiny.had) == runs
    assert all(list(lines) == [1, 2] for lines in tiny.had.values())


def test_steps_repeated_after_a_kill_are_not_sent_twice(tmp_path, tiny):
    run = tmp_path / "run"
    session("tiny", [run], [1, 10, 20, 30, 40], end=False)
    session("tiny", [run], [30, 40, 50])
    assert list(tiny.had[run]) == [1, 10, 20, 30, 40, 50]


def test_what_the_tool_lost_or_never_had_is_sent_first(tmp_path, tiny):
    run = tmp_path / "run"
    session("tiny", [run], [1, 10, 20, 30], end=False)
    del tiny.had[run][20], tiny.had[run][30]
    session("tiny", [run], [30, 40])
    assert list(tiny.had[run]) == [1, 10, 20, 30, 40]
    tiny.had.clear()
    session("tiny", [run], [50])
    assert list(tiny.had[run]) == [1, 10, 20, 30, 40, 50]


def test_a_folder_named_relatively_is_the_folder(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    session("tiny", [Path("run")], [1])
    session("tiny", [tmp_path / "run"], [2])
    assert {path: list(lines) for path, lines in tiny.had.items()} == {tmp_path / "run": [1, 2]}


def test_a_tool_that_cannot_start_is_an_error_one_that_breaks_is_dropped(tmp_path, tiny, caplog):
    bad = TrainConfig(store=Path("s"), out=tmp_path / "bad", seed=13)
    good = TrainConfig(store=Path("s"), out=tmp_path / "good")
    for config in (bad, good):
        config.out.mkdir()
        (config.out / METRICS).write_text("")
    loggers = make_loggers(["tiny"], [bad, good])
    with pytest.raises(ConfigError, match="^--log tiny cannot start: no such server$"):
        loggers.log(make_report(bad.out, 1))
    loggers.log(make_report(good.out, 1))
    (live,) = loggers._loggers.values()
    (track,) = live._tracks.values()
    track.broken = OSError(28, "No space left on device")
    with caplog.at_level(logging.WARNING):
        for step in (2, 3):
            loggers.log(make_report(good.out, step))
        loggers.close()
    assert [record.getMessage() for record in caplog.records] == [
        "--log tiny failed and is off from now on: [Errno 28] No space left on device"
    ]
    assert list(tiny.had[good.out]) == [1]
    assert track.closed == 1


class Shouting:
    """A logger that is no tool of ours."""

    def __init__(self, *, fails: bool = False) -> None:
        self.said: list[int] = []
        self.fails = fails

    def log(self, report: TrainReport) -> None:
        self.said.append(report.step)

    def close(self) -> None:
        if self.fails:
            raise ConnectionResetError("gone")


def test_loggers_that_fail_at_the_end_leave_a_warning_and_the_others_closed(tmp_path, caplog, tiny):
    first, second = Shouting(fails=True), Shouting()
    loggers = Loggers({"first": first, "second": second})
    loggers.log(make_report(tmp_path, 4))
    loggers.close()
    assert (first.said, second.said) == ([4], [4])
    assert [r.getMessage() for r in caplog.records] == [
        "--log first may lack the end of the curves: gone"
    ]
    loggers.close()  # closed already: nothing more to say
    assert len(caplog.records) == 1
    runs = [tmp_path / name for name in "ab"]
    session("tiny", runs, [1])
    live = make_loggers(["tiny"], [TrainConfig(store=Path("s"), out=run) for run in runs])
    for run in runs:
        live.log(make_report(run, 2))
    tracks = [*live._loggers["tiny"]._tracks.values()]
    tracks[1].broken = OSError("gone")
    live.close()
    assert [track.closed for track in tracks] == [1, 1]


def test_a_sweep_is_a_group_and_a_single_run_is_none(tmp_path, tiny):
    runs = [tmp_path / "sweep" / name for name in "ab"]
    session("tiny", runs, [1, 7])
    for configs, group in ((runs, "sweep"), (runs[:1], None)):
        live = make_loggers(["tiny"], [TrainConfig(store=Path("s"), out=run) for run in configs])
        live.log(make_report(runs[0], 8))
        (track,) = live._loggers["tiny"]._tracks.values()
        assert (track.group, track.last) == (group, 7)
        tiny.had[runs[0]].pop(8)


def test_no_tool_is_no_logger_and_writes_nothing(tmp_path):
    loggers = make_loggers([], [TrainConfig(store=Path("s"), out=tmp_path)])
    loggers.log(make_report(tmp_path, 1))
    loggers.close()
    assert not [*tmp_path.iterdir()]


def test_an_unknown_or_missing_tool_is_one_line_that_says_what_to_type(monkeypatch):
    with pytest.raises(ConfigError, match="^--log knows tensorboard, wandb, trackio, got"):
        make_loggers(["mlflow"], [])
    for name in TOOLS:

        def absent(package):
            raise ModuleNotFoundError(package)

        monkeypatch.setattr(module, "import_module", absent)
        with pytest.raises(ConfigError) as caught:
            make_loggers([name], [])
        assert str(caught.value) == f"--log {name} needs {name}: pip install 'saepipe[{name}]'"


# --- the tools themselves, each read back by other code than wrote it ------------------------


def tool(name: str):
    there = find_spec(name) is not None
    return pytest.mark.skipif(not there, reason=f"pip install 'saepipe[{name}]' to run this")


def run_sessions(name: str, root: Path, *, killed: bool = True, **environment: str) -> list[Path]:
    """Two members: stopped after 40, resumed after 20; each session in a process of its own."""
    runs = [root / "sweep" / f"seed={i}" for i in range(2)]
    for steps, end in (([1, 10, 20, 30, 40], not killed), ([30, 40, 50], True)):
        code = (
            "import os; from pathlib import Path; from tests.training.test_trackers import session;"
            f"session({name!r}, [Path(p) for p in {[*map(str, runs)]}], {steps}, end={end});"
            f"os._exit(0) if not {end} else None"
        )
        env = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_")} | environment
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            check=False, cwd=ROOT, capture_output=True, text=True, env=env,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    return runs


ALL_STEPS = [1, 10, 20, 30, 40, 50]


@tool("tensorboard")
@pytest.mark.slow
def test_tensorboard_shows_each_step_once_and_the_config(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run in run_sessions("tensorboard", tmp_path):
        events = EventAccumulator(str(run)).Reload()
        assert [event.step for event in events.Scalars("loss")] == ALL_STEPS
        assert [event.value for event in events.Scalars("sparse")] == [0, 0, 0, 1, 1, 1]
        assert events.Scalars("loss")[4].value == pytest.approx(1 / 40)
        (text,) = events.Tensors("config/text_summary")
        assert b'"lr": 0.001' in text.tensor_proto.string_val[0]


@tool("trackio")
@pytest.mark.parametrize("killed", [False, True])
def test_trackio_holds_each_step_once(tmp_path, killed):
    runs = run_sessions("trackio", tmp_path, killed=killed, TRACKIO_DIR=str(tmp_path / "db"))
    with sqlite3.connect(tmp_path / "db" / "saepipe.db") as database:
        rows = database.execute(
            "SELECT run_name, step, metrics FROM metrics ORDER BY id"
        ).fetchall()
        configs = database.execute("SELECT run_name, config FROM configs").fetchall()
    names = {name for name, _, _ in rows}
    assert len(names) == len({name for name, _ in configs}) == 2
    for run in runs:
        identity = json.loads((run / "loggers.json").read_text())["id"]
        lines = [(s, json.loads(m)) for name, s, m in rows if name == f"{run.name}-{identity}"]
        assert [step for step, _ in lines] == ALL_STEPS
        assert [line["loss"] for _, line in lines] == [1 / step for step in ALL_STEPS]
    assert {json.loads(config)["_Group"] for _, config in configs} == {"sweep"}
    assert {json.loads(config)["lr"] for _, config in configs} == {1e-3}


def records_of(path: Path):
    """Records of a file in the log format of LevelDB, after a header of 7 bytes."""
    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:  # no header fits into the rest of a block
            at += 2**15 - at % 2**15
            continue
        length, part = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if part in (1, 4):  # whole, or the last part
            yield record
            record = b""


@tool("wandb")
def test_the_newest_offline_run_of_wandb_is_whole(tmp_path):
    from wandb.proto import wandb_internal_pb2 as protocol

    nowhere = {"HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")}
    runs = run_sessions("wandb", tmp_path, **nowhere)
    for run in runs:
        identity = json.loads((run / "loggers.json").read_text())["id"]
        folders = sorted((run / "wandb").glob(f"offline-run-*-{identity}"))
        steps, losses, told = [], [], []
        for data in records_of(folders[-1] / f"run-{identity}.wandb"):
            record = protocol.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                items = {i.key or i.nested_key[0]: i.value_json for i in record.history.item}
                steps.append(int(items["_step"]))
                losses.append(json.loads(items["loss"]))
            elif record.WhichOneof("record_type") == "run":
                told.append((record.run.display_name, record.run.run_group, record.run.project))
        assert steps == ALL_STEPS
        assert losses == [1 / step for step in ALL_STEPS]
        assert set(told) == {(run.name, "sweep", "saepipe")}
