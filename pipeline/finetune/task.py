"""What a fine-tuning learns from and is measured on: rows of tokens, and which predictions count.

Contexts of a running text, in which every prediction counts; or questions or conversations, one
a row, in which those of the answers do.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch
from jaxtyping import Bool, Int32, Int64
from torch import Tensor

from pipeline.config.stages import FinetuneConfig
from pipeline.errors import TextError
from pipeline.lm.chat import ChatTemplate
from pipeline.lm.tokenizer import Tokenizer
from pipeline.text.columns import Conversation
from pipeline.text.heldout import split_contexts
from pipeline.text.open import heldout_of
from pipeline.text.questions import Question, Spelled, questions


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Rows of tokens; the token after the last that counts may be anything."""

    tokens: Int32[Tensor, "rows length"]
    counted: Bool[Tensor, "rows predictions"] | None = None
    """Which of the `length - 1` predictions of each row count; None where all do."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def n_counted(self) -> int:
        """Predictions that count."""
        if self.counted is None:
            return len(self.tokens) * (self.tokens.shape[1] - 1)
        return int(self.counted.sum())

    @property
    def present(self) -> Bool[Tensor, "rows length"]:
        """Which tokens are of a text, up to the last one that counts."""
        if self.counted is None:
            return torch.ones_like(self.tokens, dtype=torch.bool)
        predicted = torch.nn.functional.pad(self.counted, (1, 0))
        return predicted.flip(1).cumsum(1).flip(1) > 0

    def part(self, chosen: Int64[Tensor, " some"] | slice) -> "Rows":
        """Some of the rows, as long as the longest of them needs."""
        tokens = self.tokens[chosen]
        if self.counted is None:
            return Rows(tokens=tokens)
        counted = self.counted[chosen]
        last = int((counted.any(0) * torch.arange(counted.shape[1])).max())
        return Rows(tokens=tokens[:, : last + 2], counted=counted[:, : last + 1])

    def split(self, size: int) -> Iterator["Rows"]:
        """So many rows at a time."""
        for start in range(0, len(self), size):
            yield self.part(slice(start, start + size))


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """Rows to learn from, and others, of which nothing is learned."""

    train: Rows
    choosing: Rows
    """To measure on after each epoch."""
    heldout: Rows
    """To measure on before and after; the same, where nothing is chosen by those."""
    asked: Rows | None
    """Held-out questions, to be answered exactly; None where the text has none."""
    notes: tuple[str, ...]
    """What a reader must know of them, one sentence each."""

    def halved(self) -> "Task":
        """With one half of the held-out rows to choose by, the other to measure on.

        Raises:
            TextError: there is a single one.
        """
        if self.choosing is not self.heldout:
            return self
        if len(self.heldout) < 2:
            raise TextError(
                "the text leaves a single row to measure on, and another is needed to choose by: "
                "give a longer text, or more heldout_contexts"
            )
        every = torch.arange(len(self.heldout))
        choosing, heldout = self.heldout.part(every[::2]), self.heldout.part(every[1::2])
        return replace(self, choosing=choosing, heldout=heldout)


def load_task(
    config: FinetuneConfig,
    tokenizer: Tokenizer,
    *,
    chat: Callable[[], ChatTemplate] | None = None,
) -> Task:
    """The task of a fine-tuning.

    Args:
        config: Which text, how much of it, and what of it counts.
        tokenizer: Of the model.
        chat: Gives the model's chat template, which conversations need; without, none are taken.

    Raises:
        ModelError: the text holds conversations, and the model has no chat template.
        TextError: the text cannot be read, holds too little for one row on each side, or has no
            questions where the loss is to be that of their answers.
    """
    if config.loss_on == "completion":
        train, heldout, asked, notes = _of_answers(config, tokenizer, chat)
    else:
        train, heldout, asked, notes = _of_text(config, tokenizer)
    task = Task(train=train, choosing=heldout, heldout=heldout, asked=asked, notes=tuple(notes))
    return task if config.patience is None else task.halved()


Found = tuple[Rows, Rows, Rows | None, Sequence[str]]


def _of_text(config: FinetuneConfig, tokenizer: Tokenizer) -> Found:
    """Contexts, and the questions behind those that are learned from, if there are any."""
    split = split_contexts(
        config.text,
        tokenizer,
        ctx_len=config.ctx_len,
        n_train=config.steps_per_epoch * config.batch_size,
        n_heldout=config.heldout_contexts,
        column=config.text_column,
    )
    train, heldout = Rows(tokens=split.train), Rows(tokens=split.heldout)
    asked, notes = None, list(split.notes)
    try:
        behind = questions(heldout_of(config.text) or config.text, split.heldout_document)
    except TextError:
        return train, heldout, None, notes
    rows, n_long = _rows_of(behind, tokenizer, n=config.heldout_questions, ctx_len=config.ctx_len)
    if len(rows):
        asked = rows
    notes += _too_long(n_long, config)
    return train, heldout, asked, notes


def _of_answers(
    config: FinetuneConfig, tokenizer: Tokenizer, chat: Callable[[], ChatTemplate] | None
) -> Found:
    """Questions or conversations, one a row."""

    def spelled(messages: Conversation) -> Spelled:
        assert chat is not None
        return chat().spelled(messages)

    def rows(source: str, n: int) -> tuple[Rows, int]:
        takes = None if chat is None else spelled
        found = questions(source, column=config.text_column, chat=takes)
        return _rows_of(found, tokenizer, n=n, ctx_len=config.ctx_len)

    n_train = config.steps_per_epoch * config.batch_size
    n_heldout = max(config.heldout_contexts, config.heldout_questions)
    apart = heldout_of(config.text)
    n = n_train if apart else n_train + n_heldout
    both, n_long = rows(config.text, n)
    if apart:
        train = both
        heldout, n_more = rows(apart, n_heldout)
        n_long += n_more
    else:
        n_apart = n_heldout if len(both) == n else min(n_heldout, -(-len(both) // _SHARE))
        cut = len(both) - n_apart
        train, heldout = both.part(slice(0, cut)), both.part(slice(cut, None))
    if not len(train) or not len(heldout):
        raise TextError(
            f"{config.text} holds {len(both)} questions with answers of up to {config.ctx_len} "
            "tokens: at least two are needed, one of them to measure on"
        )
    notes = [
        f"{wanted} questions were asked for to {purpose}; {config.text} gives {len(some)}"
        for some, wanted, purpose in (
            (train, n_train, "learn from"),
            (heldout, n_heldout, "measure on"),
        )
        if len(some) < wanted
    ]
    measured = heldout.part(slice(0, config.heldout_contexts))
    return train, measured, heldout.part(slice(0, config.heldout_questions)), [
        *notes, *_too_long(n_long, config)
    ]  # fmt: skip


_SHARE = 5
"""A text too short for what was asked keeps one in so many of its questions apart."""


def _too_long(n: int, config: FinetuneConfig) -> list[str]:
    if not n:
        return []
    return [f"{n} questions were left out: with the answer, longer than {config.ctx_len} tokens"]


def _rows_of(
    asked: Iterator[Question], tokenizer: Tokenizer, *, n: int, ctx_len: int
) -> tuple[Rows, int]:
    """The first `n` questions that fit into a context, and how many did not.

    A conversation fits if one of its answers begins in the context, at whose end it is cut.
    """
    found, n_long = list[tuple[list[int], list[bool]]](), 0
    while len(found) < n and (some := list(islice(asked, n - len(found)))):
        texts, answers, (parse, *_) = zip(*some, strict=True)
        encoded = tokenizer.encode_answers(texts, answers, parse=parse)
        for (ids, its), question in zip(encoded, some, strict=True):
            if question.templated:
                ids, its = ids[:ctx_len], its[:ctx_len]
            if len(ids) <= ctx_len and any(its[1:]) and not all(its):
                found.append((ids, its))
            else:
                n_long += 1
    length = max((len(ids) for ids, _ in found), default=2)
    tokens = torch.zeros(len(found), length, dtype=torch.int32)
    counted = torch.zeros(len(found), length - 1, dtype=torch.bool)
    for row, (ids, its) in enumerate(found):
        tokens[row, : len(ids)] = torch.tensor(ids)
        counted[row, : len(ids) - 1] = torch.tensor(its[1:])
    return Rows(tokens=tokens, counted=counted), n_long
