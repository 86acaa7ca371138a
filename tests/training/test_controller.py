"""The controller of l1, on surrogates of what it controls and on a real SAE."""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from pipeline.config.architectures import (
    ArchConfig,
    GatedConfig,
    JumpReluConfig,
    ReluAprilConfig,
    ReluConfig,
    TiedConfig,
    TopKConfig,
)
from pipeline.config.training import TrainConfig
from pipeline.errors import ConfigError
from pipeline.training.optimizer import HORIZON_LR, LEAST_HORIZON, Controller

TARGET = 0.01
RIGHT = 3e-3
"""The l1 at which TARGET is active, in surrogates."""
FAST = 1.0
"""A learning rate at which the horizon is at its least."""


def make_controller(l1: float = RIGHT, *, target: float = TARGET, hold: int = 1) -> Controller:
    return Controller(l1, target=target, hold=hold)


def lagging(
    controller: Controller,
    *,
    lag: float,
    lr: Callable[[int], float],
    elasticity: float = 1.0,
    noise: float = 0.0,
    knock: Callable[[int], float] = lambda step: 0.0,
) -> Iterator[tuple[float, float]]:
    """L0 / TARGET and l1 / RIGHT of each step, where log L0 follows log l1 late and elastically.

    At most half of all latents are active, as of a new sae; `knock` is added to log L0.
    """
    draw = random.Random(0)
    log_l0 = math.log(0.5)
    for step in itertools.count(1):
        answer = math.log(TARGET) - elasticity * math.log(controller.l1 / RIGHT)
        log_l0 += (min(answer, math.log(0.5)) - log_l0) / lag + knock(step)
        yield math.exp(log_l0) / TARGET, controller.l1 / RIGHT
        controller.update(math.exp(log_l0 + draw.gauss(0, noise)), lr=lr(step))


def take(steps: Iterator[tuple[float, float]], n: int) -> tuple[list[float], list[float]]:
    l0, l1 = zip(*itertools.islice(steps, n), strict=True)
    return list(l0), list(l1)


@pytest.mark.parametrize("start", [1e-3, 1, 1e3])
@pytest.mark.parametrize("elasticity", [0.3, 1, 2])
@pytest.mark.parametrize("lag", [5, 500])
def test_l0_reaches_the_target_from_any_start_without_going_far_below_it(lag, elasticity, start):
    lr = min(HORIZON_LR / lag, 1e-2)  # what takes long takes it because the learning rate is low
    horizon = max(LEAST_HORIZON, HORIZON_LR / lr)
    steps = lagging(
        make_controller(RIGHT * start, hold=int(horizon)),
        lag=lag,
        lr=lambda _: lr,
        elasticity=elasticity,
        noise=0.05,
    )
    l0, _ = take(steps, int(30 * horizon))
    assert l0[-int(5 * horizon) :] == pytest.approx([1] * int(5 * horizon), rel=0.1)
    if start <= 1:
        assert min(l0) > 0.9


def test_an_answer_slower_than_foreseen_swings_little():
    l0, _ = take(lagging(make_controller(), lag=4 * LEAST_HORIZON, lr=lambda _: FAST), 3000)
    assert min(l0) > 0.6
    assert l0[-500:] == pytest.approx([1] * 500, rel=0.02)


def test_noise_between_batches_moves_l1_less_than_it_moves_l0():
    steps = lagging(make_controller(), lag=100, lr=lambda _: 1e-4, noise=0.2)
    _, l1 = take(steps, 8000)
    late = torch.tensor(l1[-4000:]).log()
    assert late.std() < 0.2 / 4
    assert late.mean().abs() < 0.02


def test_a_warmup_and_a_decay_of_the_learning_rate_leave_l0_at_its_target():
    def lr(step: int) -> float:
        return 1e-3 * min(1, step / 500, (4001 - step) / 1000)

    l0, l1 = take(lagging(make_controller(RIGHT / 30, hold=200), lag=30, lr=lr), 4000)
    assert l0[2000:] == pytest.approx([1] * 2000, rel=0.05)
    assert l1[-1] == pytest.approx(1, rel=0.02)


def test_latents_that_are_resampled_and_fire_for_a_while_leave_l1_as_it_was():
    steps = lagging(
        make_controller(), lag=30, lr=lambda _: 1e-3, knock=lambda step: 1.5 * (step == 1500)
    )
    l0, l1 = take(steps, 2500)
    assert min(l0[1500:]) > 0.5
    assert max(l1[1500:]) < 3
    assert l0[2000:] == pytest.approx([1] * 500, rel=0.05)
    assert l1[2000:] == pytest.approx([1] * 500, rel=0.05)


def test_l1_is_held_for_as_long_as_was_asked_and_then_moves_without_a_jump():
    controller = make_controller(0.5, hold=10)
    assert [controller.update(0.3, lr=FAST) for _ in range(9)] == [0.5] * 9
    first = controller.update(0.3, lr=FAST)
    assert first == pytest.approx(0.5 * math.exp(1 / LEAST_HORIZON))


def test_a_hold_ends_early_when_latents_fall_silent():
    held, let_go = make_controller(hold=1000), make_controller(hold=1000)
    assert held.update(0.51 * TARGET, lr=FAST) == RIGHT
    assert held.update(TARGET, lr=FAST) == RIGHT
    assert let_go.update(0.49 * TARGET, lr=FAST) < RIGHT
    assert let_go.update(TARGET, lr=FAST) != let_go.update(TARGET, lr=FAST)  # for good


