"""Questions with their answers, read from two columns of a text."""

import json
from datetime import UTC, datetime
from itertools import islice

import pytest
from datasets import Dataset

from pipeline.errors import TextError
from pipeline.text.columns import QUESTIONS
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


def parted(question):
    """A prompt, and its answer."""
    ((start, end),) = question.answers
    assert end == len(question.text)
    return question.text[:start], question.text[start:]


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".saved"])
@pytest.mark.parametrize("columns", QUESTIONS, ids="-".join)
def test_questions_of_every_pair_of_columns_and_kind_of_file(file_of, columns, kind):
    source = file_of(columns, kind)
    assert list(map(parted, questions(source))) == ASKED
    assert list(map(parted, questions(source, 2))) == ASKED[2:]
    assert list(open_text(source).documents()) == ["".join(asked) for asked in ASKED]


def test_the_embedded_questions_are_the_documents_cut_before_the_answer():
    source = "builtin:arithmetic@heldout"
    documents = open_text(source).documents(7)
    asked = list(islice(questions(source, 7), 100))
    assert [q.text for q in asked] == list(islice(documents, 100))
    for prompt, answer in map(parted, asked):
        assert prompt.endswith("?\nAnswer:")
        assert int(answer) is not None


def test_what_has_no_answer_is_left_out(tmp_path):
    lines = [{"prompt": "a", "completion": " "}, {"prompt": "b", "completion": "c"}]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert list(map(parted, questions(str(path)))) == [("b", "c")]


TALKS = [
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "mood": "fine"}],
    [{"role": "user", "content": "c"}],
    [{"role": "user", "content": "d"}, {"role": "assistant", "content": " "}],
]


def spelled(conversation):
    """Each message in brackets; the assistant's are answers."""
    text, spans = "", []
    for message in conversation:
        start = len(text)
        text += f"[{message['content']}]"
        if message["role"] == "assistant":
            spans.append((start + 1, len(text) - 1))
    return text, spans


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".saved"])
@pytest.mark.parametrize("spelling", ["messages", "conversations", "talk"])
def test_conversations_are_spelled_and_those_without_an_answer_left_out(tmp_path, kind, spelling):
    shared = {"conversations": ("from", "value", {"user": "human", "assistant": "gpt"})}
    role, content, roles = shared.get(spelling, ("role", "content", {}))
    records = [
        {spelling: [{role: roles.get(m["role"], m["role"]), content: m["content"]} for m in talk]}
        for talk in TALKS
    ]
    path = tmp_path / f"talks{kind}"
    if kind == ".parquet":
        Dataset.from_list(records).to_parquet(str(path))
    elif kind == ".saved":
        Dataset.from_list(records).save_to_disk(path)
    else:
        lines = "".join(json.dumps(record) + "\n" for record in records)
        path.write_text(json.dumps(records) if kind == ".json" else lines)
    found = list(questions(str(path), column="talk", chat=spelled))
    assert found == [("[a][b]", ((4, 5),), True)]
    with pytest.raises(TextError, match="holds no questions with answers"):
        list(questions(str(path)))
    with pytest.raises(TextError, match="holds a list where text is expected"):
        list(open_text(str(path), column=spelling).documents())


def test_questions_in_messages_are_not_taken_for_text(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": TALKS[0], "completion": TALKS[1]}) + "\n")
    with pytest.raises(TextError, match="line 1 holds a list where text is expected"):
        list(questions(str(path), chat=spelled))


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


NO_CONVERSATION = "holds a list that is no conversation: .* this one has"


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ('["a"]', f"{NO_CONVERSATION} the form of a str$"),
        ('[{"role": "user"}]', f"{NO_CONVERSATION} 'role': str$"),
        ('[{"role": "user", "content": 1}]', f"{NO_CONVERSATION} 'role': str, 'content': int$"),
        ("[{}]", f"{NO_CONVERSATION} nothing$"),
        ('"hello"', "holds a str where a conversation is expected$"),
        ('"[]"', "holds a str where a conversation is expected$"),
        ("5", "holds a int where a conversation is expected$"),
        ('[{"role": "user", "content": "\\ud800"}]', "holds .* which is no character"),
    ],
    ids=["texts", "silent", "number", "empty", "text", "spelled", "five", "half"],
)
def test_what_is_no_conversation_is_one_line(tmp_path, told, found):
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"messages": {told}}}\n')
    with pytest.raises(TextError, match=f"line 1 {found}"):
        list(questions(str(path), chat=spelled))


def test_a_plain_string_among_conversations_is_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": TALKS[0]}) + '\n"hello"\n')
    with pytest.raises(TextError, match="line 2 is not a record but a str"):
        list(questions(str(path), chat=spelled))


def test_what_else_a_message_holds_may_be_anything(tmp_path):
    talk = [{**message, "when": datetime(2026, 1, 1, tzinfo=UTC)} for message in TALKS[0]]
    path = tmp_path / "a.parquet"
    Dataset.from_list([{"messages": talk}]).to_parquet(str(path))
    assert list(questions(str(path), chat=spelled)) == [("[a][b]", ((4, 5),), True)]


def test_conversations_that_are_taken_for_text_say_how_to_learn_from_them(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": TALKS[0]}) + "\n")
    with pytest.raises(TextError, match="saepipe finetune learns with --loss-on completion"):
        list(open_text(str(path)).documents())
