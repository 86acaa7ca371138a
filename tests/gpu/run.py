"""Everything that is to be known of saepipe on a GPU, by one command in eight minutes.

    python tests/gpu/run.py [--out FILE.jsonl] [--budget 480] [--toy]
    python tests/gpu/run.py --tell FILE.jsonl

It needs this checkout, what saepipe needs, and for its first part pytest; nothing is downloaded,
weights and rows are random. Each result is a line of the file at once, the most valuable first: it
may be stopped at any moment. A cell that fails is a line that says why, and so is one that takes
too long or no longer fits into the budget (seconds). At the end, or by --tell alone, the file is
printed as Markdown tables.

--toy runs all of it at toy sizes, on a CPU too: its numbers mean nothing.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any

STARTED = time.monotonic()
ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]

import torch  # noqa: E402

from tests.gpu.cells import REAL, TOY, Bench, Cell, Skipped, cells_of  # noqa: E402
from tests.gpu.told import tell  # noqa: E402

GRACE = 20
"""Seconds over the budget after which a device that hangs is given up."""
LEAST = 3
"""Seconds without which no cell is begun."""


class Lines:
    """A new file of JSON lines, each written whole and at once."""

    def __init__(self, path: Path) -> None:
        if path.exists():
            raise SystemExit(f"{path} is there already: choose another --out")
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()

    def write(self, line: dict[str, Any]) -> None:
        """One more; on the disk when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps(line, default=str) + "\n")
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def at_most(seconds: float) -> Generator[None, None, None]:
    """Within the block, TimeoutError is raised once it takes longer (in the main thread)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"it took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(cells: Sequence[Cell], bench: Bench, lines: Lines, *, budget: float) -> None:
    """Every cell that fits, in order."""
    end = time.monotonic() + budget
    for cell in cells:
        line: dict[str, Any] = {"cell": cell.name, "table": cell.table}
        left = end - time.monotonic()
        if left < LEAST:
            lines.write(line | {"left_out": "the budget was spent"})
            continue
        start = time.monotonic()
        try:
            with at_most(min(cell.limit, left)):
                line |= cell.run(bench)
        except Skipped as why:
            line["skipped"] = str(why)
        except Exception as error:  # whatever it is, the next cell goes on
            line["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:800]}"
        lines.write(line | {"took": round(time.monotonic() - start, 2)})
        print(f"{left:4.0f} s left: {cell.name} {line.get('error', '')[:100]}", file=sys.stderr)
        try:
            bench.free()
        except Exception as error:  # a device that is lost is so for all cells
            lines.write({"cell": f"after {cell.name}", "table": "right", "error": str(error)[:400]})


def about(device: torch.device, *, toy: bool) -> dict[str, Any]:
    """What was measured on, and when."""
    commit = ""
    with suppress(OSError):  # without git
        commit = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"],
            capture_output=True, text=True, check=False,
        ).stdout.strip()  # fmt: skip
    try:
        triton = version("triton")
    except PackageNotFoundError:
        triton = "none"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "table": "about", "device": name, "torch": torch.__version__, "cuda": torch.version.cuda,
        "triton": triton, "python": platform.python_version(), "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"), "commit": commit, "toy": toy,
    }  # fmt: skip


def given_up(lines: Lines, *, after: float) -> threading.Timer:
    """Ends the process, tables told, should the device hang where no signal reaches."""

    def end() -> None:
        lines.write({"cell": "run", "table": "right", "error": "the device hung: given up"})
        print(tell(lines.path), flush=True)
        os._exit(3)

    timer = threading.Timer(after, end)
    timer.daemon = True
    timer.start()
    return timer


def main(arguments: Sequence[str] | None = None, *, spent: float = 0.0) -> None:
    """Measure and tell, or tell; `spent` are seconds of the budget that imports took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"))
    parser.add_argument("--budget", type=float, default=480)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--tell", type=Path)
    args = parser.parse_args(arguments)
    if args.tell:
        print(tell(args.tell))
        return
    if not args.toy and not torch.cuda.is_available():
        raise SystemExit("torch sees no CUDA device: type --toy to try the script itself on a CPU")
    device = torch.device("cpu" if args.toy else "cuda")
    sizes = TOY if args.toy else REAL
    lines = Lines(args.out)
    budget = args.budget - spent
    watch = given_up(lines, after=budget + GRACE)
    try:
        lines.write(about(device, toy=args.toy))
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(device=device, sizes=sizes, folder=Path(folder))
            run(cells_of(sizes), bench, lines, budget=budget)
    finally:
        watch.cancel()
        print(tell(args.out))


if __name__ == "__main__":
    main(spent=time.monotonic() - STARTED)
