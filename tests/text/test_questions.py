"""Questions with their answers, read from two columns of a text."""

import json
from itertools import islice

import pytest
from datasets import Dataset

from pipeline.errors import TextError
from pipeline.text.files import QUESTIONS
from pipeline.text.open import open_text
from pipeline.text.questions import questions

ASKED = [("1 + 1?", " 2"), ("2 + 2?", " 4"), ("3 + 3?", " 6")]


@pytest.fixture
def file_of(tmp_path):
    """A file of these records."""

    def write(columns, kind=".jsonl"):
        records = [dict(zip(columns, asked, strict=True)) | {"n": 1} for asked in ASKED]
        path = tmp_path / f"asked{kind}"
        if kind == ".parquet":
            Dataset.from_list(records).to_parquet(str(path))
        elif kind == ".saved":
            Dataset.from_list(records).save_to_disk(path)
        elif kind == ".json":
            path.write_text(json.dumps(records))
        else:
            path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return str(path)

    return write


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".saved"])
@pytest.mark.parametrize("columns", QUESTIONS, ids="-".join)
def test_questions_of_every_pair_of_columns_and_kind_of_file(file_of, columns, kind):
    source = file_of(columns, kind)
    assert list(questions(source)) == ASKED
    assert list(questions(source, 2)) == ASKED[2:]
    assert list(open_text(source).documents()) == ["".join(asked) for asked in ASKED]


def test_the_embedded_questions_are_the_documents_cut_before_the_answer():
    source = "builtin:arithmetic@heldout"
    documents = open_text(source).documents(7)
    asked = list(islice(questions(source, 7), 100))
    assert ["".join(q) for q in asked] == list(islice(documents, 100))
    assert all(q.prompt.endswith("?\nAnswer:") and int(q.answer) is not None for q in asked)


def test_what_has_no_answer_is_left_out(tmp_path):
    lines = [{"prompt": "a", "completion": " "}, {"prompt": "b", "completion": "c"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(questions(str(path))) == [("b", "c")]


@pytest.mark.parametrize(
    ("content", "name", "told"),
    [
        ("some text", "a.txt", "it is plain text"),
        ('["a", "b"]', "a.json", "it is plain text"),
        ('{"text": "a"}', "a.jsonl", "its columns are 'text'"),
        ('{"context": "a"}', "a.jsonl", "its columns are 'context'"),
    ],
    ids=["text", "strings", "columns", "half"],
)
def test_a_text_without_questions_says_what_it_has(tmp_path, content, name, told):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(TextError, match=f"no questions with answers, {told}: give one with the c"):
        list(questions(str(path), 5))
