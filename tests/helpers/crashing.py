"""Writers that end at a moment nobody chose, and clean nothing up."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from itertools import count
from pathlib import Path

import pytest


class Crash(BaseException):
    """The process ends here: nothing after it runs, and nothing is cleaned up."""


def crash_before(patch: pytest.MonkeyPatch, n: int, *steps: tuple[object, str]) -> None:
    """From here on crash instead of the n-th of these calls, and of all after it."""
    taken = count()

    def crashing(real):
        def step(*args, **options):
            if next(taken) >= n:  # nothing happens after a crash
                raise Crash
            return real(*args, **options)

        return step

    for owner, name in steps:
        patch.setattr(owner, name, crashing(getattr(owner, name)))


class Nursery:
    """Starts writers and kills them, from a process that has imported what they need."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def killed_after(self, seconds: float, path: Path, n_rows: int) -> tuple[int, bool]:
        """The writer's process, and whether it was killed before it was done."""
        self._process.stdin.write(f"{path} {n_rows} {seconds}\n")
        self._process.stdin.flush()
        pid, code = map(int, self._process.stdout.readline().split())
        assert code in (0, -signal.SIGKILL)
        return pid, code != 0


@contextmanager
def nursery(writer: str) -> Generator[Nursery, None, None]:
    """Of writers MODULE:FUNCTION, which take a path and a number of rows."""
    program = "import sys; from tests.helpers.crashing import breed; breed(sys.argv[1])"
    with subprocess.Popen(
        [sys.executable, "-c", program, writer],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield Nursery(process)
        process.stdin.close()


def breed(writer: str) -> None:
    """What the process of a nursery does."""
    module, function = writer.split(":")
    write = getattr(import_module(module), function)
    os.fsync = os.fdatasync = lambda fd: None  # a kill, unlike a power cut, loses nothing written
    for line in sys.stdin:
        path, n_rows, seconds = line.rsplit(None, 2)
        if not (pid := os.fork()):
            write(Path(path), int(n_rows))
            os._exit(0)
        end, over = time.monotonic() + float(seconds), os.WEXITED | os.WNOHANG | os.WNOWAIT
        while time.monotonic() < end and os.waitid(os.P_PID, pid, over) is None:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)  # if it is over, it is still there to be waited for
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        sys.stdout.write(f"{pid} {code}\n")
        sys.stdout.flush()
