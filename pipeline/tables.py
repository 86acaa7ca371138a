"""Tables as plain values: what a room tells people, for whoever draws it, and files of them."""

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from typing import Literal

from actstore.files import write_file

Style = Literal[
    "", "dim", "underline", "bold underline", "red", "green", "yellow", "blue", "magenta", "cyan"
]


@dataclass(frozen=True, kw_only=True)
class Words:
    """A cell of several styles."""

    pieces: Sequence[tuple[str, Style]]
    pivot: int | None = None
    """The piece that stands under those of the other rows; what is too long before it is cut."""


Cell = str | Words


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column. Without a head in any of them, a table has no line of heads."""

    head: str = ""
    align: Literal["left", "right"] = "left"
    folds: bool = False
    """What is too long goes on in the next line; else it is cut."""
    fills: bool = False
    """It takes what the others leave of the width."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of cells, in sections that a line parts."""

    title: str = ""
    columns: Sequence[Column]
    sections: Sequence[Sequence[Sequence[Cell]]]
    caption: str = ""
    ruled: bool = True
    """With lines between the columns."""
    edged: bool = False
    """And around them all."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What there is to see of a result."""

    lines: Sequence[str] = ()
    """Before the tables."""
    tables: Iterable[Table]
    """For people."""
    documents: Sequence[Mapping[str, object]]
    """For programs."""
    notes: Sequence[str] = ()
    """What a reader of the numbers must know."""


def as_html(table: Table) -> str:
    """A table for notebooks, every text in it escaped."""

    def line(tag: str, cells: Iterable[Cell]) -> str:
        told = zip(cells, table.columns, strict=True)
        return "".join(
            f'<{tag} style="text-align: {column.align}">{escape(_plain(one))}</{tag}>'
            for one, column in told
        )

    lines = [line("td", row) for section in table.sections for row in section]
    if any(column.head for column in table.columns):
        lines.insert(0, line("th", [column.head for column in table.columns]))
    rows = "".join(f"<tr>{cells}</tr>" for cells in lines)
    return f"<table><caption>{escape(table.title)}</caption>{rows}</table>"


def _plain(one: Cell) -> str:
    return one if isinstance(one, str) else "".join(piece for piece, _ in one.pieces)


def cell(value: object) -> str:
    """A value as it stands in a table."""
    match value:
        case None:
            return "-"
        case float():
            return f"{value:.4f}"
        case int():
            return f"{value:,}"
        case _:
            return str(value)


def many(n: int, what: str) -> str:
    """`1 shard`, `1,000 shards`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def write_csv(
    path: Path,
    rows: Sequence[Mapping[str, object]],
    *,
    columns: Sequence[str] | None = None,
    line_end: str = "\n",
) -> None:
    """Write rows, at least one, as a table with heads, whole or not at all.

    Args:
        path: Where.
        rows: Each by column; what a row lacks is empty, as is None.
        columns: In their order; None means those of the first row.
        line_end: After each line.

    Raises:
        OSError: the disk is full or fails; the table is as it was.
    """
    text = StringIO()
    writer = csv.DictWriter(text, columns or list(rows[0]), restval="", lineterminator=line_end)
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, [text.getvalue().encode()])


def percent(share: float | None) -> str:
    """A share in at most three digits; a dash for nothing."""
    return "-" if share is None else f"{100 * share:.3g} %"
