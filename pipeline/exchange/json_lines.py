r"""Texts and numbers of data sets as JSON that every reader takes, whatever they hold.

A token may hold anything. JSON in a database (PostgreSQL's jsonb) takes no NUL and no half of a
surrogate pair, and who replaces `\u0000` in a file of JSON finds it also in a token that spells it:
a backslash is written as `\u005c`, so that a text never looks like an escape.
"""

import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from actstore.files import write_file


def clean(text: str) -> str:
    """A text without NUL (shown as its sign) and without halves of surrogate pairs."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "\N{SYMBOL FOR NULL}")


def line(row: Mapping[str, object]) -> bytes:
    """One object on one line, in ASCII.

    Raises:
        ValueError: a number is not finite.
    """
    text = json.dumps(row, allow_nan=False, separators=(",", ":"))
    return text.replace("\\\\", "\\u005c").encode() + b"\n"


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One object a line; compressed if the name ends in `.gz`, the same rows to the same bytes."""
    data = b"".join(map(line, rows))
    write_file(path, [gzip.compress(data, 6, mtime=0) if path.suffix == ".gz" else data])
