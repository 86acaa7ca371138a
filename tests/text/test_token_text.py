import unicodedata

import pytest
import tokenizers
from hypothesis import given, strategies as st
from tokenizers import decoders, models, pre_tokenizers

from pipeline.lm.tokenizer import Tokenizer, load_tokenizer
from pipeline.text.token_text import TokenTexts, label, visible
from tests.helpers.tiny import EOS, make_tokenizer

HOSTILE = "<b>\"'</b>[red]\x00\x1b[31m\u202eabc\u2066\u200b\ufeff\r\x7f\x9b\u2028😀é\U000e0001"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token a byte."""
    fast = make_tokenizer()
    return Tokenizer(fast, eos_id=fast.token_to_id(EOS), fingerprint="")


@pytest.fixture(scope="module")
def texts(tokenizer) -> TokenTexts:
    return TokenTexts(tokenizer.token_bytes)


def sentencepiece() -> Tokenizer:
    """A vocabulary of characters that falls back to bytes, as Llama's."""
    vocab = {"<unk>": 0, "▁": 1, "h": 2, "i": 3, "▁hi": 4, "<0xC3>": 5, "<0xA9>": 6, "<0x0A>": 7}
    fast = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
         decoders.Strip(" ", 1, 0)]
    )  # fmt: skip
    fast.add_special_tokens(["<s>"])
    return Tokenizer(fast, eos_id=None, fingerprint="")


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.encode([text])[0][:-1]


def test_every_byte_has_a_token(tokenizer):
    found = {tokenizer.token_bytes(token) for token in range(256)}
    assert found == {bytes([i]) for i in range(256)}


def test_special_and_unknown_tokens(tokenizer, texts):
    assert tokenizer.token_bytes(tokenizer.eos_id) == EOS.encode()
    assert tokenizer.token_bytes(100_000) is None
    assert texts.alone(tokenizer.eos_id) == EOS
    assert texts.alone(100_000) == "[100000]"
    assert TokenTexts({}.get).pieces([5, 70]) == ("[5]", "[70]")


def test_tokens_of_a_vocabulary_of_characters():
    tokenizer = sentencepiece()
    texts = TokenTexts(tokenizer.token_bytes)
    assert [texts.alone(i) for i in range(2, 9)] == [
        "h", "i", " hi", "\\xc3", "\\xa9", "\n", "<s>",
    ]  # fmt: skip
    assert texts.pieces([4, 5, 6, 7]) == (" hi", "é", "", "\n")


def test_the_embedded_tokenizer_keeps_leading_spaces():
    tokenizer = load_tokenizer("builtin")
    texts = TokenTexts(tokenizer.token_bytes)
    ids = tokenizer.encode(["def main() -> None:  # naïve 😀"])[0]
    pieces = texts.pieces(ids)
    assert "".join(pieces) == f"def main() -> None:  # naïve 😀{EOS}"
    assert len(pieces) == len(ids)
    assert texts.alone(ids[1]).startswith(" ")


@given(text=st.text(max_size=30))
def test_pieces_together_are_the_text_and_bytes_its_bytes(tokenizer, texts, text):
    ids = ids_of(tokenizer, text)
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    pieces = texts.pieces(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text


def test_a_cut_character_stands_at_its_first_token(tokenizer, texts):
    assert texts.pieces(ids_of(tokenizer, "a😀b")) == ("a", "😀", "", "", "", "b")


def test_bytes_that_make_no_character_are_shown_as_escapes(tokenizer, texts):
    ids = ids_of(tokenizer, "😀é")
    assert texts.pieces([-1, -1, *ids[4:], -1]) == ("", "", "é", "", "")  # beyond a context
    assert texts.pieces(ids[1:3]) == ("\\x9f", "\\x98")
    assert texts.pieces([*ids[:2], *ids[4:]]) == ("\\xf0", "\\x9f", "é", "")
    assert texts.pieces([ids[0], -1, ids[1]]) == ("\\xf0", "", "\\x9f")
    assert texts.alone(ids[0]) == "\\xf0"


@given(text=st.text())
def test_nothing_visible_moves_a_terminal(text):
    for shown in (visible(text), label(text)):
        hidden = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
        assert not any(unicodedata.category(c) in hidden for c in shown)


def test_hostile_text_is_made_visible():
    shown = visible(HOSTILE)
    for escape in (
        "\\x00", "\\x1b[31m", "\\u202e", "\\u2066", "\\u200b", "\\ufeff", "\\x0d", "\\x7f", "\\x9b",
        "\\u2028", "\\U000e0001", "😀", "é", "[red]", "<b>",
    ):  # fmt: skip
        assert escape in shown
    assert visible("a\tb\nc") == "a→b↵c"


def test_spaces_of_a_token_are_to_be_seen():
    tokens = (" the", "  ", "        return", "\n            ", "a ", "a b")
    assert [label(token) for token in tokens] == ["␣the", "␣␣", "8␣return", "↵12␣", "a␣", "a b"]
