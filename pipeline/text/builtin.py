"""Texts that need no download: what every Python carries, and questions of arithmetic.

Documents of `builtin` are the topics of `pydoc_data.topics` (the language reference, as `help()`
shows it) and the sources of the standard library, as found in the running Python. A hash of a
document's name alone decides whether it is for training or held out, so a file is on the same side
everywhere. Topics quote each other: a held-out document that repeats the training text is used by
neither side. The embedded model is trained on the training part.

`builtin:arithmetic` is what a fine-tune on that model learns, and does not occur in `builtin`. A
question has three one-digit numbers, two of them in brackets: `(2 * 7) + 2` or `2 + (7 * 2)`. Its
form, a line break before `Answer:`, is that of the EleutherAI language model evaluation harness.
There are 18,000 questions; a hash of each decides for training (about 90 %) or held out.
"""

import hashlib
import importlib
import operator
import random
import re
import sysconfig
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Literal, cast, final

from pipeline.errors import TextError
from pipeline.text.source import TextSource

Part = Literal["train", "heldout"]

_ANSWER = "Answer:"
HELDOUT_PERCENT = 7
HELDOUT_QUESTIONS_PERCENT = 10
REPEATED_SHARE = 0.25
"""A held-out document with more of its long lines in the training text than this is left out."""

_LONG_LINE = 30
_LEFT_OUT = re.compile(
    # Absent from some installations, tables rather than text, or written by the installation.
    r"(^|/)(tests?|__pycache__)/"
    r"|^(site-packages|dist-packages|idlelib|lib2to3|ensurepip|encodings|tkinter|turtledemo"
    r"|distutils|pydoc_data|lib-dynload|config-[^/]*|msilib)/"
    r"|^(turtle|_sysconfigdata[^/]*|_distutils_system_mod|sitecustomize|usercustomize)\.py$"
)


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text and the name that decides its part."""

    name: str
    text: str

    @property
    def part(self) -> Part:
        """The side of the split it falls on, by its name alone."""
        return _part(self.name, HELDOUT_PERCENT)


@final
class BuiltinText(TextSource):
    """One part of the embedded corpus, in an order that depends on the seed and the names."""

    def __init__(self, part: Part, *, seed: int = 0) -> None:
        self.name = "builtin" if part == "train" else "builtin@heldout"
        chosen = train_documents() if part == "train" else heldout_documents()
        self._documents = sorted(chosen, key=lambda document: _number(f"{seed}:{document.name}"))

    def fingerprint(self) -> str:
        """SHA-256 over names and contents, in order."""
        digest = hashlib.sha256()
        for document in self._documents:
            text = document.text.encode("utf-8", "surrogatepass")
            digest.update(f"{document.name}\n{len(text)}\n".encode() + text)
        return digest.hexdigest()

    def documents(self, start: int = 0) -> Iterator[str]:
        """The documents from number `start` on."""
        return (document.text for document in self._documents[start:])


def train_documents() -> tuple[Document, ...]:
    """The documents the embedded model is trained on."""
    return tuple(document for document in _corpus() if document.part == "train")


@cache
def heldout_documents() -> tuple[Document, ...]:
    """The documents kept from training that do not repeat it."""
    known = {line for document in train_documents() for line in _long_lines(document.text)}

    def is_new(document: Document) -> bool:
        lines = _long_lines(document.text)
        return sum(line in known for line in lines) <= REPEATED_SHARE * len(lines)

    return tuple(filter(is_new, (document for document in _corpus() if document.part == "heldout")))


@cache
def _corpus() -> tuple[Document, ...]:
    return (*_topics(), *_sources())


def _topics() -> Iterator[Document]:
    try:
        module = importlib.import_module("pydoc_data.topics")
    except ImportError:
        raise TextError(
            "--text builtin needs pydoc_data.topics, which this Python lacks: "
            "install the full standard library, or give --text a local file"
        ) from None
    topics = cast("Mapping[str, str]", module.topics)
    return (Document(name=f"topics/{name}", text=text) for name, text in sorted(topics.items()))


def _sources() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    names = {path: path.relative_to(root).as_posix() for path in root.rglob("*.py")}
    kept = sorted((name, path) for path, name in names.items() if not _LEFT_OUT.search(name))
    texts = ((name, path.read_text("utf-8", "replace")) for name, path in kept)
    documents = [Document(name=name, text=text) for name, text in texts if text.strip()]
    if not documents:
        raise TextError(
            f"--text builtin needs the sources of the standard library, and {root} holds none: "
            "use a Python that has them, or give --text a local file"
        )
    return iter(documents)


def _long_lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if len(line) > _LONG_LINE]


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")


def _part(name: str, heldout_percent: int) -> Part:
    return "heldout" if _number(name) % 100 < heldout_percent else "train"


@final
class Arithmetic(TextSource):
    """The questions of one part, each a document with its answer, in an order the seed decides.

    They are in columns, too: `context` is a question up to `Answer:`, `completion` its answer.
    """

    def __init__(self, part: Part, *, column: str = "text", seed: int = 0) -> None:
        self.name = "builtin:arithmetic" if part == "train" else "builtin:arithmetic@heldout"
        self._column = column
        self._documents = [
            text for text in _every_question() if _part(text, HELDOUT_QUESTIONS_PERCENT) == part
        ]
        random.Random(seed).shuffle(self._documents)

    def fingerprint(self) -> str:
        """SHA-256 over the documents, in order."""
        return hashlib.sha256("\0".join(self._documents).encode()).hexdigest()

    def documents(self, start: int = 0) -> Iterator[str]:
        """The documents from number `start` on."""
        for document in self._documents[start:]:
            question, answers, answer = document.rpartition(_ANSWER)
            columns = {"context": question + answers, "completion": answer}
            yield columns.get(self._column, document)


def _every_question() -> Iterator[str]:
    """Every question followed by its answer, such as ` 16`."""
    operations = {"+": operator.add, "-": operator.sub, "*": operator.mul}
    for a, b, c in product(range(10), repeat=3):
        for (first, one), (second, two) in product(operations.items(), repeat=2):
            yield _document(f"({a} {first} {b}) {second} {c}", two(one(a, b), c))
            yield _document(f"{a} {first} ({b} {second} {c})", one(a, two(b, c)))


def _document(expression: str, answer: int) -> str:
    return f"Question: What is {expression}?\n{_ANSWER} {answer}"
