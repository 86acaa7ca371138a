"""One run in TensorBoard, Weights & Biases or trackio, each an optional extra.

Nothing is sent over a network unless the user set that up: TensorBoard and trackio write files, and
so does wandb without WANDB_MODE or an account (`wandb login`); `wandb sync` sends them later.
"""

import json
import netrc
import os
import secrets
import sqlite3
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from contextvars import Context
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable
from urllib.parse import urlsplit

from actstore.files import write_json
from pipeline.codec import to_json
from pipeline.train_config import LoopConfig

PROJECT = "saepipe"
IDENTITY = "loggers.json"
FAILURES = (OSError, RuntimeError, ValueError, sqlite3.Error)
"""What a tool raises that cannot start or stops working."""


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

    def __init__(self, config: LoopConfig, *, group: str | None, last: int) -> None:
        del group  # its folder says it
        tensorboard = import_module(self.package)
        there = any(config.out.glob("events.out.tfevents.*"))
        self.first = last + 1 if there else 0
        # Hides what an earlier process sent of the steps that will come again.
        self._writer = tensorboard.SummaryWriter(config.out, purge_step=self.first)
        if not there:
            text = json.dumps(to_json(config), indent=4).replace("\n", "\n    ")
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

    def __init__(self, config: LoopConfig, *, group: str | None, last: int) -> None:
        del last  # it knows, or starts anew: offline, the newest folder of an id is the whole run
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # else it calls home even offline
        self._wandb = import_module(self.package)
        try:
            self._run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), group=group,
                config=to_json(config),
                name=config.out.name, id=_identity(config.out), resume="allow", reinit="create_new",
                dir=os.environ.get("WANDB_DIR", config.out), mode=self._mode(),
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

    def __init__(self, config: LoopConfig, *, group: str | None, last: int) -> None:
        del last
        trackio = import_module(self.package)

        def start() -> Any:  # noqa: ANN401 - without stubs
            return trackio.init(
                project=PROJECT, name=f"{config.out.name}-{_identity(config.out)}", group=group,
                config=to_json(config), resume="allow", embed=False,
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
