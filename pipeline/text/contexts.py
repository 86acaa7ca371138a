"""Text -> contexts: documents tokenised ahead on a thread of their own, packed end to end.

A context takes up where the one before it stopped, in the middle of a document or across several.
The stream's whole state is a `Cursor`; opened at any cursor it gives what it would have given.
"""

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, Protocol, TypeVar, final, runtime_checkable

import numpy as np
from jaxtyping import Int32, Int64

from pipeline.errors import TextError
from pipeline.text.source import TextSource

GROUP_CHARACTERS = 1 << 18
"""Text tokenised in one call; the first calls take less, so that work can start."""

_FIRST_GROUP = GROUP_CHARACTERS >> 2
_GROUPS_AHEAD = 2


@runtime_checkable
class Encoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each document, its separator included."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The first token of the next context: number `offset` of document `document`."""

    document: int = 0
    offset: int = 0

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> "Cursor":
        """As a journal keeps it; None is the start."""
        return cls(**value or {})


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Whole contexts; a token's document id is the number of its document in the source."""

    tokens: Int32[np.ndarray, "contexts ctx_len"]
    document_id: Int64[np.ndarray, "contexts ctx_len"]


_RUN = np.dtype([("token", "i4"), ("document", "i8"), ("offset", "i8"), ("after", "i8")])
"""Tokens in order, with where each stands: in which document, as which token of it, and how many
tokens of the same document follow."""


@final
class ContextStream:
    """Contexts of `ctx_len` tokens; the last, partial one of the text is dropped.

    Use it as a context manager, or close it: a thread reads ahead.
    """

    def __init__(
        self, source: TextSource, tokenizer: Encoder, *, ctx_len: int, start: Cursor | None = None
    ) -> None:
        self.cursor = start or Cursor()
        """After everything taken."""
        self._ctx_len = ctx_len
        self._rest = _pack([], first=0)
        self._ahead = ReadAhead(_tokenised(source, tokenizer, self.cursor), items=_GROUPS_AHEAD)

    def take(self, n: int) -> Contexts:
        """The next `n` contexts; fewer, down to none, only at the end of the text."""
        wanted, have = n * self._ctx_len, 0
        parts = [self._rest[:0]]
        while have < wanted:
            if not len(self._rest):
                group = self._ahead.get()
                if group is None:
                    break
                self._rest = group
            part, self._rest = self._rest[: wanted - have], self._rest[wanted - have :]
            parts.append(part)
            have += len(part)
        taken = np.concatenate(parts)[: have // self._ctx_len * self._ctx_len]
        if len(taken):
            ends = not taken["after"][-1]
            self.cursor = Cursor(
                document=int(taken["document"][-1]) + ends,
                offset=0 if ends else int(taken["offset"][-1]) + 1,
            )
        tokens, documents = (np.ascontiguousarray(taken[name]) for name in ("token", "document"))
        shape = (-1, self._ctx_len)
        return Contexts(tokens=tokens.reshape(shape), document_id=documents.reshape(shape))

    def close(self) -> None:
        """Stop reading; what was read ahead is lost."""
        self._ahead.close()

    def __enter__(self) -> "ContextStream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _tokenised(source: TextSource, tokenizer: Encoder, start: Cursor) -> Iterator[np.ndarray]:
    """The tokens from `start` on, group by group."""
    skipped = start.offset  # of the first document, with which the first group begins
    for first, texts in _groups(source, start.document):
        encoded = iter(tokenizer.encode([text for text in texts if not _is_empty(text)]))
        documents = [[] if _is_empty(text) else next(encoded) for text in texts]
        yield _pack(documents, first=first)[skipped:]
        skipped = 0


def _groups(source: TextSource, start: int) -> Iterator[tuple[int, list[str]]]:
    """(number of its first document, documents) of each group."""
    size, first, characters, found = _FIRST_GROUP, start, 0, start > 0
    texts: list[str] = []
    for text in source.documents(start):
        texts.append(text)
        characters += len(text) + 1
        found = found or not _is_empty(text)
        if characters >= size:
            yield first, texts
            first, texts, characters = first + len(texts), [], 0
            size = min(2 * size, GROUP_CHARACTERS)
    if not found:
        raise TextError(f"{source.name} holds no text")
    if texts:
        yield first, texts


def _is_empty(text: str) -> bool:
    return not text or text.isspace()


def _pack(documents: Sequence[Sequence[int]], *, first: int) -> np.ndarray:
    """Documents end to end; the first has number `first`."""
    lengths = np.array([len(document) for document in documents], np.int64)
    run = np.empty(int(lengths.sum()), _RUN)
    run["token"] = np.fromiter(chain.from_iterable(documents), np.int32, len(run))
    run["document"] = np.repeat(np.arange(first, first + len(documents)), lengths)
    run["offset"] = np.arange(len(run)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    run["after"] = np.repeat(lengths, lengths) - run["offset"] - 1
    return run


T = TypeVar("T")

_PATIENCE = 5.0  # seconds that closing waits for the thread, which may be reading from a network


@final
class ReadAhead(Generic[T]):
    """The items of an iterator, at most `items` of them (and one in the making) held back."""

    def __init__(self, source: Iterator[T], *, items: int) -> None:
        self._source = source
        self._handed: queue.SimpleQueue[tuple[T] | BaseException | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(items)
        self._closed = threading.Event()
        # A daemon: a read that hangs in a network must not keep the process alive.
        self._thread = threading.Thread(target=self._run, name="saepipe-read", daemon=True)
        self._thread.start()

    def get(self) -> T | None:
        """The next item, None after the last; raises what the iterator raised, each time."""
        handed = self._handed.get()
        if isinstance(handed, tuple):
            self._room.release()
            return handed[0]
        self._handed.put(handed)  # for whoever asks once more
        if handed is not None:
            raise handed
        return None

    def close(self) -> None:
        """Stop the thread, at the latest when it has made the item it is at."""
        self._closed.set()
        self._room.release()
        self._thread.join(_PATIENCE)

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for value in self._source:
                self._room.acquire()
                if self._closed.is_set():
                    return
                self._handed.put((value,))
        except BaseException as raised:  # it is raised where the items are wanted
            error = raised
        finally:
            self._handed.put(error)
