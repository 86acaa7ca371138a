"""Seconds on a device: by CUDA events on a GPU, by a clock elsewhere."""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

WARM, LEAST, MOST = 3, 3, 30
"""Calls before the clock starts, and calls that are timed, at least and at most."""


def wait(device: torch.device) -> None:
    """Until all that was launched is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ticks(call: Callable[[], object], device: torch.device, *, n: int) -> list[float]:
    """Seconds from the start of each of `n` calls to that of the next, as the device has it."""
    marks: list[Any] = []

    def mark() -> None:
        if device.type == "cuda":
            marks.append(torch.cuda.Event(enable_timing=True))
            marks[-1].record()
        else:
            marks.append(time.perf_counter())

    mark()
    for _ in range(n):
        call()
        mark()
    wait(device)
    if device.type == "cuda":
        return [a.elapsed_time(b) / 1000 for a, b in pairwise(marks)]
    return [b - a for a, b in pairwise(marks)]


def seconds_of(
    call: Callable[[], object], device: torch.device, *, seconds: float, warm: int = WARM
) -> list[float]:
    """Of each of as many calls as take about so many seconds, after some that are not told."""
    for _ in range(warm):
        call()
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    once = time.perf_counter() - start
    return ticks(call, device, n=max(LEAST, min(MOST, int(seconds / max(once, 1e-9)))))
