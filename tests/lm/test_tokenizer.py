"""What a text spells of special tokens, with tokenizers that end documents and that open them."""

import pytest
from tokenizers import processors

from pipeline.lm.tokenizer import Tokenizer
from tests.helpers.tiny import EOS, make_tokenizer


def made(special_tokens: str, *, opens: bool) -> tuple[Tokenizer, int]:
    fast = make_tokenizer()
    mark = fast.token_to_id(EOS)
    if opens:
        fast.post_processor = processors.TemplateProcessing(
            single=f"{EOS} $A", special_tokens=[(EOS, mark)]
        )
    options = {"eos_id": mark, "fingerprint": "", "special_tokens": special_tokens}
    return Tokenizer(fast, **options), mark


def words(tokenizer: Tokenizer, ids: list[int]) -> str:
    return tokenizer.decode(ids).replace(EOS, "|")


@pytest.mark.parametrize(
    ("opens", "encoded", "parts"),
    [(False, "|ab|cd|", ["|", "ab|", "cd|"]), (True, "|ab|cd|", ["|ab", "|cd", "|"])],
    ids=["ends documents", "opens documents"],
)
def test_a_separator_that_is_parsed_is_never_doubled_and_cuts(opens, encoded, parts):
    tokenizer, _ = made("parse", opens=opens)
    (ids,) = tokenizer.encode([f"{EOS}ab{EOS}cd{EOS}"])
    assert words(tokenizer, ids) == encoded
    assert [words(tokenizer, part) for part in tokenizer.parts(ids)] == parts


@pytest.mark.parametrize("opens", [False, True], ids=["ends documents", "opens documents"])
def test_a_separator_that_is_literal_is_so_many_characters(opens):
    tokenizer, mark = made("literal", opens=opens)
    (ids,) = tokenizer.encode([f"{EOS}ab{EOS}"])
    assert ids.count(mark) == 1
    assert ids[0 if opens else -1] == mark
    assert len(ids) == 2 * len(EOS) + 3
    assert tokenizer.parts(ids) == [ids]


@pytest.mark.parametrize("special_tokens", ["literal", "parse"])
def test_answers_are_where_they_are_also_behind_a_separator_that_is_spelled(special_tokens):
    tokenizer, mark = made(special_tokens, opens=True)
    text, start = f"{EOS}ab", len(EOS) + 1
    ((ids, its),) = tokenizer.encode_answers([text], [[(start, start + 1)]], parse=True)
    assert words(tokenizer, ids) == "|ab"
    assert its == [False, False, True]
    assert mark == ids[0]
