"""Text -> contexts: documents tokenised ahead on a thread of their own, packed end to end.

A context takes up where the one before it stopped, in the middle of a document or across several;
or, where documents are to be kept separate, none holds parts of two: what is left at the end of
each, shorter than a context, is left out.
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

from pipeline.config.stages import Documents
from pipeline.errors import TextError
from pipeline.lm.chat import ChatEncoder, ChatTemplate
from pipeline.lm.tokenizer import Tokenizer
from pipeline.text.columns import Column
from pipeline.text.open import open_text
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

    def parts(self, document: list[int]) -> list[list[int]]:
        """The documents that one turned out to hold, once its special tokens were parsed."""
        ...


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The first token of the next context: number `offset` of document `document`."""

    document: int = 0
    offset: int = 0
    breaks: int = 0
    """Documents before it that began inside of another."""

    @classmethod
    def from_json(cls, value: Mapping[str, Any] | None) -> "Cursor":
        """As a journal keeps it; None is the start."""
        return cls(**value or {})


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """Whole contexts.

    A token's document id is the number of its document in the source, and one more for each break
    inside of a document up to there.
    """

    tokens: Int32[np.ndarray, "contexts ctx_len"]
    document_id: Int64[np.ndarray, "contexts ctx_len"]


_RUN = np.dtype([(name, "i8") for name in ("token", "document", "offset", "after", "breaks")])
"""Tokens in order, with where each stands: in which document, as which token of it, how many tokens
of the same document follow, and how many breaks inside documents came before."""


@final
class ContextStream:
    """Contexts of `ctx_len` tokens; the last, partial one of the text is dropped.

    Use it as a context manager, or close it: a thread reads ahead.
    """

    def __init__(
        self,
        source: TextSource,
        tokenizer: Encoder,
        *,
        ctx_len: int,
        documents: Documents = "joined",
        start: Cursor | None = None,
    ) -> None:
        self.cursor = start or Cursor()
        """After everything taken."""
        self._ctx_len = ctx_len
        self._rest = np.empty(0, _RUN)
        unit = 1 if documents == "joined" else ctx_len
        runs = _tokenised(source, tokenizer, self.cursor, unit=unit)
        self._ahead = ReadAhead(runs, items=_GROUPS_AHEAD)

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
                breaks=int(taken["breaks"][-1]),
            )
        tokens, documents = taken["token"].astype(np.int32), taken["document"] + taken["breaks"]
        shape = (-1, self._ctx_len)
        return Contexts(tokens=tokens.reshape(shape), document_id=documents.reshape(shape))

    def close(self) -> None:
        """Stop reading; what was read ahead is lost."""
        self._ahead.close()

    def __enter__(self) -> "ContextStream":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_contexts(
    source: str,
    tokenizer: Tokenizer,
    *,
    column: str,
    chat: ChatTemplate | None,
    ctx_len: int,
    documents: Documents,
    start: Cursor | None,
    seed: int = 0,
) -> ContextStream:
    """The contexts of the text of this name; with a template its documents are conversations."""
    of = Column(column, None if chat is None else chat.text)
    return ContextStream(
        open_text(source, column=of, seed=seed),
        tokenizer if chat is None else ChatEncoder(tokenizer),
        ctx_len=ctx_len,
        documents=documents,
        start=start,
    )


def _tokenised(
    source: TextSource, tokenizer: Encoder, start: Cursor, *, unit: int
) -> Iterator[np.ndarray]:
    """The tokens from `start` on, group by group; of each part, whole multiples of `unit`."""
    skipped, breaks = start.offset, start.breaks
    for first, texts in _groups(source, start.document):
        encoded = iter(tokenizer.encode([text for text in texts if not _is_empty(text)]))
        documents = [
            [] if _is_empty(text) else _whole(tokenizer.parts(next(encoded)), unit)
            for text in texts
        ]
        run = _pack(documents, first=first)
        # The first group begins with the document of the cursor, whose breaks it has counted.
        breaks -= int(run["breaks"][skipped - 1]) if skipped else 0
        run["breaks"] += breaks
        breaks += sum(max(0, len(parts) - 1) for parts in documents)
        yield run[skipped:]
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


def _whole(parts: Sequence[list[int]], unit: int) -> list[list[int]]:
    """Of each part whole multiples of `unit`, and no part that is shorter than one."""
    return [part[: len(part) // unit * unit] for part in parts if len(part) >= unit]


def _pack(documents: Sequence[Sequence[list[int]]], *, first: int) -> np.ndarray:
    """Documents, in parts, end to end; the first has number `first`."""
    lengths = np.array([sum(map(len, parts)) for parts in documents], np.int64)
    run = np.empty(int(lengths.sum()), _RUN)
    tokens = chain.from_iterable(chain.from_iterable(documents))
    run["token"] = np.fromiter(tokens, np.int32, len(run))
    run["document"] = np.repeat(np.arange(first, first + len(documents)), lengths)
    run["offset"] = np.arange(len(run)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    run["after"] = np.repeat(lengths, lengths) - run["offset"] - 1
    sizes = np.array([len(part) for parts in documents for part in parts], np.int64)
    inside = np.array([i > 0 for parts in documents for i in range(len(parts))], np.int64)
    run["breaks"] = np.repeat(np.cumsum(inside), sizes)
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
