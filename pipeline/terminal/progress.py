"""The progress bar."""

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pipeline.terminal.words import short


@contextmanager
def progress(title: str, unit: str) -> Generator[Callable[[int, int, str], None], None, None]:
    """A bar on stderr with rate and time left; yields `show(done, total, words)`."""
    rate, words = TextColumn("{task.fields[rate]}"), TextColumn("{task.fields[words]}")
    name, bar = TextColumn(f"{title:<9}"), BarColumn(bar_width=24)
    screen = Console(stderr=True)
    columns = (name, bar, rate, TimeRemainingColumn(), words)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bars:
        task = bars.add_task(title, total=None, rate="", words="")

        def show(done: int, total: int, words: str) -> None:
            speed = bars.tasks[0].speed
            rate = f"{short(speed)} {unit}/s" if speed else ""
            bars.update(task, completed=done, total=total, rate=rate, words=words)

        yield show
