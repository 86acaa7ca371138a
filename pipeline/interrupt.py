"""Ctrl-C between steps, never inside one."""

import signal
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether Ctrl-C was pressed."""

    def __init__(self) -> None:
        self.asked = False
        self.forced = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Remember the first signal; stop at once at the second."""
        if self.asked:
            self.forced = True
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def deferred_interrupt() -> Generator[Interrupt, None, None]:
    """Within the block, the first Ctrl-C is only noted; the second raises where it strikes.

    Outside the main thread, or where SIGINT is not handled in Python's own way, nothing changes:
    then Ctrl-C does not arrive here, or is someone else's to handle.
    """
    interrupt = Interrupt()
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupt
        return
    before = signal.signal(signal.SIGINT, interrupt.handle)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, before)
