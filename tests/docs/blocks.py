"""The fenced blocks of a page, in its order."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from textwrap import dedent

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w-]*)[^`\n]*\n(?P<code>.*?)^(?P=indent)``` *$",
    re.DOTALL | re.MULTILINE,
)
_NOT_RUN = re.compile(r"<!-- not run: \S.* -->")
SHOWN = "text"
"""The language of output: below a block that is run, it is compared with what that prints."""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block, without its indentation."""

    language: str
    code: str
    line: int
    """Of the page, on which its code begins; the first is 1."""
    is_run: bool
    """Unless the line straight above it says why not."""
    shown: str = ""
    """The output straight below it, if any."""


def blocks_of(text: str) -> Iterator[Block]:
    """All there are, output too."""
    found = [*_BLOCK.finditer(text)]
    for block, below in zip_longest(found, found[1:]):
        gap = "gap" if below is None else text[block.end() : below.start()].strip()
        above = text[: block.start()].removesuffix("\n").rpartition("\n")[2].strip()
        yield Block(
            language=block["language"],
            code=dedent(block["code"]),
            line=text[: block.start("code")].count("\n") + 1,
            is_run=_NOT_RUN.fullmatch(above) is None,
            shown=dedent(below["code"]) if below and below["language"] == SHOWN and not gap else "",
        )


def without_blocks(text: str) -> str:
    """The words of a page, on the lines where they are."""
    return _BLOCK.sub(lambda block: "\n" * block[0].count("\n"), text)