@pytest.mark.parametrize("lr", [1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("error", [-0.8, -0.1, 0.1, 0.8])
def test_a_lasting_error_moves_log_l1_by_itself_every_horizon(error, lr):
    controller = make_controller()
    horizon = max(50, 0.05 / lr)
    before = math.log(controller.l1)
    for _ in range(round(horizon)):
        controller.update(TARGET * math.exp(error), lr=lr)
    assert math.log(controller.l1) - before == pytest.approx(error, rel=1e-9)


def test_an_l0_that_halves_halves_l1_long_before_a_horizon_is_over():
    controller = make_controller()
    for _ in range(3000):
        before = controller.update(2 * TARGET, lr=1e-5)
    for _ in range(1000):  # a fifth of a horizon
        after = controller.update(TARGET, lr=1e-5)
    assert after / before == pytest.approx(0.5, rel=0.06)


def test_silence_lowers_l1_at_once_at_most_a_millionfold_and_not_for_good():
    controller = make_controller()
    controller.update(TARGET, lr=FAST)
    for _ in range(50):
        controller.update(0.0, lr=FAST)
    assert controller.l1 < RIGHT / 20
    for _ in range(2000):
        controller.update(0.0, lr=FAST)
    assert controller.l1 == pytest.approx(RIGHT * 1e-6)
    l0, _ = take(lagging(controller, lag=30, lr=lambda _: FAST), 2000)
    assert l0[-500:] == pytest.approx([1] * 500, rel=0.05)
    assert min(l0) > 0.9


def test_an_l0_that_no_l1_moves_leaves_l1_finite():
    controller = make_controller()
    for _ in range(2000):
        controller.update(1.0, lr=FAST)
    assert controller.l1 == pytest.approx(RIGHT * 1e6)
    for _ in range(100):
        controller.update(TARGET / 2, lr=FAST)
    assert controller.l1 < RIGHT * 1e5  # what was not reached need not be unwound


def test_a_controller_restored_at_any_step_goes_on_to_the_bit():
    draw = random.Random(1)
    fractions = [TARGET * math.exp(draw.gauss(0.2, 1)) for _ in range(60)]
    controller = make_controller(hold=20, l1=0.1)
    states, course = [controller.state()], [0.1]
    for fraction in fractions:
        course.append(controller.update(fraction, lr=1e-3))
        states.append(json.loads(json.dumps(controller.state())))
    assert len(set(course)) > 30
    for at, state in enumerate(states):
        again = make_controller(hold=20, l1=0.1)
        again.restore(state)
        assert again.l1 == course[at]
        assert [again.update(f, lr=1e-3) for f in fractions[at:]] == course[at + 1 :]
        assert again.state() == states[-1]


def test_an_l1_of_zero_is_refused_in_a_line_that_says_what_to_type():
    with pytest.raises(ConfigError, match="l1 is 0, and a target .* type an --l1 above 0"):
        make_controller(0.0)


def test_only_a_run_with_a_target_is_controlled():
    def of(arch: ArchConfig, l1: float) -> Controller | None:
        config = TrainConfig(store=Path("a"), out=Path("b"), arch=arch)
        return Controller.of(config, l1, d_sae=64, hold=5)

    for kind in (ReluConfig, ReluAprilConfig, TiedConfig, GatedConfig):
        assert of(kind(l1=0.0), 0.0) is None
        controller = of(kind(target=0.02), 0.3)
        assert [controller.update(0.02, lr=FAST) for _ in range(6)] == [0.3] * 6
        assert controller.update(0.03, lr=FAST) > 0.3
    assert of(JumpReluConfig(coefficient=0.1), 0.1) is None
    assert of(JumpReluConfig(l0=8), 0.1) is not None
    assert of(TopKConfig(), 0.0) is None


class SAEs:
    """ReLU SAEs of 96 latents under Adam, dictionary rows of unit norm, on sparse features."""

    def __init__(self, n: int) -> None:
        draw = torch.Generator().manual_seed(0)
        truth = F.normalize(torch.randn(64, 24, generator=draw), dim=-1)
        active = torch.rand(8192, 64, generator=draw) < 0.04
        self._rows = (torch.rand(8192, 64, generator=draw) * active) @ truth
        W = F.normalize(torch.randn(96, 24, generator=draw), dim=-1).expand(n, 96, 24)
        starts = (W.mT.clone(), torch.zeros(n, 1, 96), W.clone())
        self._params = [start.requires_grad_() for start in starts]
        self._adam = torch.optim.Adam(self._params, lr=1e-2, fused=True)
        self._draw = draw

    def step(self, l1: list[float]) -> list[float]:
        """The share of active latents of each."""
        W_enc, b_enc, W_dec = self._params
        x = self._rows[torch.randint(0, 8192, (128,), generator=self._draw)]
        z = F.relu(x @ W_enc + b_enc)
        losses = (z @ W_dec - x).square().sum((1, 2)) + torch.tensor(l1) * z.sum((1, 2))
        self._adam.zero_grad()
        (losses.sum() / len(x)).backward()
        self._adam.step()
        with torch.no_grad():
            W_dec.div_(W_dec.norm(dim=-1, keepdim=True))
        return (z > 0).float().mean((1, 2)).tolist()


def test_real_saes_are_brought_to_their_target_and_held_there_from_far_starts():
    """The right l1 is near 0.1."""
    controllers = [make_controller(l1, target=0.03, hold=100) for l1 in (1e-4, 1e-2, 1.0)]
    saes, active = SAEs(3), list[list[float]]()
    for _ in range(1200):
        active.append(saes.step([controller.l1 for controller in controllers]))
        for controller, fraction in zip(controllers, active[-1], strict=True):
            controller.update(fraction, lr=1e-2)
    late = torch.tensor(active[-300:]).reshape(10, 30, 3).mean(1) / 0.03
    assert late.min() > 0.9
    assert late.max() < 1.1
    found = [controller.l1 for controller in controllers]
    assert 0.02 < min(found) < max(found) < 0.5, found
