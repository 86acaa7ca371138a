import itertools
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

QUESTION = re.compile(r"Question: What is (.+)\?\nAnswer: (-?\d+)")


@pytest.fixture
def fresh_corpus():
    """Makes the next look at the corpus read it again, and forgets it afterwards."""
    cached = (pipeline.text.builtin._corpus, heldout_documents)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


def test_the_name_alone_puts_a_document_into_its_part():
    parts = {
        name: Document(name=name, text="").part
        for name in ("argparse.py", "json/decoder.py", "statistics.py", "topics/dict")
    }
    assert parts == {
        "argparse.py": "train",
        "json/decoder.py": "train",
        "statistics.py": "heldout",
        "topics/dict": "heldout",
    }


def test_the_corpus_is_documentation_and_library_without_tests_or_tables():
    names = {document.name for document in (*train_documents(), *heldout_documents())}
    assert {"argparse.py", "json/decoder.py", "topics/dict"} <= names
    unwanted = re.compile(r"(^|/)(tests?|site-packages|idlelib|encodings|pydoc_data)/")
    assert not [name for name in names if unwanted.search(name)]


def test_training_and_heldout_parts_share_nothing_and_have_the_documented_sizes():
    train, heldout = train_documents(), heldout_documents()
    assert not {document.name for document in train} & {document.name for document in heldout}
    size = sum(len(document.text) for document in train)
    assert size > 5_000_000
    assert 0.04 < sum(len(document.text) for document in heldout) / size < 0.1


def test_no_heldout_document_repeats_the_training_text():
    known = set("\n".join(document.text for document in train_documents()).splitlines())
    known = {line.strip() for line in known}
    for document in heldout_documents():
        lines = [line.strip() for line in document.text.splitlines() if len(line.strip()) > 30]
        assert sum(line in known for line in lines) <= REPEATED_SHARE * len(lines), document.name


def test_arithmetic_questions_are_not_in_the_embedded_text():
    form = re.compile(r"(?i)what is\s+\(?\d|question:\s*what is|\?\s*answer:")
    for document in (*train_documents(), *heldout_documents()):
        assert not form.search(document.text), document.name


def test_the_order_is_a_shuffle_that_the_seed_decides():
    names = [document.name for document in BuiltinText("train")._documents]
    again = [document.name for document in BuiltinText("train", seed=0)._documents]
    other = [document.name for document in BuiltinText("train", seed=1)._documents]
    assert names == again != other
    assert sorted(names) == sorted(other) != names


@pytest.mark.parametrize("make", [BuiltinText, Arithmetic])
@pytest.mark.parametrize("part", ["train", "heldout"])
def test_documents_from_any_number_on_are_the_rest(make, part):
    source = make(part)
    whole = list(source.documents())
    for start in (0, 1, 7, len(whole) - 1, len(whole)):
        assert list(source.documents(start)) == whole[start:]


def test_the_fingerprint_depends_on_part_order_and_every_content():
    prints = {
        BuiltinText("train").fingerprint(),
        BuiltinText("train", seed=1).fingerprint(),
        BuiltinText("heldout").fingerprint(),
    }
    changed = BuiltinText("train")
    changed._documents[-1] = Document(name=changed._documents[-1].name, text="other")
    assert len(prints | {changed.fingerprint()}) == 4
    assert BuiltinText("train").fingerprint() in prints


def test_the_fingerprint_of_the_corpus_costs_less_than_a_third_of_a_second():
    source = BuiltinText("train")
    began = time.perf_counter()
    source.fingerprint()
    assert time.perf_counter() - began < 0.3


@pytest.mark.usefixtures("fresh_corpus")
def test_a_python_without_documentation_topics_is_a_one_line_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(TextError, match=r"pydoc_data.topics, which this Python lacks") as caught:
        BuiltinText("train")
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("fresh_corpus")
def test_a_python_without_library_sources_is_a_one_line_error(monkeypatch, tmp_path):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "python.zip"))
    with pytest.raises(TextError, match="holds none") as caught:
        BuiltinText("heldout")
    assert "\n" not in str(caught.value)


def test_every_answer_is_right():
    for part in ("train", "heldout"):
        for text in Arithmetic(part).documents():
            question = QUESTION.fullmatch(text)
            assert question is not None
            assert eval(question[1]) == int(question[2])


def test_questions_are_18000_and_no_heldout_one_is_trained_on():
    questions = {
        part: [text.partition("?")[0] for text in Arithmetic(part).documents()]
        for part in ("train", "heldout")
    }
    assert sum(map(len, questions.values())) == 18_000
    assert len(set(itertools.chain(*questions.values()))) == 18_000
    assert 0.08 < len(questions["heldout"]) / 18_000 < 0.12


def test_the_form_of_a_question_is_pinned():
    questions = {*Arithmetic("train").documents(), *Arithmetic("heldout").documents()}
    assert "Question: What is (2 * 7) + 2?\nAnswer: 16" in questions
    assert "Question: What is 0 - (2 * 7)?\nAnswer: -14" in questions


def test_the_seed_shuffles_the_questions_within_their_part():
    first, again, other = (list(Arithmetic("train", seed=s).documents()) for s in (0, 0, 1))
    assert first == again != other
    assert set(first) == set(other)
    assert Arithmetic("train").fingerprint() != Arithmetic("train", seed=1).fingerprint()
