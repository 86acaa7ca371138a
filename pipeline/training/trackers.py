"""Live curves: what `--log tensorboard,wandb,trackio` asks for, each an optional extra.

metrics.jsonl is the truth, and a tool follows it. A run appears in a tool with its first report;
what metrics.jsonl holds before that report and the tool does not is sent first. So a run that was
resumed, or killed, or logged only from some step on, has each of its steps once and in order.

Nothing is sent over a network unless the user set that up: TensorBoard and trackio write files, and
so does wandb without WANDB_MODE or an account (`wandb login`); `wandb sync` sends them later.
"""

import json
import logging
import netrc
import os
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from contextvars import Context
from dataclasses import fields
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable
from urllib.parse import urlsplit

from actstore.files import write_json
from pipeline.errors import ConfigError
from pipeline.runs.belongs import RUN
from pipeline.runs.curves import METRICS, NOT_IN_LINES, StepReport, read_curves

log = logging.getLogger(__name__)

PROJECT = "saepipe"
IDENTITY = "loggers.json"
FAILURES = (OSError, RuntimeError, ValueError, sqlite3.Error)
"""What a tool raises that cannot start or stops working."""


class Loggers:
    """Several tools as one; one that fails is dropped with a warning.

    Args:
        names: Of the tools.
        runs: The folders of all runs that will report.

    Raises:
        ConfigError: a tool is unknown or not installed.
    """

    def __init__(self, names: Sequence[str], runs: Sequence[Path]) -> None:
        for name in names:
            if name not in TOOLS:
                raise ConfigError(f"--log knows {', '.join(TOOLS)}, got {name!r}")
            try:
                import_module(TOOLS[name].package)
            except ImportError as error:
                raise ConfigError(
                    f"--log {name} needs {name}: pip install 'saepipe[{name}]'"
                ) from error
        self._several = len(runs) > 1
        self._tracks: dict[str, dict[Path, Track]] = {name: {} for name in names}

    def log(self, report: StepReport) -> None:
        """Send a report, which metrics.jsonl holds already, and first what a tool lacks before it.

        Raises:
            ConfigError: a tool cannot start; this comes with the first report of a run.
        """
        run = report.run.resolve()
        line = {f.name: getattr(report, f.name) for f in fields(report)}
        for name, tracks in [*self._tracks.items()]:
            if run not in tracks:
                try:
                    tracks[run] = self._start(name, run, until=report.step)
                except FAILURES as error:
                    said = " ".join(str(error).split())  # in one line
                    raise ConfigError(f"--log {name} cannot start: {said}") from error
            try:
                _put(tracks[run], line)
            except FAILURES as error:
                log.warning("--log %s failed and is off from now on: %s", name, error)
                with suppress(*FAILURES):
                    _close(self._tracks.pop(name))

    def close(self) -> None:
        """Send what is waiting; to be called however training ends."""
        for name, tracks in self._tracks.items():
            try:
                _close(tracks)
            except FAILURES as error:
                log.warning("--log %s may lack the end of the curves: %s", name, error)
        self._tracks.clear()

    def _start(self, name: str, run: Path, *, until: int) -> "Track":
        past = [line for line in read_curves(run / METRICS) if line["step"] < until]
        last = int(past[-1]["step"]) if past else 0
        group = run.parent.name if self._several else None
        settings = json.loads((run / RUN).read_bytes())["config"]  # nothing is open in these
        track = TOOLS[name](run, settings, group=group, last=last)
        for line in past:
            _put(track, line)
        return track


def _put(track: "Track", line: Mapping[str, Any]) -> None:
    if line["step"] >= track.first:
        left_out = NOT_IN_LINES | {"step"}
        values = {key: float(x) for key, x in line.items() if key not in left_out and x is not None}
        track.put(values, int(line["step"]))


def _close(tracks: Mapping[Path, "Track"]) -> None:
    with ExitStack() as stack:  # one that fails does not keep the others open
        for track in tracks.values():
            stack.callback(track.close)


