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


def test_without_warmup_the_penalty_is_whole_from_the_first_step():
    assert [make_schedule(5).penalty(step) for step in range(1, 6)] == [1.0] * 5


@pytest.mark.parametrize(
    ("warmup", "decay", "fractions"),
    [
        ("0", "0", [1, 1, 1, 1, 1]),
        ("4 steps", "20%", [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1 / 2]),
        ("0", "100%", [1, 4 / 5, 3 / 5, 2 / 5, 1 / 5]),
        ("100%", "100%", [1 / 8, 2 / 8, 3 / 8, 4 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
    ],
    ids=["neither", "both", "a decay as long as the run", "meeting below the peak"],
)
def test_the_learning_rate_rises_to_its_peak_and_falls_towards_zero(warmup, decay, fractions):
    schedule = make_schedule(len(fractions), lr_warmup=warmup, lr_decay=decay)
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
