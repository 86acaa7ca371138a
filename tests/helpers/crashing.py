"""Writers that end at a moment nobody chose, and clean nothing up."""

import fcntl
import io
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest


@contextmanager
def files_up_to(n_bytes: int) -> Generator[None]:
    """No file may grow beyond this: the system refuses the write that would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


Tree = dict[str, bytes | None]
"""A folder: its files by path, and the folders in it, which are None."""

CHANGES = (
    "write", "writev", "pwrite", "truncate", "ftruncate", "mkdir", "rmdir", "unlink", "remove",
    "rename", "replace", "symlink", "link",
)  # fmt: skip
"""Whatever of `os` alters a file or a folder, but for opening one."""


def tree_of(folder: Path) -> Tree:
    """A folder as it is; who held the lock, and how much of a file was written, is all one."""
    tree: Tree = {} if folder.is_dir() else {".": None}
    for place, folders, files in os.walk(folder):
        start = f"{place}/"[len(str(folder)) + 1 :]
        tree |= {f"{start}{name}": None for name in folders}
        for name in files:
            told = name != "LOCK" and not name.endswith(".partial")
            tree[f"{start}{name}"] = Path(place, name).read_bytes() if told else b"torn"
    return tree


def plant(tree: Tree, folder: Path) -> Path:
    """Make a folder out of what `tree_of` told."""
    if "." not in tree:
        folder.mkdir()
    for path, data in sorted(tree.items()):
        if path != ".":
            (folder / path).mkdir() if data is None else (folder / path).write_bytes(data)
    return folder


@contextmanager
def filmed(folder: Path) -> Generator[list[Tree]]:
    """Every state that a folder is in until the end, each once: a kill may leave any of them.

    One is taken before each call that changes a file or a folder, and amid each line that is
    appended; threads take turns.
    """
    film, turn = list[Tree](), threading.Lock()

    def look() -> None:
        tree = tree_of(folder)
        if tree not in film:
            film.append(tree)

    def watched(real, changes):
        def step(*args, **options):
            if not changes(*args, **options):
                return real(*args, **options)
            with turn:
                look()
                if real is not writev or not fcntl.fcntl(args[0], fcntl.F_GETFL) & os.O_APPEND:
                    return real(*args, **options)
                line = b"".join(args[1])
                written = real(args[0], [line[: len(line) // 2]])
                look()
                return written + real(args[0], [line[written:]])

        return step

    writev = os.writev
    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, watched(getattr(os, name), lambda *args, **options: True))
        patch.setattr(os, "open", watched(os.open, opens_to_write))
        patch.setattr(io, "open", watched(io.open, opened_to_write))
        yield film
    look()


def opens_to_write(path: object, flags: int, *args: object, **options: object) -> bool:
    return bool(flags & (os.O_CREAT | os.O_TRUNC))


def opened_to_write(path: object, mode: str = "r", *args: object, **options: object) -> bool:
    return bool(set(mode) & set("wax+"))


@contextmanager
def nursery(writer: str) -> Generator[Callable[[float, Path, int], bool]]:
    """Starts writers MODULE:FUNCTION and kills them, from a process that has imported their needs.

    Yields:
        From seconds, a path and a number of rows to whether the writer was killed before its end.
    """
    program = "import sys; from tests.helpers.crashing import breed; breed(sys.argv[1])"
    with subprocess.Popen(
        [sys.executable, "-c", program, writer],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip

        def killed_after(seconds: float, path: Path, n_rows: int) -> bool:
            process.stdin.write(f"{path} {n_rows} {seconds}\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            assert code in (0, -signal.SIGKILL)
            return code != 0

        yield killed_after
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
        sys.stdout.write(f"{code}\n")
        sys.stdout.flush()
