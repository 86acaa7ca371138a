"""Live curves: what `--log tensorboard,wandb,trackio` asks for, off by default.

metrics.jsonl is the truth, and a tool follows it. A run appears in a tool with its first report;
what metrics.jsonl holds before that report and the tool does not is sent first. So a run that was
resumed, or killed, or logged only from some step on, has each of its steps once and in order.
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pipeline.curves import METRICS, NOT_IN_LINES, StepReport, read_curves
from pipeline.errors import ConfigError
from pipeline.train_config import LoopConfig
from pipeline.training.trackers import FAILURES, TOOLS, Track

log = logging.getLogger(__name__)


@runtime_checkable
class Logger(Protocol):
    """Where reports of training go, of all members of a sweep."""

    def log(self, report: StepReport) -> None:
        """Show a report that metrics.jsonl of `report.run` holds already."""
        ...

    def close(self) -> None:
        """Send what is waiting."""
        ...


class Loggers:
    """Several loggers as one; one that fails is dropped with a warning."""

    def __init__(self, loggers: Mapping[str, Logger]) -> None:
        self._loggers = dict(loggers)

    def log(self, report: StepReport) -> None:
        """Give a report to all.

        Raises:
            ConfigError: a tool cannot start; this comes with the first report of a run.
        """
        for name, logger in [*self._loggers.items()]:
            try:
                logger.log(report)
            except FAILURES as error:
                log.warning("--log %s failed and is off from now on: %s", name, error)
                del self._loggers[name]
                with suppress(*FAILURES):
                    logger.close()

    def close(self) -> None:
        """Close all; to be called however training ends."""
        for name, logger in self._loggers.items():
            try:
                logger.close()
            except FAILURES as error:
                log.warning("--log %s may lack the end of the curves: %s", name, error)
        self._loggers.clear()


class Live:
    """A logger for one tool.

    Args:
        tool: Its name.
        configs: Of all runs that will report.
    """

    def __init__(self, tool: str, configs: Sequence[LoopConfig]) -> None:
        resolved = [replace(config, out=config.out.resolve()) for config in configs]
        self._configs = {config.out: config for config in resolved}
        self._tool = tool
        self._tracks: dict[Path, Track] = {}

    def log(self, report: StepReport) -> None:
        """Send a report, and before the first one of a run what came before it.

        Raises:
            ConfigError: the tool cannot start.
        """
        run = report.run.resolve()
        if run not in self._tracks:
            try:
                self._tracks[run] = self._start(run, until=report.step)
            except FAILURES as error:
                said = " ".join(str(error).split())  # in one line
                raise ConfigError(f"--log {self._tool} cannot start: {said}") from error
        self._put(self._tracks[run], {f.name: getattr(report, f.name) for f in fields(report)})

    def close(self) -> None:
        """Close the runs."""
        with ExitStack() as stack:  # one that fails does not keep the others open
            for track in self._tracks.values():
                stack.callback(track.close)

    def _start(self, run: Path, *, until: int) -> Track:
        past = [line for line in read_curves(run / METRICS) if line["step"] < until]
        last = int(past[-1]["step"]) if past else 0
        group = run.parent.name if len(self._configs) > 1 else None
        track = TOOLS[self._tool](self._configs[run], group=group, last=last)
        for line in past:
            self._put(track, line)
        return track

    def _put(self, track: Track, line: Mapping[str, Any]) -> None:
        if line["step"] < track.first:
            return
        left_out = NOT_IN_LINES | {"step"}
        values = {key: float(x) for key, x in line.items() if key not in left_out and x is not None}
        track.put(values, int(line["step"]))


def make_loggers(names: Sequence[str], configs: Sequence[LoopConfig]) -> Loggers:
    """Loggers to the tools named, for the runs of these configs; none named is none.

    Raises:
        ConfigError: a tool is unknown or not installed.
    """
    for name in names:
        if name not in TOOLS:
            raise ConfigError(f"--log knows {', '.join(TOOLS)}, got {name!r}")
        try:
            import_module(TOOLS[name].package)
        except ImportError as error:
            raise ConfigError(
                f"--log {name} needs {name}: pip install 'saepipe[{name}]'"
            ) from error
    return Loggers({name: Live(name, configs) for name in names})
