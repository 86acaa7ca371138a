"""Where a record has its text: a column, two that make one, or a conversation.

A conversation is a list of messages, in either of the field's spellings:

    [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    [{"from": "human", "value": "Hello"}, {"from": "gpt", "value": "Hi"}]
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from pipeline.errors import TextError

QUESTIONS = (
    ("context", "completion"),  # EleutherAI/arithmetic
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
)
"""Pairs of columns with what is given and what is to follow: read as one text."""

CONVERSATIONS = ("messages", "conversations", "conversation")
"""Columns that hold conversations."""

_READ_CONVERSATIONS = (
    "conversations are read with --chat-template by saepipe harvest and eval, and saepipe finetune "
    "learns with --loss-on completion"
)
_ROLES = {"human": "user", "gpt": "assistant"}

Conversation = Sequence[Mapping[str, Any]]
"""Messages with a `role` and a `content`, and maybe more that a template knows."""


@dataclass(frozen=True)
class Column:
    """What of a record is its text."""

    name: str = "text"
    spell: Callable[[Conversation], str] | None = None
    """Makes a text of a conversation; None where there is to be none."""

    def require_records(self, name: str, *, what: str) -> None:
        """Refuse a text of this name, in which there are no conversations to spell."""
        if self.spell is not None:
            raise TextError(
                f"{name} is {what}, which holds no conversations: give a text of records, with "
                "their column as --text-column NAME, or leave out --chat-template"
            )


class NoSuchColumnError(TextError):
    """A table without the column that was asked for."""

    def __init__(self, told: str, *, columns: Sequence[str]) -> None:
        super().__init__(told)
        self.columns = columns


def text_columns(columns: Iterable[str], column: Column, *, where: str) -> tuple[str, ...]:
    """Of `columns`, those whose texts, one after the other, are the document."""
    there = tuple(columns)
    if column.name in there:
        return (column.name,)
    for pair in QUESTIONS if column.name == "text" else ():
        if set(pair) <= set(there):
            return pair
    listed = ", ".join(repr(name) for name in there) or "none"
    wanted = "text" if column.spell is None else "conversations"
    raise NoSuchColumnError(
        f"{where} has no column {column.name!r}; its columns are {listed}: "
        f"name the one with {wanted}, as --text-column NAME{_of_answers(there, column)}",
        columns=there,
    )


def _of_answers(columns: Sequence[str], column: Column) -> str:
    if column.spell is not None or not {*CONVERSATIONS} & {*columns}:
        return ""
    return f"; {_READ_CONVERSATIONS}"


def text_of(record: object, column: Column, *, where: str) -> str:
    """The document of a record, or of a plain string; empty where the record says null."""
    if isinstance(record, str) and column.spell is None:
        return _encodable(record, where=where)
    if not isinstance(record, Mapping):
        expected = "neither a record nor a string" if column.spell is None else "not a record"
        raise TextError(f"{where} is {expected} but a {type(record).__name__}")
    fields = cast("Mapping[str, object]", record)
    values = [fields[name] for name in text_columns(fields, column, where=where)]
    return _encodable("".join(_text(value, column, where=where) for value in values), where=where)


def _text(value: object, column: Column, *, where: str) -> str:
    if value is None:
        return ""
    if column.spell is not None:
        if not isinstance(value, list):
            kind = type(value).__name__
            raise TextError(f"{where} holds a {kind} where a conversation is expected")
        messages = _conversation(cast("list[object]", value), where=where)
        try:
            return column.spell(messages)
        except TextError as error:
            raise TextError(f"{where}: {error}") from error
    if not isinstance(value, str):
        told = f": {_READ_CONVERSATIONS}" if isinstance(value, list) else ""
        raise TextError(f"{where} holds a {type(value).__name__} where text is expected{told}")
    return value


def _conversation(value: list[object], *, where: str) -> Conversation:
    """The messages, sure to have a role and a text each."""
    messages = list[Mapping[str, Any]]()
    for message in value:
        told = cast("Mapping[str, Any]", message) if isinstance(message, Mapping) else {}
        role, content = told.get("role", told.get("from")), told.get("content", told.get("value"))
        if not isinstance(role, str) or not isinstance(content, str):
            raise TextError(
                f"{where} holds a list that is no conversation: a message has a role and a "
                f"content, both text, and this one has {_described(message)}"
            )
        text = _encodable(content, where=where)
        messages.append({**told, "role": _ROLES.get(role, role), "content": text})
    return messages


def _described(message: object) -> str:
    if not isinstance(message, Mapping):
        return f"the form of a {type(message).__name__}"
    told = cast("Mapping[str, object]", message)
    return ", ".join(f"{key!r}: {type(value).__name__}" for key, value in told.items()) or "nothing"


def _encodable(text: str, *, where: str) -> str:
    """A text, unless it holds half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise TextError(
            f"{where} holds {ascii(text[error.start])[1:-1]}, which is no character: mend or "
            "remove it"
        ) from error
    return text
