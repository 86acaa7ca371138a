"""Text of tokens for people.

A byte-level tokenizer cuts characters: a token alone may hold half of one, and be no text. In a
sequence the halves come together again.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby

_LONG_RUN, _AT_AN_END = re.compile(" {4,}"), re.compile("^ +| +$")
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories of what moves, hides or turns around other text, and of what is no text."""


class TokenTexts:
    """The tokens of a vocabulary as text.

    Args:
        bytes_of: What a token stands for, as `Tokenizer.token_bytes` or a dict's `get` tell. A
            token that it does not know stands as its number, `[17]`.
    """

    def __init__(self, bytes_of: Callable[[int], bytes | None]) -> None:
        self.bytes_of = bytes_of
        self._alone: dict[int, str | None] = {}

    def alone(self, token: int) -> str:
        r"""One token by itself; bytes that are no text as `\xe2`."""
        text = self._whole(token)
        return _escaped(self._bytes(token)) if text is None else text

    def pieces(self, tokens: Sequence[int]) -> tuple[str, ...]:
        r"""A text for each token, which together are the text of the sequence.

        A character that several tokens make up together stands at the first of them, and the
        others get nothing of it; bytes that make up none stand as `\xe2`. Numbers below zero,
        where a window reaches beyond its context, get an empty text.
        """
        whole = [self._whole(token) for token in tokens]
        if None not in whole:
            return tuple(text for text in whole if text is not None)
        pieces: list[str] = []
        for cut, run in groupby(zip(tokens, whole, strict=True), lambda pair: pair[1] is None):
            if cut:  # what continues a cut token is cut itself: no character leaves the run
                pieces += _joined([self._bytes(token) for token, _ in run])
            else:
                pieces += [text or "" for _, text in run]
        return tuple(pieces)

    def _bytes(self, token: int) -> bytes:
        known = self.bytes_of(token)
        return f"[{token}]".encode() if known is None else known

    def _whole(self, token: int) -> str | None:
        """A token that is text by itself; None if it is not."""
        if token < 0:
            return ""
        if token not in self._alone:
            try:
                self._alone[token] = self._bytes(token).decode()
            except UnicodeDecodeError:
                self._alone[token] = None
        return self._alone[token]


def visible(text: str) -> str:
    r"""A text on one line that does nothing to a terminal.

    Line ends and tabs are shown by signs; control characters, marks that turn the direction of
    writing, and whatever else does not show itself, as `\x1b` or `\u202e`.
    """
    return text.translate(_VISIBLE)


def label(text: str) -> str:
    """The text of one token, on one line, its spaces to be seen where they would not be."""
    line = visible(text)
    line = _LONG_RUN.sub(lambda run: f"{len(run[0])}␣", line)
    return _AT_AN_END.sub(lambda run: "␣" * len(run[0]), line)


class _Visible(dict[int, str]):
    """The table of `visible`, filled as characters are met."""

    def __missing__(self, code: int) -> str:
        if unicodedata.category(chr(code)) not in _HIDDEN:
            shown = chr(code)
        elif code < 0x100:
            shown = f"\\x{code:02x}"
        else:
            shown = f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
        self[code] = shown
        return shown


_VISIBLE = _Visible({ord("\n"): "↵", ord("\t"): "→"})


def _joined(parts: Sequence[bytes]) -> Iterator[str]:
    """Texts of tokens that cut characters, each whole character at the token that it begins in."""
    data = b"".join(parts)
    pieces = ["" for _ in parts]
    owner = [i for i, part in enumerate(parts) for _ in part]
    start = 0
    while start < len(data):
        character, n_bytes = _first_character(data[start : start + 4])
        pieces[owner[start]] += character
        start += n_bytes
    return iter(pieces)


@cache
def _first_character(data: bytes) -> tuple[str, int]:
    """The first character of some bytes, an escape if they begin with none, and its length."""
    for n in range(1, len(data) + 1):
        try:
            return data[:n].decode(), n
        except UnicodeDecodeError:
            continue
    return _escaped(data[:1]), 1


def _escaped(data: bytes) -> str:
    """Bytes as text, as far as they are; the others as escapes."""
    return data.decode(errors="backslashreplace")
