"""Where in a record its text stands."""

from collections.abc import Iterable, Mapping
from typing import cast

from pipeline.errors import TextError

QUESTION = ("context", "completion")
"""Columns of a question and its answer (EleutherAI/arithmetic): read as one text."""


def text_columns(columns: Iterable[str], column: str, *, where: str) -> tuple[str, ...]:
    """The columns whose texts, one after the other, are the document.

    Args:
        columns: Those that are there.
        column: The one asked for.
        where: Names the source in the error.

    Raises:
        TextError: neither the one asked for nor question and answer are there.
    """
    there = tuple(columns)
    if column in there:
        return (column,)
    if column == "text" and set(QUESTION) <= set(there):
        return QUESTION
    listed = ", ".join(repr(name) for name in there) or "none"
    raise TextError(
        f"{where} has no column {column!r}; its columns are {listed}: "
        'name the one with text in a --config file, as text_column = "..."'
    )


def text_of(record: object, column: str, *, where: str) -> str:
    """The document of a record, or of a plain string; empty where the record says null.

    Raises:
        TextError: the record has no such column, or something else than text in it.
    """
    if isinstance(record, str):
        return record
    if not isinstance(record, Mapping):
        raise TextError(f"{where} is neither a record nor a string but {_kind(record)}")
    fields = cast("Mapping[str, object]", record)
    values = [fields[name] for name in text_columns(fields, column, where=where)]
    for value in values:
        if value is not None and not isinstance(value, str):
            raise TextError(f"{where} holds {_kind(value)} where text is expected")
    return "".join(value for value in values if isinstance(value, str))


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"
