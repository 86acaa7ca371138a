"""A run that was stopped, at any moment and in any configuration, ends as one that was not."""

import random
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.slow import cases
from tests.helpers.training import (
    killed,
    lines_of,
    result,
    settings_for,
    steps_kept,
    syncs_of,
    train_settings,
    train_until,
)

CASES: dict[str, dict[str, object]] = {
    "relu controlled": {
        "arch": {"kind": "relu", "l1": 0.01, "target": 0.1}, "hold": "6 steps", "ema": 0.9,
        "resample": "random", "resample_every": "4 steps", "resample_window": "2 steps",
        "clip": 0.5, "project": True, "lr_warmup": "7 steps", "lr_decay": "40%",
        "l1_warmup": "4 steps", "normalize": "rms", "lr": 0.03,
    },
    "relu into the sparse path and back": {
        "arch": {"kind": "relu", "l1": 10.0}, "lr": 0.06, "batch_size": 16, "resample": "random",
        "resample_every": "30 steps", "resample_window": "6 steps",
    },
    "relu-april in bf16, worst": {
        "arch": {"kind": "relu-april", "l1": 3.0, "target": 0.05}, "hold": "0", "lr": 0.1,
        "batch_size": 16, "precision": "bf16", "resample": "worst", "resample_every": "4 steps",
        "resample_window": "2 steps", "exclude_positions": [0, 3], "b_dec_start": "median",
    },
    "tied, sparse, worst": {
        "arch": {"kind": "tied", "l1": 2.0}, "sparse": "on", "ema": 0.7, "exclude_norms": 1.3,
        "resample": "worst", "resample_every": "4 steps", "resample_window": "2 steps", "lr": 0.03,
    },
    "gated, sparse": {
        "arch": {"kind": "gated", "l1": 1.0, "target": 0.2}, "hold": "3 steps", "sparse": "on",
        "resample": "random", "resample_every": "4 steps", "resample_window": "2 steps",
        "clip": 1.0, "lr": 0.02, "normalize": "rms", "l1_warmup": "30%", "ema": 0.9,
    },
    "topk, mostly empty batches": {
        "arch": {"kind": "topk", "k": 2, "k_aux": 3}, "dead_window": "3 steps", "batch_size": 8,
        "exclude_positions": [*range(1, 16)], "sparse": "off", "ema": 0.5, "b_dec_start": "zero",
        "lr": 0.02, "project": True,
    },
    "batchtopk in bf16": {
        "arch": {"kind": "batchtopk", "k": 2, "k_aux": 4}, "dead_window": "2 steps",
        "precision": "bf16", "sparse": "auto", "lr": 0.03, "clip": 0.7,
        "exclude_tokens": [*range(5, 60)],
    },
    "matryoshka, sparse": {
        "arch": {"kind": "matryoshka", "k": 2, "prefixes": 3}, "dead_window": "2 steps",
        "sparse": "on", "normalize": "rms", "lr": 0.03, "resample": "random",
        "resample_every": "5 steps", "resample_window": "3 steps",
    },
    "jumprelu": {
        "arch": {"kind": "jumprelu", "l0": 1.0}, "lr": 0.1, "batch_size": 8, "ema": 0.9,
        "l1_warmup": "10 steps", "resample": "worst", "resample_every": "4 steps",
        "resample_window": "2 steps",
    },
}  # fmt: skip
STEPS = 35


@pytest.fixture(scope="module")
def whole(store, tmp_path_factory):
    """`whole(case)`: its settings with a store, an uninterrupted run of them, and its syncs."""

    @cache
    def make(case: str) -> tuple[dict[str, object], Path, int]:
        settings = settings_for(store, steps=STEPS, **CASES[case])
        out = tmp_path_factory.mktemp("runs") / "whole"
        with pytest.MonkeyPatch.context() as patch:
            return settings, out, syncs_of(patch, settings, out)

    return make


# A few show that all of a run's state is kept; the others, that this holds of every kind.
NAMES = {name: name for name in CASES}


@pytest.mark.parametrize("case", cases(NAMES, fast={"relu controlled", "matryoshka, sparse"}))
def test_a_run_stopped_again_and_again_is_the_same_to_the_bit(whole, tmp_path, case):
    settings, uninterrupted, _ = whole(case)
    out, step = tmp_path / "run", 0
    while train_until(settings, out, step=step + 1):
        step = steps_kept(out)[-1]
    assert step > 0.8 * STEPS
    assert result(out) == result(uninterrupted)


@pytest.mark.parametrize("case", cases(NAMES, fast={"gated, sparse"}))
def test_a_run_killed_twice_anywhere_is_the_same_to_the_bit(whole, tmp_path, case):
    settings, uninterrupted, n_syncs = whole(case)
    rng = random.Random(str(settings["arch"]))
    out = tmp_path / "run"
    first = rng.randrange(1, n_syncs)
    killed(settings, out, at_sync=first)
    killed(settings, out, at_sync=rng.randrange(1, (n_syncs - first) // 2 + 2))
    train_settings(settings, out)
    assert result(out) == result(uninterrupted)
    assert steps_kept(out) == steps_kept(uninterrupted)


@pytest.mark.slow
def test_the_cases_do_what_they_are_named_for(whole):
    """Else, what they show would be less than it seems."""
    curves = {name: lines_of(whole(name)[1]) for name in CASES}
    ends = {name: lines[-1] for name, lines in curves.items()}
    paths = [line["sparse"] for line in curves["relu into the sparse path and back"]]
    assert paths == [False] * 4 + [True] * 4 + [False] * 2
    for name, settings in CASES.items():
        if "resample" in settings:
            assert ends[name]["n_resampled"] > 0, name
        if "dead_window" in settings:
            assert ends[name]["n_dead"] > 0, name
        if "target" in str(settings["arch"]):
            assert len({line["beta"] for line in curves[name]}) > 5, name
    assert len(curves["topk, mostly empty batches"]) < len(curves["jumprelu"])
