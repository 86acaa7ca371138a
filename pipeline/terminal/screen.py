"""Where results go: to people as lines, tables and a progress bar, to programs as JSON.

Names and texts come from disks and data sets, and may hold what moves a terminal: whatever people
are shown goes through `visible` here, on its way out.
"""

import json as jsonlib
import os
import sys
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.progress import BarColumn, Progress as Bars, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from actstore.files import make_folder, write_file
from pipeline.config.serialization import to_json, with_paths
from pipeline.errors import ConfigError
from pipeline.progress import OnProgress, Progress, short
from pipeline.runs.names import from_here
from pipeline.tables import Cell, Column, Table as PlainTable, cell
from pipeline.terminal.options import as_typed
from pipeline.terminal.plain_progress import PlainProgress
from pipeline.text.token_text import visible


def lines_visible(text: str) -> str:
    """A text whose lines are meant, each of which does nothing to a terminal."""
    return "\n".join(map(visible, text.split("\n")))


def drawn(table: PlainTable) -> Table:
    """A table of plain values as rich draws it. Texts come from data sets: they are no markup."""
    if table.ruled:
        made = Table(show_edge=table.edged)
    else:
        made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    made.expand = any(column.fills for column in table.columns)
    made.title = made.caption = None
    if table.title:
        made.title = Text(lines_visible(table.title), style="" if table.ruled else "bold")
    if table.caption:
        made.caption = Text(lines_visible(table.caption))
    made.title_justify = made.caption_justify = "left"
    made.show_header = any(column.head for column in table.columns)
    for column in table.columns:
        made.add_column(
            Text(lines_visible(column.head)), justify=column.align, no_wrap=not column.folds,
            overflow="fold" if column.folds else "ellipsis", ratio=1 if column.fills else None,
        )  # fmt: skip
    for rows in table.sections:
        for row in rows:
            made.add_row(*map(_cell, row))
        made.add_section()
    return made


IN_A_FILE = 200
"""Columns of a table that is no longer on a screen: nothing in it should be cut or broken."""
_BEFORE_PIVOT = 30
"""Cells of the screen."""


def _cell(cell: Cell) -> Text:
    if isinstance(cell, str):
        return Text(lines_visible(cell))
    pieces = [(lines_visible(text), style) for text, style in cell.pieces]
    first, width = 0, 0
    if cell.pivot is not None:
        first = cell.pivot
        while first > 0 and width + cell_len(pieces[first - 1][0]) <= _BEFORE_PIVOT:
            first -= 1
            width += cell_len(pieces[first][0])
        width = _BEFORE_PIVOT - width
    return Text.assemble(" " * width, *pieces[first:])


class Screen:
    """Lines and tables on stdout, or on stderr where stdout, as `-`, is for JSON.

    Raises:
        ConfigError: JSON cannot be written where it is to go; told before any work begins.
    """

    def __init__(self, *, json: str | None = None) -> None:
        if json is not None and json != "-":
            _require_writable(Path(json))
        self._json = json
        self._console = Console(stderr=json == "-", highlight=False, markup=False)
        if not self._console.is_terminal and "COLUMNS" not in os.environ:
            self._console.width = IN_A_FILE
        self._bars: Bars | None = None

    @contextmanager
    def progress(self, title: str) -> Generator[OnProgress, None, None]:
        """A bar on stderr with rate and time left, or in a file a plain line now and then.

        Yields who is to be told how far it has come.
        """
        watched = Console(stderr=True, highlight=False, markup=False)
        if not watched.is_terminal:  # a disabled bar of rich ends with an empty line before 14.3
            yield PlainProgress(title)
            return
        rate, words = (
            TextColumn(f"{{task.fields[{name}]}}", markup=False) for name in ("rate", "words")
        )
        name, bar = TextColumn(f"{title:<9}"), BarColumn(bar_width=24)
        columns = (name, bar, rate, TimeRemainingColumn(), words)
        bars = Bars(*columns, console=watched, transient=True)
        task = bars.add_task(title, total=None, rate="", words="")

        def show(now: Progress) -> None:
            speed = bars.tasks[0].speed
            rate = f"{short(speed)} {now.unit}/s" if speed else ""
            words = " ".join(filter(None, (now.stage if now.stage != title else "", now.words)))
            bars.update(task, completed=now.done, total=now.total, rate=rate, words=visible(words))

        with bars:
            self._bars = bars
            try:
                yield show
            finally:
                self._bars = None

    def _print(self, what: object, *, soft_wrap: bool = False) -> None:
        """Above the bar, where both are seen on one terminal."""
        bars = self._bars if self._console.is_terminal else None
        (bars.console if bars else self._console).print(what, soft_wrap=soft_wrap)

    def say(self, line: str) -> None:
        """A line, however long: paths in it can be copied."""
        self._print(visible(line), soft_wrap=True)

    def tell(self, lines: Iterable[str]) -> None:
        """Some lines."""
        for line in lines:
            self.say(line)

    def draw(self, table: PlainTable) -> None:
        """A table, in the width there is."""
        self._print(drawn(table))

    def show(self, title: str, rows: Mapping[str, object]) -> None:
        """Names and values in two columns."""
        columns = [Column(), Column(align="right", folds=True)]
        facts = [[name, cell(value)] for name, value in rows.items()]
        self.draw(PlainTable(title=title, columns=columns, sections=[facts], edged=True))

    def note(self, notes: Iterable[str]) -> None:
        """What a reader of the numbers must know, each thing once."""
        for note in dict.fromkeys(notes):
            line, wraps = visible(f"note: {as_typed(note)}"), self._console.is_terminal
            self._print(line, soft_wrap=not wraps)

    def emit(self, result: object) -> None:
        """Write a result as JSON, whole or not at all, if that was asked for."""
        text = jsonlib.dumps(to_json(with_paths(result, from_here)), indent=1) + "\n"
        if self._json == "-":
            sys.stdout.write(text)
        elif self._json is not None:
            make_folder(Path(self._json).parent)
            write_file(Path(self._json), [text.encode()])


def _require_writable(path: Path) -> None:
    """Refuse a path at which no file can be put; folders that are missing above it are made."""
    there = next(folder for folder in path.absolute().parents if folder.exists())
    if path.is_dir():
        found, wanted = f"{path} is a folder", f"--json {path}/result.json"
    elif path.exists() and not path.is_file():
        found, wanted = f"{path} is no regular file", "--json - for stdout"
    elif not there.is_dir():
        found, wanted = f"{there} is no folder", "a path in a folder"
    elif not os.access(there, os.W_OK | os.X_OK):
        found, wanted = f"{there} may not be written to", "a path in another folder"
    else:
        return
    raise ConfigError(f"no JSON can be written to {path}: {found}; type {wanted}")
