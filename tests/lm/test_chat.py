"""Conversations are spelled as transformers spells them, and the assistant's tokens are known."""

import json
from datetime import datetime

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pipeline.errors import ModelError, TextError
from pipeline.lm.chat import ChatEncoder, ChatTemplate, load_chat_template
from pipeline.lm.tokenizer import load_tokenizer
from tests.helpers.tiny import EOS, make_tokenizer

TURN = "{{ m['role'][0] }}:{{ m['content'] }}{{ eos_token }}"
PLAIN = (
    "{{ bos_token }}{% for m in messages %}" + TURN + "{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
MARKED = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}a:"
    "{% generation %}{{ m['content'] }}{{ eos_token }}{% endgeneration %}"
    "{% else %}" + TURN + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
NAMED = {"bos_token": "", "eos_token": EOS}
TALK = [
    {"role": "system", "content": "sum"},
    {"role": "user", "content": "1+1"},
    {"role": "assistant", "content": "2"},
    {"role": "user", "content": "2+2 "},
    {"role": "assistant", "content": "it is 4"},
]


@pytest.fixture
def folder(tmp_path):
    """Where a model's tokenizer is; gives what its configuration says of a template a home."""
    make_tokenizer().save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text('{"vocab_size": 260}')

    def write(**config):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(NAMED | config))
        return str(tmp_path)

    return write


@pytest.mark.parametrize("source", [PLAIN, MARKED], ids=["plain", "marked"])
def test_text_and_answers_are_those_of_transformers(folder, source):
    name = folder(chat_template=source)
    theirs = PreTrainedTokenizerFast(tokenizer_file=f"{name}/tokenizer.json", eos_token=EOS)
    encoded = theirs.apply_chat_template(
        TALK, chat_template=MARKED, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=True, bos_token="",
    )  # fmt: skip
    text, spans = load_chat_template(name).spelled(TALK)
    assert text == theirs.apply_chat_template(
        TALK, chat_template=source, tokenize=False, bos_token=""
    )
    assert [text[slice(*span)] for span in spans] == [f"2{EOS}", f"it is 4{EOS}"]
    ((ids, its),) = load_tokenizer(name).encode_answers([text], [spans], parse=True)
    assert ids == encoded["input_ids"]
    assert [int(one) for one in its] == encoded["assistant_masks"]


def test_special_tokens_are_characters_unless_a_template_put_them_there(folder):
    tokenizer = load_tokenizer(folder())
    mark = make_tokenizer().token_to_id(EOS)
    for parse, n in ((False, 0), (True, 1), (False, 0)):
        ((ids, _),) = tokenizer.encode_answers([f"a{EOS}b"], [[(0, 1)]], parse=parse)
        assert ids.count(mark) == n


@pytest.mark.parametrize("where", ["one", "several", "file"])
def test_a_template_is_found_wherever_models_keep_it(folder, tmp_path, where):
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": PLAIN}]
    name = folder(
        **{"one": {"chat_template": PLAIN}, "several": {"chat_template": named}}.get(where, {})
    )
    if where == "file":
        (tmp_path / "chat_template.jinja").write_text(PLAIN)
    assert load_chat_template(name) == ChatTemplate(model=name, source=PLAIN, named=NAMED)


@pytest.mark.parametrize(
    "config",
    [
        {}, {"chat_template": [{"name": "rag", "template": "x"}]}, {"chat_template": " "},
        {"chat_template": [{"template": "x"}, "y"]},
        {"chat_template": 1, "eos_token": {"lstrip": False}},
    ],
    ids=["none", "another", "blank", "nameless", "number"],
)  # fmt: skip
def test_a_model_without_a_template_is_one_line(folder, config):
    with pytest.raises(ModelError, match="has no chat template, and the text holds conversations"):
        load_chat_template(folder(**config))


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("{{ raise_exception('roles take turns') }}", "user, assistant.*: roles take turns"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
        ("{% for m in messages %}", "Unexpected end of template"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ range(10 ** 9) | list }}", "Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        (PLAIN + "{{ messages | length }}", "its answers cannot be told apart"),
    ],
    ids=["refuses", "reaches out", "broken", "divides", "endless", "deep", "rewrites"],
)  # fmt: skip
def test_what_a_template_cannot_spell_is_one_line(source, told):
    with pytest.raises(TextError, match=f"the chat template of a/b .*{told}") as error:
        ChatTemplate(model="a/b", source=source, named=NAMED).spelled(TALK)
    assert "\n" not in str(error.value)


def test_special_tokens_are_those_that_have_a_text(folder):
    told = {"pad_token": None, "unk_token": {"lstrip": False}, "cls_token": {"content": "[C]"}}
    template = load_chat_template(folder(chat_template=PLAIN, **told))
    assert template.named == NAMED | {"cls_token": "[C]"}


def test_a_template_that_is_no_text_is_one_line(folder, tmp_path):
    name = folder()
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="chat_template.jinja is not UTF-8 text"):
        load_chat_template(name)


@pytest.mark.parametrize("bos", ["", EOS], ids=["without", "with"])
def test_tokens_have_the_separators_that_are_spelled_and_no_other(folder, tmp_path, bos):
    fast = make_tokenizer()
    mark = fast.token_to_id(EOS)
    fast.post_processor = TemplateProcessing(single=f"{EOS} $A {EOS}", special_tokens=[(EOS, mark)])
    name = folder(chat_template=PLAIN, bos_token=bos)
    fast.save(str(tmp_path / "tokenizer.json"))
    theirs = PreTrainedTokenizerFast(tokenizer_file=f"{name}/tokenizer.json", eos_token=EOS)
    expected = theirs.apply_chat_template(
        TALK, chat_template=PLAIN, tokenize=True, return_dict=True, bos_token=bos
    )["input_ids"]
    encoder = ChatEncoder(load_tokenizer(name))
    (ids,) = encoder.encode([load_chat_template(name).text(TALK)])
    assert ids == expected
    assert ids.count(mark) == len(TALK) + bool(bos)
    assert encoder.parts(ids) == [ids]


@pytest.mark.parametrize("code", ["%d %b %Y", "%Y-%m-%d", "%d %B %Y", "%A, %H:%M:%S", "%-d.%y"])
def test_a_template_that_tells_the_date_tells_the_same_every_day(code):
    source = (
        "{% if strftime_now is defined %}{% set today = strftime_now('" + code + "') %}{% endif %}"
        "{{ today }}"
    )
    spelled = ChatTemplate(model="a/b", source=source).text(TALK)
    assert spelled == datetime(2024, 7, 26).strftime(code)
