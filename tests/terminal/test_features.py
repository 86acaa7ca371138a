"""Features on the screen: eighty columns, whatever the text."""

import io
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline.features.ablation import AblationEffect
from pipeline.features.collect import collect_features
from pipeline.features.feature import BEFORE, TokenEffect, TokenValues
from pipeline.features.files import FeatureSet, ordered
from pipeline.terminal import screen
from pipeline.terminal.features import feature_tables, features_table, histogram
from pipeline.terminal.lines import features_line
from pipeline.text.token_text import TokenTexts
from tests.helpers.featured import config_of, make_world

HOSTILE = ["<b>[red]x[/red]", "\x1b[2J", "\u202e", "a\r\nb", "\x00", "[/]", "字" * 40, "\u0301" * 9]


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> FeatureSet:
    run = make_world(tmp_path_factory.mktemp("world")).run()
    return collect_features(config_of(run, n_top=5, n_spread=16, n_values=100))


def drawn(tables, *, width: int = 80) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False, color_system=None)
    for table in tables:
        console.print(screen.drawn(table))
    return out.getvalue().splitlines()


def effects(texts: list[str]) -> tuple[TokenEffect, ...]:
    return tuple(TokenEffect(token=i, text=text, effect=1.5) for i, text in enumerate(texts))


def test_a_table_names_each_feature_by_what_it_fires_on(features):
    some = ordered(features, "frequency")[:6]
    lines = drawn([features_table(features, some)])
    assert all(cell_len(line) <= 80 for line in lines)
    found = [line for line in lines if line.split() and line.split()[0].isdigit()]
    assert [int(line.split()[0]) for line in found] == some.tolist()
    for line, index in zip(found, some.tolist(), strict=True):
        feature = features.feature(index)
        assert f"{100 * feature.frequency:.3g} %" in line
        assert f"{feature.max:.3g}" in line
        assert features.texts.alone(int(feature.top.tokens[0, BEFORE])) in line.split()


def test_rows_whose_text_nobody_named_are_of_a_text(features):
    nameless = replace(features, facts=replace(features.facts, text=""))
    assert "tokens of a text, in " in features_line(nameless)


def test_a_page_tells_all_of_a_feature(features):
    index = int(ordered(features, "frequency")[3])
    feature = features.feature(index)
    effect = AblationEffect(n_contexts=5, dropped=effects(["lost"]), raised=effects(["gained"]))
    lines = drawn(feature_tables(features, index, effect=effect))
    text = "\n".join(lines)
    assert all(cell_len(line) <= 80 for line in lines)
    for words in (
        f"feature {index} of run, relu mlp_out.1", "top contexts", "contexts at quantiles",
        "activations by token, 100 tokens drawn", "promotes", "suppresses", "over 5 top contexts",
        "lost", "gained", f"{feature.neighbours[0].index} ({feature.neighbours[0].cosine:.2f})",
    ):  # fmt: skip
        assert words in text, words
    assert f"{feature.top.value[0]:.3g}" in text
    assert f"{feature.promoted[0].effect:+.2f}" in text


def test_the_token_of_an_example_is_marked_and_under_the_others(features):
    index = int(ordered(features, "max")[0])
    out = io.StringIO()
    console = Console(
        file=out, width=80, force_terminal=True, markup=False, color_system="standard"
    )
    console.print(screen.drawn(feature_tables(features, index)[1]))
    lines = [line for line in out.getvalue().splitlines() if "\x1b[1;4m" in line]
    top = features.feature(index).top
    assert len(lines) == len(top.value)
    for line, tokens in zip(lines, top.tokens.tolist(), strict=True):
        assert line.split("\x1b[1;4m")[1].startswith(features.texts.alone(tokens[BEFORE]))
    plain = drawn([feature_tables(features, index)[1]])[1:]
    tokens = [features.texts.alone(int(t)) for t in top.tokens[:, BEFORE]]
    column = lines[0].split("\x1b[1;4m")[0]
    at = cell_len(column)
    assert [line[at] for line in plain] == tokens


def test_a_dead_feature_has_a_page(features):
    dead = int(np.flatnonzero(features.n_active == 0)[0])
    text = "\n".join(drawn(feature_tables(features, dead)))
    assert "0 % of" in text
    assert "0 tokens" in text
    assert "promotes" in text
    assert "top contexts" not in text


def test_hostile_texts_are_shown_and_do_nothing(features, monkeypatch):
    index = int(ordered(features, "frequency")[0])
    known = {i: HOSTILE[i % len(HOSTILE)].encode() for i in range(300)}
    monkeypatch.setitem(features.__dict__, "texts", TokenTexts(known.get))
    bad = AblationEffect(n_contexts=1, dropped=effects(HOSTILE), raised=())
    lines = drawn(
        [features_table(features, np.array([index])), *feature_tables(features, index, effect=bad)]
    )
    assert all(cell_len(line) <= 80 for line in lines)
    text = "\n".join(lines)
    assert not any(unicodedata.category(c) in ("Cc", "Cf") for c in text.replace("\n", ""))
    for shown in ("[red]", "\\x1b", "\\x00"):
        assert shown in text


def test_a_histogram_counts_tokens_in_letters():
    texts = TokenTexts({1: b" the", 2: b"of"}.get)
    token = np.array([1] * 30 + [2] * 10 + list(range(10, 20)), np.int32)
    value = np.array([7.9] * 30 + [0.5] * 10 + [4.5] * 10, np.float32)
    lines = drawn([histogram(TokenValues(token=token, value=value), texts)])
    assert "50 tokens drawn" in lines[0]
    bars = [line.split(" to ")[1].split() for line in lines[1:9]]
    assert [int(bar[1]) for bar in bars] == [10, 0, 0, 0, 10, 0, 0, 30]
    assert set(bars[7][2]) == {"A"} and set(bars[0][2]) == {"B"}
    assert len(bars[7][2]) == 52
    assert abs(len(bars[0][2]) - 52 / 3) <= 1
    assert bars[4][2].endswith("·")
    assert "A ␣the 60 %" in lines[9]
    assert "B of 20 %" in lines[9]
    assert "· others 12 %" in " ".join(lines[9:])
