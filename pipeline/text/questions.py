"""Questions with their answers, of a text that has them in two columns."""

from collections.abc import Iterator
from typing import NamedTuple

from pipeline.errors import TextError
from pipeline.text.files import QUESTIONS, NoSuchColumnError
from pipeline.text.open import open_text


class Question(NamedTuple):
    """What is given, and what is to follow; a text is the one after the other."""

    prompt: str
    answer: str


def questions(source: str, start: int = 0) -> Iterator[Question]:
    """The questions of a text, from number `start` on, in the order of its documents.

    Raises:
        TextError: the text cannot be read, or has no columns for questions and answers.
    """
    pairs = _read(source, _columns(source), start)
    return (question for question in pairs if question.prompt.strip() and question.answer.strip())


def _read(source: str, columns: tuple[str, str], start: int) -> Iterator[Question]:
    texts = (open_text(source, column=column).documents(start) for column in columns)
    return (Question(*pair) for pair in zip(*texts, strict=True))


def _columns(source: str) -> tuple[str, str]:
    """The columns of a text that hold its questions and its answers."""
    try:
        first = next(_read(source, QUESTIONS[0], 0), None)
    except NoSuchColumnError as error:
        for pair in QUESTIONS:
            if set(pair) <= set(error.columns):
                return pair
        listed = ", ".join(map(repr, error.columns)) or "none"
        raise _none(source, f"its columns are {listed}") from error
    if first is not None and first.prompt == first.answer:
        raise _none(source, "it is plain text")  # which has no columns, and gives itself for each
    return QUESTIONS[0]


def _none(source: str, why: str) -> TextError:
    known = ", or ".join(" and ".join(pair) for pair in QUESTIONS)
    return TextError(
        f"{source} holds no questions with answers, {why}: give one with the columns {known}"
    )
