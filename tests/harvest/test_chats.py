"""Stores of conversations: the tokens of transformers' own template, one document each."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from actstore.reader import ActStore, peek
from actstore.verify import verify
from pipeline import verbs
from pipeline.config.stages import EvalConfig, HarvestConfig
from pipeline.errors import ConfigError, ModelError, TextError
from pipeline.harvest.harvest import harvest
from pipeline.harvest.plan import make_plan
from pipeline.harvest.repair import repair
from pipeline.lm.chat import load_chat_template
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.runs.default_text import DefaultTexts
from pipeline.runs.folder import Provenance
from pipeline.terminal.store import store_tables
from pipeline.terminal.store_facts import store_facts
from pipeline.text.heldout import load_contexts
from tests.helpers.harvests import harvest_config
from tests.helpers.refusals import refused
from tests.helpers.stores import column, files_of
from tests.helpers.tiny import CTX_LEN, EOS, make_model

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'critic' %}{{ raise_exception('no critics') }}{% endif %}"
    "{{ m['role'][0] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
TALKS = [
    [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": f"what is {i}?"},
        {"role": "assistant", "content": f"the number {i}" * (1 + i % 3)},
    ]
    for i in range(40)
]


def told(folder: Path, **config: object) -> None:
    """What the model says of its special tokens and template."""
    given = {"bos_token": EOS, "eos_token": EOS, "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(given | config))


def write_talks(path: Path, talks: list[Any], *, name: str = "messages") -> str:
    path.write_text("".join(json.dumps({"id": i, name: t}) + "\n" for i, t in enumerate(talks)))
    return str(path)


@pytest.fixture
def config(tmp_path) -> HarvestConfig:
    model = make_model(tmp_path / "chatty")
    told(model)
    return harvest_config(
        tmp_path, model=model, text=write_talks(tmp_path / "talks.jsonl", TALKS),
        text_column="messages", chat_template=True, sites=("mlp_out.1",), dtype="fp32",
    )  # fmt: skip


def theirs(config: HarvestConfig) -> list[list[int]]:
    """Each conversation as transformers' tokenizer has it."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=f"{config.model}/tokenizer.json", bos_token=EOS, eos_token=EOS
    )
    options = {"chat_template": TEMPLATE, "tokenize": True, "return_dict": True}
    return [tokenizer.apply_chat_template(talk, **options)["input_ids"] for talk in TALKS]


def in_text_order(store: ActStore, name: str) -> np.ndarray:
    order = np.argsort(column(store, "context_id") * CTX_LEN + column(store, "position"))
    return column(store, name)[order]


def test_tokens_are_those_of_transformers_and_a_conversation_is_a_document(config):
    harvest(config)
    store, talks = ActStore.open(config.out), theirs(config)
    tokens = [token for talk in talks for token in talk][: store.n_rows]
    numbers = np.repeat(np.arange(len(talks)), [len(talk) for talk in talks])[: store.n_rows]
    np.testing.assert_array_equal(in_text_order(store, "token_id"), tokens)
    np.testing.assert_array_equal(in_text_order(store, "document_id"), numbers)
    assert store.n_rows == 33 * CTX_LEN


def test_the_same_of_parquet_and_of_the_other_spelling(config, tmp_path):
    harvest(config)
    names = {"system": "system", "user": "human", "assistant": "gpt"}
    others = [[{"from": names[m["role"]], "value": m["content"]} for m in t] for t in TALKS]
    made = {"messages": TALKS, "talk": others}
    parquet.write_table(pyarrow.table(made), tmp_path / "talks.parquet")
    for name in made:
        again = replace(
            config, text=str(tmp_path / "talks.parquet"), text_column=name,
            out=tmp_path / f"{name}.actstore",
        )  # fmt: skip
        harvest(again)
        stores = (ActStore.open(one.out) for one in (config, again))
        np.testing.assert_array_equal(*(in_text_order(store, "token_id") for store in stores))


def test_a_harvest_that_was_stopped_gives_the_same_bytes(config, tmp_path):
    whole = replace(config, out=tmp_path / "other" / "whole.actstore")
    harvest(whole)

    def stop(progress):
        if progress.done > 20 * CTX_LEN:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        harvest(config, on_progress=stop)
    assert make_plan(config).state == "resume"
    harvest(config)
    assert files_of(config.out) == files_of(whole.out)


def test_another_template_is_another_store_and_info_tells_which(config):
    harvest(config)
    kept = peek(config.out).spec.source["chat_template"]
    assert kept.startswith("sha256:")
    assert make_plan(config).state == "complete"
    beside = replace(config, out=config.out.with_name("beside.actstore"))
    assert make_plan(beside).found == config.out
    for change in ({"chat_template": TEMPLATE + "."}, {"bos_token": ""}):
        told(Path(config.model), **change)
        with refused(ConfigError, f"chat_template: {kept} there, sha256:.* now"):
            make_plan(config)
        assert make_plan(beside).found is None
    lines = dict(store_tables(store_facts(config.out))[0].sections[0])
    assert lines["chat template"] == f"{kept[:24]}…"


