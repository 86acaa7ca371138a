"""What is left open is settled by a run's length and width, and what was said stays."""

from dataclasses import fields

import pytest

from pipeline.config.architectures import ARCHS, JumpReluConfig, Penalised, ReluConfig, TopKConfig
from pipeline.config.checks import steps_of
from pipeline.config.defaults import best_lr, settled, with_batch_size
from pipeline.config.training import TrainConfig

WIDTHS = {"d_in": 256, "d_sae": 1024}


def config_of(**settings) -> TrainConfig:
    return TrainConfig(store="s", out="o", **settings)


@pytest.mark.parametrize(
    ("n_rows", "size"),
    [(1, 128), (250_000, 128), (512_000, 256), (1_023_999, 256), (10**6 * 3, 1024), (10**9, 1024)],
)
def test_short_runs_have_small_batches_and_long_ones_as_large_as_may_be(n_rows, size):
    assert settled(config_of(), **WIDTHS, n_rows=n_rows).batch_size == size
    by_tokens = settled(config_of(tokens=n_rows), **WIDTHS, n_rows=5)
    assert by_tokens.batch_size == size


def test_runs_of_one_pass_share_the_batch_size_of_the_longest():
    configs = [config_of(tokens=n) for n in (100_000, 3_000_000, None)]
    assert {c.batch_size for c in with_batch_size(configs, n_rows=10**5)} == {1024}
    told = with_batch_size([config_of(batch_size=7), config_of()], n_rows=10**7)
    assert [c.batch_size for c in told] == [7, 1024]


def test_the_learning_rate_goes_by_the_roots_of_both_widths_and_of_rows_and_by_the_batch():
    rates = [best_lr(1024, 10**6, d_in=256, d_sae=2**n) for n in (10, 12, 14, 16)]
    assert rates == [4.4e-4, 2.2e-4, 1.1e-4, 5.5e-5]
    assert best_lr(1024, 10**6, d_in=1024, d_sae=2**10) == 2.2e-4
    assert best_lr(1024, 4 * 10**6, d_in=256, d_sae=2**10) == 2.2e-4
    assert best_lr(2048, 5 * 10**5, d_in=256, d_sae=2**10) == 8.8e-4  # as many rows
    assert [best_lr(128, n, d_in=64, d_sae=256) for n in (1, 300, 10**4)] == [1e-2, 1e-2, 6.2e-3]


def test_windows_are_shares_of_a_run_and_end_at_a_million_rows():
    def windows(**settings) -> list[int]:
        config = settled(config_of(batch_size=100, **settings), **WIDTHS, n_rows=10**6)
        told = (config.dead_window, config.revive_after)
        return [steps_of(d, batch_size=100, n_steps=10**9) * 100 for d in told if d]

    assert windows() == [100_000, 3_000]
    assert windows(tokens=10**9) == [1_000_000, 30_000]
    assert windows(dead_window="20k") == [20_000, 20_000]  # as AuxK's authors have it: one window
    assert windows(dead_window="20k", revive_after="500") == [20_000, 500]


def test_what_was_said_stays_and_nothing_is_left_open_twice():
    told = config_of(batch_size=3, lr=0.5, dead_window="7", revive_after="8", tokens=9)
    assert settled(told, d_in=8, d_sae=8, n_rows=100) == told
    once = settled(config_of(arch=ReluConfig()), **WIDTHS, n_rows=10**5)
    assert (
        settled(once, d_in=8, d_sae=8, n_rows=9) == once
    )  # to go on with a run is to find it as it was
    open_ones = {f.name for f in fields(TrainConfig) if getattr(once, f.name) is None}
    assert open_ones == {"tokens", "ema", "threads", "site", "exclude_norms"}


@pytest.mark.parametrize("kind", ARCHS)
def test_without_a_word_every_architecture_aims_at_32_latents(kind):
    arch = settled(config_of(arch=ARCHS[kind]()), **WIDTHS, n_rows=10**5).arch
    assert getattr(arch, arch.l0_as) == 32
    if isinstance(arch, Penalised):
        assert arch.wanted(d_sae=128) == 0.25
        told = ARCHS[kind](**{arch.penalty_as: 0.1})
        assert told.settled == told
        assert ARCHS[kind](target=0.1).settled == ARCHS[kind](target=0.1)


def test_architectures_say_what_was_asked_of_them():
    said = {
        ReluConfig(): "relu",
        ReluConfig(l0=32.0): "relu l0=32",
        ReluConfig(l1=0.1): "relu l1=0.1",
        ReluConfig(target=0.01): "relu target=0.01",
        TopKConfig(): "topk k=32",
        JumpReluConfig(l0=8.0, bandwidth=1.0): "jumprelu l0=8 bandwidth=1.0",
    }
    assert {str(arch): text for arch, text in said.items()} == {x: x for x in said.values()}
