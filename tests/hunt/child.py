"""A command line in a forked process, in some folder, with or without a fault."""

import builtins
import errno
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal

from tests.helpers.crashing import CHANGES, opened_to_write, opens_to_write

WARM = (
    "cli", "pipeline.terminal.commands", "pipeline.terminal.features", "pipeline.terminal.mnist",
    "pipeline.terminal.store", "pipeline.harvest.harvest", "pipeline.harvest.repair",
    "pipeline.training.train", "pipeline.connect.kind", "pipeline.evaluate.evaluate",
    "pipeline.features.collect", "pipeline.finetune.run", "pipeline.report.page",
    "pipeline.mnist.experiment", "actstore.verify",
    "transformers.models.gpt_neox.modeling_gpt_neox", "torch._dynamo", "pandas",
)  # fmt: skip
LONGEST = 120.0
"""Seconds that a command may take here."""
FaultKind = Literal["kill", "interrupt", "stop", "full"]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happens when a file is changed for the `at`-th time, from 0."""

    kind: FaultKind
    at: int

    def __str__(self) -> str:
        return f"{self.kind} at change {self.at}"


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    code: int
    """-9 where it was killed, -1 where it took too long."""
    out: str
    err: str
    n_changes: int
    """Calls that changed a file or a folder."""
    read: tuple[str, ...]
    """Files of the folder that were opened to be read, by their paths in it."""


def warm() -> None:
    """Import what commands need, once for all of them; no tensor is computed here.

    What only takes long does not: figures are written, not drawn, refits make few steps,
    and nobody waits long for who was stopped.
    """
    for name in WARM:
        import_module(name)
    for canvas, method, drawn in (
        ("matplotlib.backends.backend_agg.FigureCanvasAgg", "print_png", b"\x89PNG"),
        ("matplotlib.backends.backend_svg.FigureCanvasSVG", "print_svg", b"<svg/>"),
    ):
        module, _, name = canvas.rpartition(".")
        setattr(
            getattr(import_module(module), name),
            method,
            lambda self, file, drawn=drawn, **_: file.write(drawn),
        )
    import_module("matplotlib.figure").Figure.draw_without_rendering = lambda self: None
    import_module("actstore.files").PATIENCE = 1.0
    network = import_module("pipeline.mnist.network")
    network.STEPS = network.TOGETHER_STEPS = 5


def run(
    argv: tuple[str, ...],
    folder: Path,
    *,
    fault: Fault | None = None,
    meanwhile: Callable[[], None] | None = None,
    log: str = "",
) -> Ended:
    """Run `saepipe argv` in a folder.

    `meanwhile` is called where a fault has stopped it, before it goes on. Of several that run at
    once, each has a `log` of its own.
    """
    logs = {name: folder.with_name(f"{folder.name}.{log}{name}") for name in ("out", "err", "told")}
    pid = os.fork()
    if not pid:
        _run(argv, folder, logs, fault)
    end = time.monotonic() + LONGEST
    while not (done := os.waitpid(pid, os.WNOHANG | os.WUNTRACED))[0] or os.WIFSTOPPED(done[1]):
        if done[0]:
            if meanwhile is not None:
                meanwhile()
            os.kill(pid, signal.SIGCONT)
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            done = (0, 0)
            break
        time.sleep(0.002)
    code = os.waitstatus_to_exitcode(done[1]) if done[0] else -1
    out, err, told = (
        file.read_text(errors="replace") if file.exists() else "" for file in logs.values()
    )
    for file in logs.values():
        file.unlink(missing_ok=True)
    n_changes, *read = told.split("\0") if told else ("0",)
    return Ended(code=code, out=out, err=err, n_changes=int(n_changes), read=tuple(read))


def _run(argv: tuple[str, ...], folder: Path, logs: dict[str, Path], fault: Fault | None) -> None:
    """In the child: never returns."""
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.chdir(folder)
        for fd, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(logs[name], os.O_CREAT | os.O_WRONLY, 0o600), fd)
        sys.stdin = io.StringIO()
        sys.argv = ["saepipe", *argv]
        read, changes = _watch_reading(folder), _watch_changes(fault)
        try:
            import_module("cli").main()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        sys.stdout.flush()
        sys.stderr.flush()
        told = "\0".join([str(changes[0]), *sorted(read)])
        _write(_open(logs["told"], os.O_CREAT | os.O_WRONLY, 0o600), os.fsencode(told))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(code)


_write, _open = os.write, os.open
"""Not watched."""


def _watch_reading(folder: Path) -> set[str]:
    read, start = set[str](), f"{folder.resolve()}/"

    def hook(event: str, args: tuple[object, ...]) -> None:
        if event == "open" and isinstance(args[0], str | bytes | os.PathLike):
            path = os.path.normpath(folder / os.fsdecode(args[0]))
            flags = args[2] if isinstance(args[2], int) else 0
            if path.startswith(start) and not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                read.add(path[len(start) :])

    sys.addaudithook(hook)
    return read


def _watch_changes(fault: Fault | None) -> list[int]:
    """Count them, and have one of them fail."""
    n = [0]

    def watched(real, changes, *, grows):
        def step(*args, **options):
            if changes(*args, **options):
                now, n[0] = n[0], n[0] + 1
                if fault is not None:
                    _strike(fault, now, grows=grows)
            return real(*args, **options)

        return step

    for name in CHANGES:
        grows = name in {"write", "writev", "pwrite", "mkdir", "symlink", "link"}
        setattr(os, name, watched(getattr(os, name), lambda *_, **__: True, grows=grows))
    os.open = watched(os.open, opens_to_write, grows=True)
    io.open = builtins.open = watched(io.open, opened_to_write, grows=True)
    os.fsync = os.fdatasync = lambda fd: None  # of no kill does it matter, and it takes long
    return n


def _strike(fault: Fault, now: int, *, grows: bool) -> None:
    if fault.kind == "full" and grows and now >= fault.at:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if now != fault.at:
        return
    if fault.kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault.kind == "interrupt":
        signal.raise_signal(signal.SIGINT)
    if fault.kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
