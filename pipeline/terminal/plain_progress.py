"""Progress where nobody watches a bar: in a file, a plain line now and then."""

import sys
import time
from collections.abc import Callable

from pipeline.progress import Progress, duration, short
from pipeline.text.token_text import visible

FIRST, EVERY = 10.0, 30.0
"""Seconds until the first line, and from line to line."""


class PlainProgress:
    """Called with every progress, it says of some what, how far, how fast and how long still."""

    def __init__(self, title: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._title, self._clock = title, clock
        self._next = clock() + FIRST
        self._begun: Progress | None = None
        """The first progress of the stage that runs; what was done before it was not done now."""
        self._begun_at = 0.0

    def __call__(self, now: Progress) -> None:
        """Say where it stands on stderr, if it is time for that."""
        at, begun = self._clock(), self._begun
        if begun is None or (now.stage, now.total) != (begun.stage, begun.total):
            begun, self._begun, self._begun_at = now, now, at
        if at < self._next:
            return
        self._next = at + EVERY
        sys.stderr.write(visible(self._line(now, begun, at - self._begun_at)) + "\n")
        sys.stderr.flush()

    def _line(self, now: Progress, begun: Progress, seconds: float) -> str:
        stage = f"{now.stage} " if now.stage != self._title else ""
        line = f"{self._title:<9} {stage}{short(now.done)} of {short(now.total)} {now.unit}"
        if now.done > begun.done and seconds > 0:
            rate = (now.done - begun.done) / seconds
            left = duration((now.total - now.done) / rate)
            line += f", {short(rate)} {now.unit}/s, about {left} left"
        return f"{line}  {now.words}".rstrip()
