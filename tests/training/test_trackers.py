import json
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar
from unittest.mock import Mock

import pytest

from pipeline.config.serialization import to_json
from pipeline.config.training import TrainConfig
from pipeline.errors import ConfigError
from pipeline.runs.belongs import RUN
from pipeline.runs.curves import METRICS, Curves
from pipeline.runs.sae_run import SAERun
from pipeline.training.trackers import TOOLS, Loggers
from pipeline.training.train import train
from tests.helpers.training import config_of, make_report, make_training_store

ROOT = Path(__file__).parents[2]


def session(tool: str, runs: list[Path], steps: list[int], *, end: bool = True) -> None:
    """A process that trains: it goes on after the lines before its first step."""
    for run in runs:
        enter(run)
        lines = (run / METRICS).read_bytes().splitlines(True) if (run / METRICS).exists() else []
        kept = b"".join(line for line in lines if json.loads(line)["step"] < steps[0])
        (run / METRICS).write_bytes(kept)
    loggers = Loggers([tool], runs)
    for step in steps:
        for run in runs:
            path = run / METRICS
            with Curves(path, keep=path.stat().st_size if path.exists() else 0) as curves:
                curves.append(make_report(run, step))
            loggers.log(make_report(run, step))
    if end:
        loggers.close()


def enter(run: Path, **settings: object) -> None:
    """The folder of a run that is to begin."""
    run.mkdir(parents=True, exist_ok=True)
    config = TrainConfig(**{"store": Path("s.actstore"), "out": run, "lr": 1e-3} | settings)
    (run / RUN).write_text(json.dumps({"config": to_json(config)}))


class Tiny:
    """A tool that remembers; what it has is kept by folder, as a tool on disk would."""

    package = "json"
    had: ClassVar[dict[Path, dict[int, dict[str, float]]]] = {}
    tracks: ClassVar[list["Tiny"]] = []

    def __init__(
        self, run: Path, settings: dict[str, object], *, group: str | None, last: int
    ) -> None:
        self.lines = self.had.setdefault(run, {})
        self.settings = settings
        self.first = max(self.lines, default=-1) + 1
        self.group, self.last, self.closed = group, last, 0
        self.broken: Exception | None = None
        self.tracks.append(self)
        if settings["seed"] == 13:
            raise OSError("no such\nserver")

    def put(self, values, step):
        if self.broken:
            raise self.broken
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
    monkeypatch.setattr(Tiny, "tracks", [])
    return Tiny


def test_each_member_of_a_sweep_is_a_run_with_every_figure_of_its_lines(tmp_path, tiny):
    runs = [tmp_path / "sweep" / f"seed={i}" for i in range(3)]
    session("tiny", runs, [1, 10, 30])
    assert list(tiny.had) == runs
    for run, sent in tiny.had.items():
        assert list(sent) == [1, 10, 30]
        (*_, line) = map(json.loads, (run / METRICS).read_text().splitlines())
        assert sent[30] | {"step": 30} == line
        assert all(type(value) is float for value in sent[30].values())


def test_a_tool_is_told_the_settings_that_the_run_has_and_not_those_left_open(tmp_path, tiny):
    config = config_of(make_training_store(tmp_path / "s"), tmp_path / "run", lr=None, steps=4)
    loggers = Loggers(["tiny"], [config.out])
    train(config, on_step=loggers.log)
    (track,) = tiny.tracks
    assert track.settings["lr"] == SAERun.open(config.out).config.lr is not None


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


def loggers_for(*runs: Path, **settings) -> Loggers:
    """For runs whose curves have no lines yet."""
    for run in runs:
        enter(run, **settings)
        (run / METRICS).touch()
    return Loggers(["tiny"], runs)


def test_a_tool_that_cannot_start_is_an_error_in_one_line(tmp_path, tiny):
    loggers = loggers_for(tmp_path, seed=13)
    with pytest.raises(ConfigError, match="^--log tiny cannot start: no such server$"):
        loggers.log(make_report(tmp_path, 1))


def test_a_tool_that_breaks_is_dropped_with_a_warning(tmp_path, tiny, caplog):
    loggers = loggers_for(tmp_path)
    loggers.log(make_report(tmp_path, 1))
    (track,) = tiny.tracks
    track.broken = OSError(28, "No space left on device")
    for step in (2, 3):
        loggers.log(make_report(tmp_path, step))
    loggers.close()
    assert caplog.messages == [
        "--log tiny failed and is off from now on: [Errno 28] No space left on device"
    ]
    assert list(tiny.had[tmp_path]) == [1]
    assert track.closed == 1


def test_a_run_that_fails_at_the_end_leaves_a_warning_and_the_others_closed(
    tmp_path, caplog, tiny, monkeypatch
):
    monkeypatch.setitem(TOOLS, "other", Tiny)
    runs = [tmp_path / name for name in "ab"]
    loggers = Loggers(["tiny", "other"], runs)
    session("tiny", runs, [1])
    del tiny.tracks[:]
    for run in runs:
        loggers.log(make_report(run, 2))
    tiny.tracks[2].broken = ConnectionResetError("gone")  # of the first tool, closed first
    for _ in range(2):  # closed already, there is nothing more to say
        loggers.close()
    assert caplog.messages == ["--log tiny may lack the end of the curves: gone"]
    assert [track.closed for track in tiny.tracks] == [1] * 4


def test_a_sweep_is_a_group_and_a_single_run_is_none(tmp_path, tiny):
    runs = [tmp_path / "sweep" / name for name in "ab"]
    session("tiny", runs, [1, 7])
    for configs, group in ((runs, "sweep"), (runs[:1], None)):
        loggers_for(*configs).log(make_report(runs[0], 8))
        assert (tiny.tracks[-1].group, tiny.tracks[-1].last) == (group, 7)
        tiny.had[runs[0]].pop(8)


def test_an_unknown_or_missing_tool_is_one_line_that_says_what_to_type(monkeypatch):
    with pytest.raises(ConfigError, match="^--log knows tensorboard, wandb, trackio, got"):
        Loggers(["mlflow"], [])
    monkeypatch.setattr(
        "pipeline.training.trackers.import_module", Mock(side_effect=ModuleNotFoundError)
    )
    for name in TOOLS:
        with pytest.raises(ConfigError) as caught:
            Loggers([name], [])
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