@runtime_checkable
class Track(Protocol):
    """One run in one tool."""

    first: int
    """The tool has the steps before this one."""

    def put(self, values: Mapping[str, float], step: int) -> None:
        """Send one line of the curves."""
        ...

    def close(self) -> None:
        """Send what is waiting."""
        ...


class Tensorboard:
    """Event files in the run's folder: `tensorboard --logdir` there or at the sweep's."""

    package: ClassVar = "torch.utils.tensorboard"

    def __init__(
        self, run: Path, settings: Mapping[str, Any], *, group: str | None, last: int
    ) -> None:
        del group  # its folder says it
        tensorboard = import_module(self.package)
        there = any(run.glob("events.out.tfevents.*"))
        self.first = last + 1 if there else 0
        # Hides what an earlier process sent of the steps that will come again.
        self._writer = tensorboard.SummaryWriter(run, purge_step=self.first)
        if not there:
            text = json.dumps(settings, indent=4).replace("\n", "\n    ")
            self._writer.add_text("config", f"    {text}")

    def put(self, values: Mapping[str, float], step: int) -> None:
        """Write one line, so that a kill cannot lose it."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class Wandb:
    """A run of Weights & Biases, a sweep being a group; offline in the run's folder."""

    package: ClassVar = "wandb"

    def __init__(
        self, run: Path, settings: Mapping[str, Any], *, group: str | None, last: int
    ) -> None:
        del last  # it knows, or starts anew: offline, the newest folder of an id is the whole run
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it calls home even offline
        self._wandb = import_module(self.package)
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), group=group,
                config=dict(settings),
                name=run.name, id=_identity(run), resume="allow", reinit="create_new",
                dir=os.environ.get("WANDB_DIR", run), mode=self._mode(),
                settings=self._wandb.Settings(silent=True, console="off"),
            )  # fmt: skip
        except self._wandb.Error as error:
            raise RuntimeError(error) from error
        self.first = self._run.starting_step

    def _mode(self) -> str | None:
        """None leaves it to wandb, where there is anything to go by."""
        settings = self._wandb.setup().settings
        if os.environ.get("WANDB_MODE") or os.environ.get("WANDB_API_KEY") or settings.api_key:
            return None
        host = urlsplit(settings.base_url).hostname or ""
        with suppress(OSError, netrc.NetrcParseError):
            if netrc.netrc(os.environ.get("NETRC")).authenticators(host):
                return None
        return "offline"

    def put(self, values: Mapping[str, float], step: int) -> None:
        """Hand one line to wandb's process."""
        try:
            self._run.log(dict(values), step=step)
        except self._wandb.Error as error:
            raise RuntimeError(error) from error

    def close(self) -> None:
        """Wait until all is written or sent."""
        self._run.finish()


class Trackio:
    """A run of trackio's database: `trackio show --project saepipe`."""

    package: ClassVar = "trackio"

    def __init__(
        self, run: Path, settings: Mapping[str, Any], *, group: str | None, last: int
    ) -> None:
        del last
        trackio = import_module(self.package)

        def start() -> Any:  # noqa: ANN401 - without stubs
            return trackio.init(
                project=PROJECT, name=f"{run.name}-{_identity(run)}", group=group,
                config=dict(settings), resume="allow", embed=False,
            )  # fmt: skip

        with redirect_stdout(StringIO()):  # which is for results
            self._run = Context().run(start)  # in a context that has no other run to end first
        self.first = getattr(self._run, "_next_step", 0)  # without it, steps may come twice

    def put(self, values: Mapping[str, float], step: int) -> None:
        """Hand one line to trackio's thread."""
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        """Wait until all is written."""
        with redirect_stdout(StringIO()):
            self._run.finish()


TOOLS: dict[str, type[Tensorboard | Wandb | Trackio]] = {
    "tensorboard": Tensorboard,
    "wandb": Wandb,
    "trackio": Trackio,
}


def _identity(run: Path) -> str:
    """The name of a run that no other run of any sweep has, kept in its folder."""
    path = run / IDENTITY
    if not path.exists():
        write_json(path, {"id": secrets.token_hex(4)})
    return str(json.loads(path.read_bytes())["id"])
