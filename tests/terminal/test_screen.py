"""The bar that people watch."""

import re
from io import StringIO

from rich.console import Console

from pipeline.progress import Progress
from pipeline.terminal import screen


def bar(monkeypatch, *told: Progress, terminal: bool, say: str = "", out_too: bool = False) -> str:
    """What stderr is shown; stdout is a terminal, too, or a file."""
    file = StringIO()
    watched = Console(file=file, force_terminal=terminal, width=120, color_system=None)
    monkeypatch.setattr(
        screen,
        "Console",
        lambda *, stderr, **_: watched if stderr else Console(force_terminal=out_too),
    )
    shown = screen.Screen()
    with shown.progress("eval") as show:
        for one in told:
            show(one)
        if say:
            shown.say(say)
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


def test_a_line_said_while_a_bar_is_drawn_stands_above_it_or_in_the_file(monkeypatch, capsys):
    """Else a terminal shows the line behind the bar, in the same line."""
    text = bar(monkeypatch, at(10), terminal=True, say="a result", out_too=True)
    assert "a result" in [
        re.sub(r"\x1b\[[0-9;?]*\w", "", line) for line in re.split(r"[\r\n]", text)
    ]
    assert capsys.readouterr().out == ""
    assert "a result" not in bar(monkeypatch, at(10), terminal=True, say="a result")
    assert capsys.readouterr().out == "a result\n"
