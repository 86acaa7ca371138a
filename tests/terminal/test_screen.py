"""The bar that people watch."""

import json
import os
import re
from io import StringIO

import pytest
from rich.console import Console

from pipeline.progress import Progress
from pipeline.tables import Column, Table, Words
from pipeline.terminal import screen
from pipeline.terminal.plain_progress import PlainProgress


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


def test_where_nobody_watches_no_bar_is_written(monkeypatch, capsys):
    assert bar(monkeypatch, at(10), terminal=False) == ""
    assert capsys.readouterr().err == ""


def lines_at(capsys, *told: tuple[float, Progress], title: str = "eval") -> list[str]:
    """What a file is told when progress comes at these seconds."""
    seconds = iter([0.0, *(when for when, _ in told)])
    show = PlainProgress(title, clock=lambda: next(seconds))
    for _, progress in told:
        show(progress)
    return capsys.readouterr().err.splitlines()


def test_a_file_gets_a_line_now_and_then_with_what_how_far_rate_and_time_left(capsys):
    every_second = [(second, at(second)) for second in range(41)]
    assert lines_at(capsys, *every_second) == [
        "eval      losses 10 of 40 tokens, 1 tokens/s, about 30 s left  2 runs",
        "eval      losses 40 of 40 tokens, 1 tokens/s, about 0 s left  2 runs",
    ]


def test_what_was_done_before_and_another_stage_count_for_no_rate(capsys):
    other = Progress(stage="eval", done=10, total=20, unit="steps")
    assert lines_at(capsys, (0, at(30)), (20, at(35)), (60, other)) == [
        "eval      losses 35 of 40 tokens, 0.25 tokens/s, about 20 s left  2 runs",
        "eval      10 of 20 steps",
    ]


ESCAPE = "\x1b[31mred\u202e\u200b"
SHOWN = r"\x1b[31mred\u202e\u200b"


def test_a_bar_and_its_lines_in_a_file_move_no_terminal(monkeypatch, capsys):
    told = Progress(stage="eval", done=1, total=2, unit="steps", words=f"{ESCAPE}[/bold]")
    (line,) = lines_at(capsys, (20, told))
    assert line.endswith(f"{SHOWN}[/bold]")
    text = bar(monkeypatch, told, terminal=True)
    assert f"{SHOWN}[/bold]" in text and "\x1b[31m" not in text


def test_nothing_that_is_shown_moves_a_terminal(capsys):
    shown = screen.Screen()
    shown.say(ESCAPE)
    shown.note([ESCAPE])
    shown.show(ESCAPE, {ESCAPE: ESCAPE})
    head, words = Column(head=ESCAPE), Words(pieces=[(ESCAPE, ""), (ESCAPE, "bold")], pivot=1)
    shown.draw(Table(columns=[head], sections=[[[words]]], caption=ESCAPE))
    out = capsys.readouterr().out
    assert not re.search("[\x1b\u202e\u200b]", out)
    assert out.count(SHOWN) == 9


@pytest.mark.parametrize("place", ["", "file/a.json", "fifo"])
def test_json_that_cannot_be_written_is_told_before_any_work(fails, tmp_path, place):
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "fifo")
    line = fails("train", "no.actstore", "--out", "r", "--json", tmp_path / place)
    assert f"no JSON can be written to {tmp_path / place}" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_json_in_a_folder_that_may_not_be_written_to_is_told_before_any_work(fails, tmp_path):
    tmp_path.chmod(0o500)
    line = fails("store", "info", "no.actstore", "--json", tmp_path / "new" / "a.json")
    assert f"{tmp_path} may not be written to" in line


def test_folders_above_json_are_made_when_it_is_written(tmp_path):
    shown = screen.Screen(json=str(tmp_path / "a" / "b.json"))
    assert not (tmp_path / "a").exists()
    shown.emit({"a": 1})
    assert json.loads((tmp_path / "a" / "b.json").read_text()) == {"a": 1}


def test_a_line_said_while_a_bar_is_drawn_stands_above_it_or_in_the_file(monkeypatch, capsys):
    """Else a terminal shows the line behind the bar, in the same line."""
    text = bar(monkeypatch, at(10), terminal=True, say="a result", out_too=True)
    assert "a result" in [
        re.sub(r"\x1b\[[0-9;?]*\w", "", line) for line in re.split(r"[\r\n]", text)
    ]
    assert capsys.readouterr().out == ""
    assert "a result" not in bar(monkeypatch, at(10), terminal=True, say="a result")
    assert capsys.readouterr().out == "a result\n"
