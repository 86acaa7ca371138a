"""What the benchmarks share: cells that take turns, and how ratios are told."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Cell = Callable[[], float]


def in_turn(
    cells: Mapping[str, Cell], rounds: int, *, warm_up: Iterable[str] = ()
) -> dict[str, list[float]]:
    """What each cell gives, round by round: what disturbs the machine disturbs all alike.

    Args:
        cells: By name, in the order of a round.
        rounds: How often each is called.
        warm_up: Those that are called once before.
    """
    told: dict[str, list[float]] = {name: [] for name in cells}
    for name in warm_up:
        cells[name]()
    for i in range(rounds):
        for name, cell in cells.items():
            told[name].append(cell())
            print(f"round {i + 1} of {rounds}: {name} {told[name][-1]:,.4g}", file=sys.stderr)
    return told


def spread(values: Sequence[float], pattern: str = "{:.2f}") -> str:
    """Median [lowest..highest]."""
    middle, *ends = map(pattern.format, (statistics.median(values), min(values), max(values)))
    return f"{middle} [{'..'.join(ends)}]"


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(values, others, strict=True)]


def wall(command: Iterable[object], *, cwd: Path | None = None) -> float:
    """Seconds of a whole process."""
    start = time.perf_counter()
    subprocess.run([*map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd=cwd)
    return time.perf_counter() - start


def printed_by(*command: object) -> Any:
    """What a process of its own prints last, which is JSON."""
    done = subprocess.run([*map(str, command)], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