def test_repair_spells_them_again_and_refuses_another_template(config):
    harvest(config)
    shard = config.out / "data.zarr" / "mlp_out.1" / "c" / "1" / "0"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:])
    told(Path(config.model), chat_template=TEMPLATE + ".")
    with refused(ConfigError, "the chat template of .* is not what it was"):
        repair(config.out, verify(config.out), device="cpu", batch_size=4)
    told(Path(config.model))
    repair(config.out, verify(config.out), device="cpu", batch_size=4)
    assert shard.read_bytes() == whole


def test_without_a_template_nothing_is_written(config):
    told(Path(config.model), chat_template=None)
    with refused(ModelError, "has no chat template"):
        harvest(config)
    assert not config.out.exists()


CRITIC = [{"role": "critic", "content": "bad"}]


@pytest.mark.parametrize(
    ("template", "talks", "message"),
    [
        (TEMPLATE, [CRITIC], "line 1: the chat template .* conversation of critic: no critics"),
        ("{% for m in messages %}", TALKS, "line 1: the chat template .* Unexpected end of templ"),
        (TEMPLATE, ["hello"], "line 1 holds a str where a conversation is expected"),
        (TEMPLATE, [[{"role": "user"}]], "line 1 holds a list that is no conversation"),
        (TEMPLATE, [["hello"]], "line 1 holds a list that is no conversation"),
    ],
    ids=["role", "broken", "text", "no content", "strings"],
)
def test_what_cannot_be_spelled_is_one_line_and_leaves_nothing(config, template, talks, message):
    told(Path(config.model), chat_template=template)
    write_talks(Path(config.text), talks)
    with refused(TextError, message):
        harvest(config)
    assert not config.out.exists()


@pytest.mark.parametrize("text", ["builtin", "builtin:arithmetic", "notes.txt"])
def test_plain_text_holds_no_conversations(config, tmp_path, text):
    (tmp_path / "notes.txt").write_text("hello" * 99)
    text = str(tmp_path / text) if text.endswith("txt") else text
    with refused(TextError, "is plain text, which holds no conversations: .* --chat-template"):
        make_plan(replace(config, text=text))


def test_the_column_must_be_there_and_conversations_need_the_option(config):
    with refused(TextError, "no column 'text'; .* the one with conversations, as --text-column N"):
        harvest(replace(config, text_column="text"))
    for name in ("text", "messages"):
        with refused(TextError, "conversations are read with --chat-template by saepipe harvest"):
            harvest(replace(config, text_column=name, chat_template=False))


def test_special_tokens_of_a_template_are_always_parsed(config):
    with refused(ConfigError, "parses special tokens"):
        replace(config, special_tokens="parse")


def test_an_evaluation_reads_what_lies_behind_the_store_as_conversations(config, monkeypatch):
    monkeypatch.setattr("pipeline.runs.default_text.heldout_text", lambda _: "builtin@heldout")
    harvest(config)
    store = ActStore.open(config.out)
    text = DefaultTexts("text").of(Provenance.of(store, site="mlp_out.1"), config.out)
    assert text.chat and text.column == "messages" and text.source == config.text

    rest = load_contexts(
        text.source, load_tokenizer(config.model), ctx_len=CTX_LEN, n=5, column=text.column,
        chat=load_chat_template(config.model), start=text.start,
    )  # fmt: skip
    tokens = [token for talk in theirs(config) for token in talk][store.n_rows :]
    assert rest.flatten().tolist() == tokens[: 5 * CTX_LEN]


def test_an_evaluation_without_any_left_says_what_to_type(config):
    harvest(replace(config, tokens=10**5))
    store = ActStore.open(config.out)
    assert store.manifest.source_exhausted
    with refused(TextError, "holds all of .* name a text with --text, and --chat-template if it"):
        DefaultTexts("text").of(Provenance.of(store, site="mlp_out.1"), config.out)


def test_an_evaluation_takes_the_option_for_a_text_that_is_named(config, tmp_path):
    harvest(config)
    run = tmp_path / "run"
    verbs.train(config.out, out=run, tokens=300, batch_size=64, device="cpu", expansion=2)
    report = verbs.evaluate(
        run, text=config.text, text_column="messages", chat_template=True, tokens=60,
        device="cpu", n_bootstrap=0,
    )  # fmt: skip
    assert report.n_tokens == 60
    behind = verbs.evaluate(run, tokens=60, device="cpu", n_bootstrap=0)
    assert behind.text == f"the rest of {config.text}"
    with refused(ConfigError, "says how a text is read, and none is named"):
        EvalConfig(runs=(run,), chat_template=True)
