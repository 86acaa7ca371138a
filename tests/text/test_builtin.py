import re
import sys
import sysconfig
import time

import pytest

import pipeline.text.builtin
from pipeline.errors import TextError
from pipeline.text.builtin import (
    REPEATED_SHARE,
    Arithmetic,
    BuiltinText,
    Document,
    heldout_documents,
    train_documents,
)
from pipeline.text.open import open_text
from tests.helpers.refusals import refused

EMBEDDED = ("builtin", "builtin@heldout", "builtin:arithmetic", "builtin:arithmetic@heldout")
QUESTION = re.compile(r"Question: What is (.+)\?\nAnswer: (-?\d+)")


def test_the_name_alone_puts_a_document_into_its_part():
    for name in ("argparse.py", "json/decoder.py"):
        assert Document(name=name, text="").part == "train"
    for name in ("statistics.py", "topics/dict"):
        assert Document(name=name, text="").part == "heldout"


def test_the_corpus_is_documentation_and_library_in_two_parts_of_the_documented_sizes():
    train, heldout = train_documents(), heldout_documents()
    names = [document.name for document in (*train, *heldout)]
    assert len(set(names)) == len(names)
    assert {"argparse.py", "json/decoder.py", "topics/dict"} <= set(names)
    unwanted = re.compile(r"(^|/)(tests?|site-packages|idlelib|encodings|pydoc_data)/")
    assert not [name for name in names if unwanted.search(name)]
    size = sum(len(document.text) for document in train)
    assert size > 5_000_000
    assert 0.04 < sum(len(document.text) for document in heldout) / size < 0.1


def test_no_heldout_document_repeats_the_training_text():
    train = "\n".join(document.text for document in train_documents())
    known = {line.strip() for line in train.splitlines()}
    for document in heldout_documents():
        lines = [line.strip() for line in document.text.splitlines() if len(line.strip()) > 30]
        assert sum(line in known for line in lines) <= REPEATED_SHARE * len(lines), document.name


def test_arithmetic_questions_are_not_in_the_embedded_text():
    form = re.compile(r"(?i)what is\s+\(?\d|question:\s*what is|\?\s*answer:")
    for document in (*train_documents(), *heldout_documents()):
        assert not form.search(document.text), document.name


@pytest.mark.parametrize("make", [BuiltinText, Arithmetic])
def test_the_order_is_a_shuffle_that_the_seed_decides(make):
    first, again, other = (make("train", seed=seed) for seed in (0, 0, 1))
    texts, others = list(first.documents()), list(other.documents())
    assert texts == list(again.documents()) != others
    assert sorted(texts) == sorted(others) != texts
    assert first.fingerprint() == again.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("name", EMBEDDED)
def test_documents_from_any_number_on_are_the_rest(name):
    source = open_text(name)
    assert source.name == name
    whole = list(source.documents())
    for start in (0, 1, 7, len(whole) - 1, len(whole)):
        assert list(source.documents(start)) == whole[start:]


def test_the_fingerprint_depends_on_every_content_and_costs_less_than_a_third_of_a_second():
    source = BuiltinText("train")
    began = time.perf_counter()
    before = source.fingerprint()
    assert time.perf_counter() - began < 0.3
    source._documents[-1] = Document(name=source._documents[-1].name, text="other")
    assert len({before, source.fingerprint(), BuiltinText("heldout").fingerprint()}) == 3


def test_a_python_without_topics_or_sources_is_a_one_line_error(monkeypatch, tmp_path):
    for cached in ("_corpus", "heldout_documents"):
        read_anew = getattr(pipeline.text.builtin, cached).__wrapped__
        monkeypatch.setattr(pipeline.text.builtin, cached, read_anew)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python.zip"))
    with refused(TextError, "holds none"):
        BuiltinText("heldout")
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with refused(TextError, "pydoc_data.topics, which this Python lacks"):
        BuiltinText("train")


def test_questions_are_18000_and_answered_rightly_and_no_heldout_one_is_trained_on():
    train, heldout = (list(Arithmetic(part).documents()) for part in ("train", "heldout"))
    assert len({*train, *heldout}) == len(train) + len(heldout) == 18_000
    assert 0.08 < len(heldout) / 18_000 < 0.12
    for text in (*train, *heldout):
        question = QUESTION.fullmatch(text)
        assert question is not None
        assert eval(question[1]) == int(question[2])
    assert "Question: What is (2 * 7) + 2?\nAnswer: 16" in {*train, *heldout}
    assert "Question: What is 0 - (2 * 7)?\nAnswer: -14" in {*train, *heldout}
