"""From text to token ids, by the fast tokenizer that a model ships as tokenizer.json."""

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as FastTokenizer

from pipeline.config.stages import SpecialTokens
from pipeline.errors import ModelError
from pipeline.lm.hub import ModelFiles, read_object

Spans = Sequence[tuple[int, int]]
"""From and to, in characters."""

_BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")


def _byte_letters() -> dict[str, bytes]:
    """What each letter of a byte-level vocabulary stands for (Radford et al. 2019, GPT-2).

    Bytes that Latin-1 shows stand for themselves, the others for the letters from U+0100 on.
    """
    shown = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in shown]
    codes = {**{byte: byte for byte in shown}, **{byte: 256 + i for i, byte in enumerate(hidden)}}
    return {chr(code): bytes([byte]) for byte, code in codes.items()}


_BYTE_OF = _byte_letters()


class Tokenizer:
    """Encodes documents, each with the separator that tells it from the next.

    A tokenizer that opens each document with a special token of its own (Llama's `<s>`) has its
    separator; to others (Pythia's, GPT-2's) the end-of-text token is appended. Where a text spells
    a special token, it is text like any other, unless `special_tokens` says to parse it.
    """

    def __init__(
        self,
        fast: FastTokenizer,
        *,
        eos_id: int | None,
        fingerprint: str,
        special_tokens: SpecialTokens = "literal",
    ) -> None:
        fast.encode_special_tokens = special_tokens == "literal"
        self._fast = fast
        self.eos_id = eos_id
        self.fingerprint = fingerprint
        self._parses = special_tokens == "parse"
        self._opener = next(iter(fast.encode("").ids), None)  # what the template adds to nothing

    @property
    def n_vocab(self) -> int:
        """Number of token ids, special ones included."""
        return self._fast.get_vocab_size(with_added_tokens=True)

    def encode(self, texts: Sequence[str], *, end: bool = True) -> list[list[int]]:
        """Token ids of each document, its separator included, or without an end of text."""
        ids = [self._once(one.ids) for one in self._fast.encode_batch_fast(list(texts))]
        if self._opener is not None or not end or self.eos_id is None:
            return ids
        return [d if d[-1:] == [self.eos_id] else [*d, self.eos_id] for d in ids]

    def encode_spelled(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of texts that spell all of their special tokens."""
        encoded = self._parsing.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def encode_answers(
        self, texts: Sequence[str], answers: Sequence[Spans], *, parse: bool = False
    ) -> list[tuple[list[int], list[bool]]]:
        """Token ids of each text, and which of them are the answers'.

        No end of text is added. A token is an answer's if any of its characters are: one that
        holds the end of a prompt, too, is.

        Args:
            texts: Prompts with what follows them.
            answers: Where in each the answers are: from and to, in characters.
            parse: Whether special tokens that the texts spell are tokens, whatever those of
                documents are; they are where a chat template put them there.
        """
        encoded = (self._parsing if parse else self._fast).encode_batch(list(texts))
        found = list[tuple[list[int], list[bool]]]()
        for one, spans in zip(encoded, answers, strict=True):
            ids = self._once(one.ids)
            its = [any(start < b and a < end for start, end in spans) for a, b in one.offsets]
            found.append((ids, its[len(its) - len(ids) :]))
        return found

    @cached_property
    def _parsing(self) -> FastTokenizer:
        """The same tokenizer, to which spelled special tokens are tokens."""
        if self._parses:
            return self._fast
        parsing = FastTokenizer.from_str(self._fast.to_str())
        parsing.encode_special_tokens = False
        return parsing

    def _once(self, document: list[int]) -> list[int]:
        """Its separator at the front once, also where the text spells it."""
        spelled = self._opener is not None and document[:2] == [self._opener] * 2
        return document[1:] if spelled else document

    def parts(self, document: list[int]) -> list[list[int]]:
        """A document's tokens, cut where a separator that its text spells begins another one."""
        mark = self.eos_id if self._opener is None else self._opener
        if not self._parses or mark is None:
            return [document]
        after = self._opener is None
        cuts = [i + after for i, token in enumerate(document) if token == mark]
        places = [0, *(i for i in cuts if 0 < i < len(document)), len(document)]
        return [document[i:j] for i, j in pairwise(places)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of these tokens, special ones spelled out."""
        return self._fast.decode(list(ids), skip_special_tokens=False)

    def token_text(self, token: int) -> str:
        """Text of one token as it stands in a text, its leading space kept."""
        anchor = self._fast.encode(":", add_special_tokens=False).ids  # some decoders strip a start
        return self.decode([*anchor, token])[len(self.decode(anchor)) :]

    def token_bytes(self, token: int) -> bytes | None:
        """Bytes that one token stands for, be they half of a character; None if there is no such.

        Special tokens are spelled out.
        """
        name = self._fast.id_to_token(token)
        if name is None:
            return None
        if token in self._added:
            return name.encode()
        if self._byte_level:
            return b"".join(_BYTE_OF.get(letter, letter.encode()) for letter in name)
        fallback = _BYTE_TOKEN.fullmatch(name)  # of a vocabulary of characters
        return bytes.fromhex(fallback[1]) if fallback else self.token_text(token).encode()

    @cached_property
    def _added(self) -> frozenset[int]:
        return frozenset(self._fast.get_added_tokens_decoder())

    @cached_property
    def _byte_level(self) -> bool:
        """Whether the letters of its vocabulary stand for bytes."""
        decoder: Any = self._fast.decoder
        return decoder is not None and b'"ByteLevel"' in decoder.__getstate__()


def load_tokenizer(
    name: str, *, revision: str = "main", special_tokens: SpecialTokens = "literal"
) -> Tokenizer:
    """The tokenizer of a model.

    Raises:
        ModelError: there is none, it cannot be read, or it gives ids that the model does not know.
    """
    files = ModelFiles(name, revision)
    path = files.find("tokenizer.json")
    if path is None:
        raise ModelError(
            f"model {name} has no tokenizer.json: save its fast tokenizer there, with "
            "transformers' AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    content = path.read_bytes()
    if "model" not in read_object(path):
        raise ModelError(f"{path} is not a tokenizer: it has no 'model' entry")
    try:
        fast = FastTokenizer.from_str(content.decode("utf-8"))
    except Exception as error:  # it raises no other
        raise ModelError(f"{path} is not a tokenizer that tokenizers can read: {error}") from error
    fast.no_truncation()
    fast.no_padding()
    _require_known_ids(fast, files, path)
    return Tokenizer(
        fast,
        eos_id=_eos_id(files, fast),
        fingerprint=f"sha256:{hashlib.sha256(content).hexdigest()}",
        special_tokens=special_tokens,
    )


def _require_known_ids(fast: FastTokenizer, files: ModelFiles, path: Path) -> None:
    """Every id that a text can get must have an embedding; special tokens need not be in use."""
    n_known = files.config.get("vocab_size")
    if n_known is None:
        return
    special = {i for i, token in fast.get_added_tokens_decoder().items() if token.special}
    beyond = [
        (i, word) for word, i in fast.get_vocab().items() if i >= n_known and i not in special
    ]
    if beyond:
        last, word = max(beyond)
        raise ModelError(
            f"{path} gives ids up to {last} ({word!r}), and {files.name} has {n_known} embeddings: "
            "put the tokenizer there that the model was trained with"
        )


def _eos_id(files: ModelFiles, fast: FastTokenizer) -> int | None:
    """The end-of-text token: what tokenizer_config.json names, else what config.json numbers."""
    path = files.find("tokenizer_config.json")
    if path is not None:
        named: Any = read_object(path).get("eos_token")
        text = named.get("content") if isinstance(named, dict) else named
        if text is not None:
            return fast.token_to_id(text)
    listed: Any = files.config.get("eos_token_id")
    return listed[0] if isinstance(listed, list) else listed
