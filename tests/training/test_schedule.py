"""The learning rate and the factor of the sparsity penalty, step by step."""

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from pipeline.config.training import TrainConfig
from pipeline.training.optimizer import Schedule


def make_schedule(n_steps: int, **settings) -> Schedule:
    config = TrainConfig(store=Path("a"), out=Path("b"), lr=0.5, batch_size=10, **settings)
    return Schedule.of(config, n_steps=n_steps, hold=config.hold)


def rates(schedule: Schedule) -> list[float]:
    return [schedule.lr(step) for step in range(1, schedule.n_steps + 1)]


def test_without_warmup_or_decay_nothing_changes():
    schedule = make_schedule(5)
    assert rates(schedule) == [0.5] * 5
    assert [schedule.penalty(step) for step in range(1, 6)] == [1.0] * 5


def test_the_learning_rate_rises_to_its_peak_and_falls_towards_zero():
    schedule = make_schedule(10, lr_warmup="4 steps", lr_decay="20%")
    fractions = [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1 / 2]
    assert rates(schedule) == pytest.approx([0.5 * f for f in fractions])


def test_a_decay_as_long_as_the_run_begins_at_the_peak():
    fractions = [1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]
    assert rates(make_schedule(5, lr_decay="100%")) == pytest.approx([0.5 * f for f in fractions])


def test_a_warmup_into_a_decay_peaks_where_they_meet():
    schedule = make_schedule(8, lr_warmup="100%", lr_decay="100%")
    fractions = [1 / 8, 2 / 8, 3 / 8, 4 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    assert rates(schedule) == pytest.approx([0.5 * f for f in fractions])


def test_the_penalty_rises_by_its_own_length():
    schedule = make_schedule(100, l1_warmup="35 tokens", lr_warmup="50%")  # 3.5 batches
    assert [schedule.penalty(step) for step in range(1, 7)] == [1 / 4, 2 / 4, 3 / 4, 1, 1, 1]


def test_a_hold_lasts_at_least_until_the_penalty_has_risen():
    assert make_schedule(100, hold="50 tokens").hold == 5
    assert make_schedule(100, hold="50 tokens", l1_warmup="20%").hold == 20
    assert make_schedule(100, hold="90%", l1_warmup="20%").hold == 90


@given(st.integers(1, 60), st.integers(0, 150), st.integers(0, 150))
def test_every_step_learns_and_the_rate_rises_once_and_falls_once(n_steps, warmup, decay):
    schedule = make_schedule(n_steps, lr_warmup=f"{warmup} steps", lr_decay=f"{decay} steps")
    curve = rates(schedule)
    assert all(0 < rate <= 0.5 for rate in curve)
    top = curve.index(max(curve))
    assert curve[: top + 1] == sorted(curve[: top + 1])
    assert curve[top:] == sorted(curve[top:], reverse=True)
    assert curve[0] == 0.5 * min(1, 1 / max(warmup, 1), n_steps / max(decay, 1))
    assert curve[-1] == 0.5 * min(1, n_steps / max(warmup, 1), 1 / max(decay, 1))
