"""Features as a notebook or a Python prompt shows them."""

import sys
import types

import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.features.feature import BEFORE, Passage, TopContexts
from pipeline.features.files import ordered
from tests.helpers.reading_pages import Reader

HOSTILE = "<script>alert(1)</script>", "\x1b[2J\u202e", "</td><img src=x onerror=y>&amp;\r\n\x00"


def test_features_tell_in_a_line_where_they_are_from(features):
    n_alive = (features.n_active > 0).sum()
    assert repr(features) == (
        f"FeatureSet({features.run}, 64 features, {n_alive} active on 480 tokens of "
        f"{features.facts.text})"
    )
    assert len(features) == 64
    index = int(ordered(features, "max")[0])
    assert repr(features.feature(index)).startswith(f"Feature({index}, on ")


def test_the_top_contexts_of_a_feature_are_a_table_with_the_token_marked(features):
    index = int(ordered(features, "frequency")[0])
    found, top = features.feature(index).top, features.top(index, n=2)
    assert len(top) == 2 < len(found)
    title, head, *lines = repr(top).splitlines()
    assert title.startswith(f"feature {index} of run, active on ")
    assert head.split() == ["activation", "context"]
    column = lines[0].index("«")
    for line, value, tokens in zip(lines, found.value, found.tokens, strict=False):
        token = features.texts.alone(int(tokens[BEFORE]))
        assert line.split()[0] == f"{value:.4g}"
        assert line[column : column + 3] == f"«{token}»"
    tags = [tag for tag, _ in Reader(top._repr_html_().encode()).tags]
    assert tags.count("mark") == tags.count("tr") - 1 == 2


def test_hostile_texts_are_shown_and_do_nothing():
    top = TopContexts(
        title=HOSTILE[0], activations=(2.0, 1.0), passages=(Passage(*HOSTILE), Passage("", "", ""))
    )
    html = top._repr_html_()
    reader = Reader(html.encode())
    assert {tag for tag, _ in reader.tags} == {"table", "caption", "tr", "th", "td", "mark"}
    for text in (html, repr(top)):
        assert not {*"\x1b\u202e\x00\r"} & {*text}
    for words in ("<script>", "\\x1b[2J\\u202e", "<img src=x onerror=y>&amp;", "\\x00"):
        assert words in reader.text
    assert len(repr(top).splitlines()) == 4


def test_a_notebook_shows_the_most_frequent_features_and_what_they_are_active_on(features):
    reader = Reader(features._repr_html_().encode())
    first, second = ordered(features, "frequency")[:2].tolist()
    assert f"64 features of {features.run.name}, the most frequent" in reader.text
    assert [tag for tag, _ in reader.tags].count("tr") == 1 + 15
    place = reader.text.index(f"{features.frequency[first]:.1%}"[:3])
    assert place < reader.text.index(str(second), place)


def test_long_texts_are_cut_at_the_ends_that_are_far_from_the_token():
    top = TopContexts(title="", activations=(1.0,), passages=(Passage("a" * 99, "b", "c" * 99),))
    assert repr(top).splitlines()[2] == f"{1:>10}  …{'a' * 39}«b»{'c' * 29}…"


def test_frames_hold_a_row_a_feature_and_a_row_a_context(features, monkeypatch):
    pandas = types.SimpleNamespace(DataFrame=dict)  # a frame is made of columns
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    frame = features.to_frame()
    np.testing.assert_array_equal(frame["n_active"], features.n_active)
    assert frame["promoted_text"][1] == [told.text for told in features.feature(1).promoted]
    top = features.top(1)
    assert top.to_frame() == {
        "activation": list(top.activations),
        **{name: [getattr(p, name) for p in top.passages] for name in ("before", "token", "after")},
    }


def test_a_frame_without_pandas_says_what_to_install(features, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas"):
        features.to_frame()
