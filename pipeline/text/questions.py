"""Questions with their answers, of a text that has them in two columns, or in conversations."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from pipeline.errors import TextError
from pipeline.text.columns import (
    CONVERSATIONS,
    QUESTIONS,
    Column,
    Conversation,
    NoSuchColumnError,
)
from pipeline.text.open import open_text

Spelled = tuple[str, Sequence[tuple[int, int]]]
"""A text, and where in it the answers are: from and to, in characters."""


class Question(NamedTuple):
    """What is given and what is to follow; of a conversation, several in turn."""

    text: str
    answers: tuple[tuple[int, int], ...]
    """Where in it the answers are: from and to, in characters."""
    templated: bool = False
    """Whether special tokens that the text spells are meant: a chat template put them there."""


def questions(
    source: str,
    start: int = 0,
    *,
    column: str = "text",
    chat: Callable[[Conversation], Spelled] | None = None,
) -> Iterator[Question]:
    """The questions of a text, from number `start` on, in the order of its documents.

    Args:
        source: A text, as `open_text` knows it.
        start: Documents to pass over.
        column: The one with conversations, where it is not of a usual name.
        chat: Spells a conversation.

    Raises:
        TextError: the text cannot be read, or has neither columns for questions and answers nor,
            where they can be spelled, conversations.
    """
    columns = _columns(source, [] if chat is None else [column, *CONVERSATIONS])
    if chat is not None and len(columns) == 1:
        found = (_conversation(one, chat) for one in _read(source, columns, start))
    else:
        found = (_pair(*pair) for pair in _read(source, columns, start))
    return (question for question in found if question.answers)


def _pair(prompt: str, answer: str) -> Question:
    """One after the other; without an answer where either is blank."""
    whole = bool(prompt.strip() and answer.strip())
    text = prompt + answer
    return Question(text, ((len(prompt), len(text)),) if whole else ())


def _conversation(told: tuple[str, ...], chat: Callable[[Conversation], Spelled]) -> Question:
    text, spans = chat(json.loads(told[0] or "[]"))
    return Question(text, tuple(span for span in spans if text[slice(*span)].strip()), True)


def _read(source: str, columns: tuple[str, ...], start: int) -> Iterator[tuple[str, ...]]:
    spell = partial(json.dumps, default=str) if len(columns) == 1 else None
    texts = (open_text(source, column=Column(name, spell)) for name in columns)
    return zip(*(text.documents(start) for text in texts), strict=True)


def _columns(source: str, of_conversations: Sequence[str]) -> tuple[str, ...]:
    """The columns of a text that hold its questions and its answers, or its conversations."""
    try:
        first = next(_read(source, QUESTIONS[0], 0), None)
    except NoSuchColumnError as error:
        singly = [(name,) for name in of_conversations if name != "text"]
        for columns in (*QUESTIONS, *singly):
            if set(columns) <= set(error.columns):
                return columns
        listed = ", ".join(map(repr, error.columns)) or "none"
        raise _none(source, f"its columns are {listed}") from error
    if first is not None and first[0] == first[1]:
        raise _none(source, "it is plain text")  # which has no columns, and gives itself for each
    return QUESTIONS[0]


def _none(source: str, why: str) -> TextError:
    known = ", or ".join(" and ".join(pair) for pair in QUESTIONS)
    return TextError(
        f"{source} holds no questions with answers, {why}: give one with the columns {known}, "
        f"or with conversations as {CONVERSATIONS[0]}"
    )
