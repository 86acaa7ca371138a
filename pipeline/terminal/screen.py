"""Where results go: to people as lines and tables, to programs as JSON."""

import json as jsonlib
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from actstore.files import write_file
from pipeline.codec import to_json
from pipeline.terminal.progress import progress
from pipeline.terminal.tables import facts_table


class Screen:
    """Lines and tables on stdout, or on stderr where stdout, as `-`, is for JSON."""

    def __init__(self, *, json: str | None = None) -> None:
        self._json = json
        self._console = Console(stderr=json == "-", highlight=False, markup=False)

    def say(self, line: str) -> None:
        """A line, however long: paths in it can be copied."""
        self._console.print(line, soft_wrap=True)

    def draw(self, table: Table) -> None:
        """A table, in the width there is: 80 columns in a pipe."""
        self._console.print(table)

    def show(self, title: str, rows: Mapping[str, object]) -> None:
        """Names and values in two columns."""
        self.draw(facts_table(title, rows))

    def note(self, notes: Iterable[str]) -> None:
        """What a reader of the numbers must know, each thing once."""
        for note in dict.fromkeys(notes):
            self._console.print(f"note: {note}")

    def progress(
        self, title: str, unit: str
    ) -> AbstractContextManager[Callable[[int, int, str], None]]:
        """A bar on stderr; yields `show(done, total, words)`."""
        return progress(title, unit)

    def emit(self, result: object) -> None:
        """Write a result as JSON, whole or not at all, if that was asked for."""
        text = jsonlib.dumps(to_json(result), indent=1) + "\n"
        if self._json == "-":
            sys.stdout.write(text)
        elif self._json is not None:
            write_file(Path(self._json), [text.encode()])
