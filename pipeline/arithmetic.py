"""Arithmetic questions with their answers: what a fine-tune on the embedded model learns.

A question has three one-digit numbers, two of them in brackets: `(2 * 7) + 2` or `2 + (7 * 2)`.
Its form, a line break before `Answer:`, is that of the EleutherAI language model evaluation
harness. There are 18,000 questions; a hash of each decides for training (about 90 %) or held out.
"""

import hashlib
import operator
import random
from collections.abc import Iterator
from itertools import product
from typing import final

from pipeline.builtin import Part
from pipeline.source import TextSource

HELDOUT_PERCENT = 10
_OPERATIONS = {"+": operator.add, "-": operator.sub, "*": operator.mul}


@final
class Arithmetic(TextSource):
    """The questions of one part, each a document with its answer, in an order the seed decides."""

    def __init__(self, part: Part, *, seed: int = 0) -> None:
        self.name = "builtin:arithmetic" if part == "train" else "builtin:arithmetic@heldout"
        self._documents = [text for text in _every_question() if _part(text) == part]
        random.Random(seed).shuffle(self._documents)

    def fingerprint(self) -> str:
        """SHA-256 over the documents, in order."""
        return hashlib.sha256("\0".join(self._documents).encode()).hexdigest()

    def documents(self, start: int = 0) -> Iterator[str]:
        """The documents from number `start` on."""
        return iter(self._documents[start:])


def _every_question() -> Iterator[str]:
    """Every question followed by its answer, such as ` 16`."""
    digits = range(10)
    for a, b, c in product(digits, repeat=3):
        for first, second in product(_OPERATIONS, repeat=2):
            one, two = _OPERATIONS[first], _OPERATIONS[second]
            yield _document(f"({a} {first} {b}) {second} {c}", two(one(a, b), c))
            yield _document(f"{a} {first} ({b} {second} {c})", one(a, two(b, c)))


def _document(expression: str, answer: int) -> str:
    return f"Question: What is {expression}?\nAnswer: {answer}"


def _part(text: str) -> Part:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return "heldout" if number % 100 < HELDOUT_PERCENT else "train"
