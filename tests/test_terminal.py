"""Words, lines and tables, as people see them."""

import json
from pathlib import Path

import pytest

from actstore.verify import Finding
from pipeline.terminal.damage import damage_words, finding_line, rows_lost
from pipeline.terminal.screen import Screen
from pipeline.terminal.words import duration, many, size


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (size(999), "999B"),
        (size(1_234_567), "1.23MB"),
        (size(74.8e9), "74.8GB"),
        (duration(89), "89 s"),
        (duration(600), "10 min"),
        (duration(7200), "2.0 h"),
        (many(1, "shard"), "1 shard"),
        (many(1000, "row"), "1,000 rows"),
    ],
)
def test_numbers_are_told_as_people_tell_them(told, words):
    assert told == words


def finding(*, rows: tuple[int, int] | None, shard: int | None = 0) -> Finding:
    return Finding(path=Path("s/c/0"), what="it is missing", array="x", shard=shard, rows=rows)


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        ([], 0),
        ([(0, 8), (8, 16)], 16),
        ([(0, 64), (8, 16), (0, 64)], 64),
        ([(32, 40), (0, 8), (4, 36)], 40),
    ],
)
def test_a_row_that_several_findings_name_is_lost_once(rows, lost):
    assert rows_lost([finding(rows=r) for r in rows]) == lost


def test_damage_outside_of_rows_is_told_as_such():
    journal = Finding(path=Path("s/journal.jsonl"), what="it is missing")
    assert damage_words([journal]) == "1 finding, none of them in rows"
    assert finding_line(journal) == "store: it is missing (s/journal.jsonl)"


def test_a_file_is_named_once():
    told = Finding(path=Path("s/zarr.json"), what="s/zarr.json was altered", array="x")
    assert finding_line(told) == "x: s/zarr.json was altered"


def test_what_looks_like_markup_is_shown_as_it_is(capsys):
    screen = Screen()
    screen.say("model [bold]x[/bold]")
    screen.show("[red]title", {"name": "[green]value"})
    out = capsys.readouterr().out
    for text in ("model [bold]x[/bold]", "[red]title", "[green]value"):
        assert text in out


def test_json_goes_where_it_was_asked_for_and_is_whole(tmp_path, capsys):
    screen = Screen(json=str(tmp_path / "out.json"))
    screen.emit({"path": tmp_path, "rows": (1, 2)})
    screen.say("for people")
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "path": str(tmp_path),
        "rows": [1, 2],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert capsys.readouterr().out == "for people\n"
    beside = Screen(json="-")
    beside.say("for people")
    beside.emit([None])
    assert capsys.readouterr() == ("[\n null\n]\n", "for people\n")
