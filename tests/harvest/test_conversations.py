"""Stores of conversations: tokens are those of transformers' own `apply_chat_template`."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from actstore.reader import ActStore
from actstore.verify import verify
from pipeline.config.stages import EvalConfig, HarvestConfig
from pipeline.errors import ConfigError, ModelError, TextError
from pipeline.harvest.harvest import harvest
from pipeline.harvest.plan import make_plan
from pipeline.harvest.repair import repair
from pipeline.lm.chat import ChatTemplate, load_chat_template
from pipeline.runs.default_text import DefaultTexts
from pipeline.runs.folder import Provenance
from tests.helpers.refusals import refused
from tests.helpers.stores import shard_file
from tests.helpers.tiny import EOS, make_model

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ['user', 'assistant'] %}"
    "{{ raise_exception('no such role: ' ~ m['role']) }}{% endif %}"
    "<{{ m['role'][0] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
)
CTX_LEN = 16


def talks(n: int) -> list[list[dict[str, str]]]:
    said = [f"{i}+{i}?" * (1 + i % 3) for i in range(n)]
    return [
        [{"role": "user", "content": text}, {"role": "assistant", "content": f"it is {2 * i}"}]
        for i, text in enumerate(said)
    ]


def write(path: Path, values: list[object], *, column: str = "messages") -> str:
    path.write_text("".join(json.dumps({column: value}) + "\n" for value in values))
    return str(path)


@pytest.fixture
def config(tmp_path) -> HarvestConfig:
    """Of 40 conversations, and a model that knows how to spell them."""
    model = make_model(tmp_path / "model")
    speak(model, TEMPLATE)
    return HarvestConfig(
        model=str(model), text=write(tmp_path / "talks.jsonl", [*talks(40)]),
        text_column="messages", chat_template=True, sites=("mlp_out.1",),
        out=tmp_path / "acts.actstore", tokens=320, ctx_len=CTX_LEN, device="cpu", shard_rows=64,
    )  # fmt: skip


def speak(model: Path, template: str | None) -> None:
    told = {"eos_token": EOS} | ({} if template is None else {"chat_template": template})
    (model / "tokenizer_config.json").write_text(json.dumps(told))


def theirs(config: HarvestConfig) -> list[list[int]]:
    """Token ids of each conversation, by transformers."""
    its = PreTrainedTokenizerFast(tokenizer_file=f"{config.model}/tokenizer.json", eos_token=EOS)
    told: Any = its.apply_chat_template(talks(40), chat_template=TEMPLATE, tokenize=True)
    return told["input_ids"]


def contexts_of(config: HarvestConfig) -> np.ndarray:
    store = ActStore.open(config.out)
    return store.tokens(np.arange(store.n_rows // CTX_LEN))


def test_tokens_are_those_of_transformers_one_document_a_conversation(config):
    harvest(config)
    ids = [one for talk in theirs(config) for one in talk]
    there = contexts_of(config)
    assert there.shape == (20, CTX_LEN)
    assert there.ravel().tolist() == ids[: there.size]
    source = ActStore.open(config.out).manifest.spec.source
    assert source["chat_template"] == load_chat_template(config.model).fingerprint


def test_each_conversation_is_one_document(config):
    config = replace(config, documents="separate", tokens=160)
    harvest(config)
    long = [talk for talk in theirs(config) if len(talk) >= CTX_LEN]
    assert contexts_of(config)[0].tolist() == long[0][:CTX_LEN]
    assert contexts_of(config).ravel().tolist().count(long[0][-1]) > 0


def test_a_harvest_goes_on_to_the_same_bytes(config, tmp_path):
    harvest(replace(config, tokens=128))
    harvest(config)
    whole = replace(config, out=tmp_path / "whole.actstore")
    harvest(whole)
    assert np.array_equal(contexts_of(config), contexts_of(whole))


def test_another_template_is_another_store(config):
    harvest(config)
    speak(Path(config.model), TEMPLATE + " ")
    with refused(ConfigError, "chat_template"):
        make_plan(config)
    with refused(ConfigError, "chat_template|text_column"):
        make_plan(replace(config, chat_template=False, text_column="other"))


def test_a_shard_is_made_again_from_its_conversations(config):
    harvest(config)
    before = contexts_of(config)
    shard_file(config.out, "mlp_out.1", 2).unlink()
    repair(config.out, verify(config.out), device="cpu")
    assert not verify(config.out)
    assert np.array_equal(contexts_of(config), before)


def test_an_evaluation_goes_on_in_the_conversations(config, tmp_path):
    harvest(config)
    told = Provenance.of(ActStore.open(config.out), site="mlp_out.1")
    text = DefaultTexts("text").of(told, tmp_path / "run")
    assert text.chat
    assert text.column == "messages"
    assert "the store is of conversations" in text.note


def test_a_template_that_tells_the_date_tells_the_same_one_always(monkeypatch):
    clock = "{{ strftime_now('%d %b %Y') }} {{ messages[0]['content'] }}"
    spelled = ChatTemplate(model="m", source=clock).text([{"role": "user", "content": "hi"}])
    assert spelled == "26 Jul 2024 hi"


def test_templates_that_spell_differently_have_other_fingerprints():
    one = ChatTemplate(model="m", source=TEMPLATE, named={"eos_token": EOS})
    others = (replace(one, source=TEMPLATE + " "), replace(one, named={"eos_token": "<e>"}))
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 3
    assert replace(one, model="another").fingerprint == one.fingerprint


# --- what is refused ---------------------------------------------------------------------------

BAD = {
    "text in the place of messages": (["hello"], "holds a str where a conversation"),
    "a role that the template refuses": (
        [[{"role": "judge", "content": "no"}]], r"line 1.*no such role: judge",
    ),
    "no messages": ([3], "holds a int where a conversation is expected"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_no_conversation_is_one_line(config, tmp_path, what):
    values, told = BAD[what]
    text = write(tmp_path / "bad.jsonl", values)
    with refused(TextError, told):
        harvest(replace(config, text=text))
    assert not config.out.exists()


def test_a_model_without_a_template(config):
    speak(Path(config.model), None)
    with refused(ModelError, "has no chat template, and the text holds conversations: take a"):
        harvest(config)
    assert not config.out.exists()


def test_a_template_that_is_broken(config):
    speak(Path(config.model), "{% for %}")
    with refused(TextError, r"template"):
        harvest(config)
    assert not config.out.exists()


def test_plain_text_holds_none(config, tmp_path):
    (tmp_path / "plain.txt").write_text("hello")
    for text in (str(tmp_path / "plain.txt"), "builtin"):
        with refused(TextError, "is plain text, which holds no conversations: .*--chat-template"):
            make_plan(replace(config, text=text))


def test_conversations_without_the_flag_say_what_to_type(config):
    with refused(TextError, "holds a list where text is expected: .* read with --chat-template"):
        harvest(replace(config, chat_template=False))


def test_settings_that_contradict_each_other(config):
    with refused(ConfigError, "`chat_template` parses special tokens"):
        replace(config, special_tokens="parse")
    with refused(ConfigError, "`chat_template` says how a text is read, and none is named"):
        EvalConfig(runs=(config.out,), chat_template=True)
