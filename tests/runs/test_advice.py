"""What a finished training is said to need: each line where it is true, and only there."""

import re
from typing import Any

import pytest

from pipeline.config.architectures import JumpReluConfig, ReluConfig, TopKConfig
from pipeline.config.training import TrainConfig
from pipeline.runs.advice import advice_on

GOOD: dict[str, Any] = {
    "l0": 32.0, "n_dead": 10, "dead_over": 10_000, "n_constant": 1, "explained_variance": 0.8,
}  # fmt: skip


def said(*, recon=(5.0, 4.6), n_rows: int = 10**6, config: dict[str, Any] | None = None, **last):
    """Of a run of 1,000 steps over 100,000 rows, with the error at the middle and at the end."""
    settings: dict[str, Any] = {"arch": TopKConfig(k=32), "batch_size": 100, "lr": 1e-3}
    made = TrainConfig(store="s", out="o", **settings | (config or {}))
    curves = [
        {"step": step, "rows": 100 * step, "recon": recon[step > 500]} | GOOD | last
        for step in range(50, 1001, 50)
    ]
    return advice_on(made, curves, d_sae=640, n_rows=n_rows)


def test_of_a_good_run_there_is_nothing_to_say():
    assert said() == ()
    assert said(l0=35.1, n_dead=64, n_constant=7, explained_variance=0.5, recon=(5, 3.8)) == ()
    assert said(n_rows=10_000) == ()


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"l0": 35.3}, "L0 is 35.3 where 32 was asked for: train on more `tokens`"),
        ({"l0": 28.7}, "L0 is 28.7 where 32 was asked for"),
        ({"config": {"arch": JumpReluConfig(l0=8)}}, "L0 is 32.0 where 8 was asked for"),
        ({"config": {"arch": ReluConfig(l0=16)}}, "L0 is 32.0 where 16 was asked for"),
        (
            {"config": {"arch": ReluConfig(target=0.01)}},
            "L0 is 32.0 where 6.4 was asked for: train on more `tokens`, or type `l0`",
        ),
        ({"n_dead": 65}, r"65 of 640 latents \(10%\) were silent on the last 10,000 rows: lower"),
        ({"explained_variance": 0.49}, r"explained variance is 0.49: raise `l0` or raise `expa"),
        (
            {"explained_variance": 0.49, "config": {"arch": ReluConfig(l1=9.0)}},
            r"explained variance is 0.49: lower `l1` or raise `expansion`, or train on more",
        ),
        (
            {"n_dead": 65, "config": {"arch": JumpReluConfig(coefficient=9.0)}},
            r"65 of 640 .* rows: lower `coefficient`, `lr` or `expansion`, or train on more",
        ),
        ({"recon": (5.0, 3.7)}, "the error fell by 26% in the second half of the run"),
        ({"n_constant": 8}, "8 of the 32 active latents of a row are active on nearly all rows"),
        ({"n_rows": 9_000}, "each row of the store was seen 11 times: harvest more `tokens`"),
        (
            {"config": {"resample": "random", "resample_every": "1k steps"}},
            "no latent was resampled, as the run is shorter than resample_every = 1k steps",
        ),
        (
            {"config": {"arch": ReluConfig(target=0.05), "hold": "5M"}},
            "the penalty was never adjusted, as the run is shorter than hold = 5M",
        ),
    ],
)
def test_each_line_is_said_where_it_is_true_and_alone(told, line):
    (only,) = said(**told)
    assert re.match(line, only), only


def test_who_has_seen_the_whole_store_is_told_to_harvest_more():
    (line,) = said(l0=35.3, n_rows=100_000)
    assert line.endswith("32 was asked for: harvest more `tokens` and train on more `tokens`")
    (line,) = said(recon=(5.0, 3.0), n_rows=100_001)
    assert line.endswith("second half of the run, and may fall further: train on more `tokens`")


def test_what_was_not_asked_for_is_not_missed():
    assert said(l0=300.0, config={"arch": ReluConfig(l1=0.1)}, n_constant=0) == ()
    assert said(config={"resample": "random", "resample_every": "900 steps"}) == ()
    assert said(config={"arch": ReluConfig(target=0.05), "hold": "50k"}) == ()
    assert said(config={"arch": ReluConfig(l1=0.1), "hold": "5M"}) == ()
