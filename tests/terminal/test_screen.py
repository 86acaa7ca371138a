"""The bar that people watch."""

import re
from io import StringIO

from rich.console import Console

from pipeline.progress import Progress
from pipeline.terminal import screen


def bar(monkeypatch, *told: Progress, terminal: bool) -> str:
    file = StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, color_system=None)
    monkeypatch.setattr(screen, "Console", lambda **_: console)
    with screen.progress("eval") as show:
        for one in told:
            show(one)
    return file.getvalue()


def at(done: int) -> Progress:
    return Progress(stage="losses", done=done, total=40, unit="tokens", words="2 runs")


def test_a_bar_shows_rate_time_left_stage_and_words(monkeypatch):
    text = bar(monkeypatch, at(10), at(20), at(40), terminal=True)
    assert "eval " in text and "losses 2 runs" in text
    assert "tokens/s" in text and "0:00:00" in text
    assert "0:00:00" not in bar(monkeypatch, at(10), terminal=True)


def test_a_stage_of_the_bars_own_name_is_not_told_twice(monkeypatch):
    told = Progress(stage="eval", done=1, total=2, unit="tokens")
    lines = re.split(r"[\r\n]", bar(monkeypatch, told, terminal=True))
    assert max(line.count("eval") for line in lines) == 1


def test_where_nobody_watches_nothing_is_written(monkeypatch):
    assert bar(monkeypatch, at(10), terminal=False) == ""
