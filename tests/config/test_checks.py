"""Lengths of training and counts as people say them; what configs make of text."""

import json
import math
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from pipeline.config.checks import parse_duration, steps_of
from pipeline.config.serialization import from_json, to_json
from pipeline.config.settings import parse_count
from pipeline.config.stages import EvalConfig, FinetuneConfig, HarvestConfig
from pipeline.config.training import ConnectConfig, TrainConfig
from pipeline.errors import ConfigError
from tests.helpers.refusals import refused


@pytest.mark.parametrize(
    ("duration", "amount", "unit"),
    [
        ("0", 0, "rows"),
        ("5M", 5_000_000, "rows"),
        ("5M tokens", 5_000_000, "rows"),
        ("1 token", 1, "rows"),
        ("1.5k rows", 1500, "rows"),
        ("2B", 2_000_000_000, "rows"),
        ("1_000_000", 1_000_000, "rows"),
        ("10k steps", 10_000, "steps"),
        ("1 step", 1, "steps"),
        ("10ksteps", 10_000, "steps"),
        ("20%", 20, "%"),
        (" 2.5 % ", 2.5, "%"),
    ],
)
def test_a_duration_is_an_amount_and_a_unit(duration, amount, unit):
    assert parse_duration(duration) == (amount, unit)


@pytest.mark.parametrize(
    "duration",
    ["", " ", "M", "%", "steps", "-1", "+1", "1e6", "1,000", ".5", "5.", "5 m", "5K", "5 apples",
     "10k k", "1_", "_1", "1__0", "5M 20%", "5 step s", "inf", "nan", "٣"],
)  # fmt: skip
def test_what_is_not_a_duration_is_refused_in_one_line_that_shows_some(duration):
    said = f"{duration!r} is not a length of training: type 10k steps, 5M or 20%"
    with refused(ConfigError, f"^{re.escape(said)}$"):
        steps_of(duration, batch_size=1, n_steps=1)


@pytest.mark.parametrize(
    ("duration", "steps"),
    [("5M", 4883), ("1024", 1), ("1025 tokens", 2), ("10k steps", 10_000), ("20%", 200),
     ("0.01%", 1), ("0", 0), ("0 steps", 0), ("0%", 0), ("0.0M tokens", 0)],
)  # fmt: skip
def test_rows_become_steps_by_the_batch_and_percents_by_the_run(duration, steps):
    assert steps_of(duration, batch_size=1024, n_steps=1000) == steps


@given(st.integers(0, 10_000), st.integers(1, 10**9))
def test_a_percentage_is_exact(hundredths, n_steps):
    duration = f"{hundredths // 100}.{hundredths % 100:02d}%"
    exact = math.ceil(Fraction(hundredths * n_steps, 10_000))
    assert steps_of(duration, batch_size=1, n_steps=n_steps) == exact


@given(st.integers(0, 10**12), st.integers(1, 10**5))
def test_rows_in_thousands_are_exact(rows, batch_size):
    duration = f"{rows // 1000}.{rows % 1000:03d}k"
    assert steps_of(duration, batch_size=batch_size, n_steps=1) == -(-rows // batch_size)


@pytest.mark.parametrize(
    ("text", "number"),
    [("500k", 500_000), ("20M", 20_000_000), ("1.5B", 1_500_000_000), ("1_000", 1000), ("7", 7)],
)
def test_a_count_is_a_number_with_a_letter(text, number):
    assert parse_count(text) == number
    for made in (
        HarvestConfig(out="x", tokens=text),
        from_json(HarvestConfig, {"out": "x", "tokens": text}),
    ):
        assert made == HarvestConfig(out=Path("x"), tokens=number)


@pytest.mark.parametrize("text", ["", "k", "many", "5T", "inf", "nan", "1.5.2k"])
def test_what_is_no_count_is_one_line(text):
    with refused(ConfigError, "expected a number like 500k, 20M or 1B, got"):
        TrainConfig(store="s", out="o", tokens=text)
    with refused(ConfigError, r"^config\.tokens: expected a number like 500k"):
        from_json(HarvestConfig, {"out": "x", "tokens": text})


def test_paths_may_be_text_and_lists_tuples():
    config = HarvestConfig(out="x", model=Path("m"), sites=["mlp_out.1", "resid_pre.0"])
    assert (config.out, config.model) == (Path("x"), "m")
    assert config.sites == ("mlp_out.1", "resid_pre.0")
    assert HarvestConfig(out="x", sites="mlp_out.1").sites == ("mlp_out.1",)
    evaluation = EvalConfig(runs="a", tokens="1k")
    assert evaluation.runs == (Path("a"),)
    connect = ConnectConfig(store="s", out="o", ends=["a", Path("b")], layer="l", window_rows="1k")
    assert (connect.ends, connect.layer) == ((Path("a"), Path("b")), Path("l"))
    train = TrainConfig(store="s", out="o", exclude_positions=[0, 1])
    assert (train.exclude_positions, train.tokens) == ((0, 1), None)
    for one in (config, evaluation, connect, train, FinetuneConfig(run="a", out="b")):
        assert hash(one) == hash(replace(one))
        assert from_json(type(one), json.loads(json.dumps(to_json(one)))) == one
