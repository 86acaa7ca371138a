"""An iterator run on a thread of its own, a few items ahead of whoever gets them."""

import queue
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Generic, TypeVar, final

T = TypeVar("T")

_PATIENCE = 5.0  # seconds that closing waits for the thread, which may be reading from a network


@final
class _Item(Generic[T]):
    def __init__(self, value: T) -> None:
        self.value = value


@final
class ReadAhead(Generic[T]):
    """The items of an iterator, at most `items` of them (and one in the making) held back."""

    def __init__(self, source: Iterator[T], *, items: int) -> None:
        self._source = source
        self._handed: queue.SimpleQueue[_Item[T] | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(items)
        self._closed = threading.Event()
        self._ended = False
        self._error: BaseException | None = None
        # A daemon: a read that hangs in a network must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="saepipe-read", daemon=True)
        self._thread.start()

    def get(self) -> T | None:
        """The next item, None after the last; raises what the iterator raised, each time."""
        if not self._ended:
            handed = self._handed.get()
            if isinstance(handed, _Item):
                self._room.release()
                return handed.value
            self._error, self._ended = handed, True
        if self._error is not None:
            raise self._error
        return None

    def close(self) -> None:
        """Stop the thread, at the latest when it has made the item it is at."""
        self._closed.set()
        self._room.release()
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        with _Ending(self._handed.put):
            for value in self._source:
                self._room.acquire()
                if self._closed.is_set():
                    return
                self._handed.put(_Item(value))


@final
class _Ending:
    """Reports how its block ended, with which error or None; nothing leaves the block."""

    def __init__(self, report: Callable[[BaseException | None], None]) -> None:
        self._report = report

    def __enter__(self) -> None:
        return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        self._report(error)
        return True
