"""What moves a member: Adam, the schedule of its rates, and the controller of its penalty."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adam import adam

from pipeline.config.architectures import Penalised
from pipeline.config.checks import steps_of
from pipeline.config.training import LoopConfig, TrainConfig
from pipeline.errors import ConfigError

EMA = "ema."
FIRST, SECOND, COUNT = "exp_avg", "exp_avg_sq", "step"


class Adam:
    """Moves one member's parameters against their gradients, and keeps a moving average of them.

    The step is torch's, by its function: the optimiser class first loads the compiler, which takes
    as long as half of a short run. Parameters, changed in place, and gradients are one member's
    share of a stack, by name.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        grads: Mapping[str, Tensor],
        config: LoopConfig,
        *,
        trained: tuple[str, ...],
    ) -> None:
        self.params = dict(params)
        self._betas = config.beta1, config.beta2
        self._trained = trained
        self._grads = [grads[name] for name in trained]
        device = next(iter(params.values())).device
        self._fused = device.type in {"cpu", "cuda"}
        self._state = {
            FIRST: {name: torch.zeros_like(params[name]) for name in trained},
            SECOND: {name: torch.zeros_like(params[name]) for name in trained},
            COUNT: {name: torch.zeros((), device=device) for name in trained},
        }
        self.n_steps = 0
        self._decay = config.ema
        self._average = {} if config.ema is None else {n: params[n].clone() for n in trained}

    def step(self, lr: float) -> None:
        """One step of Adam."""
        beta1, beta2 = self._betas
        self.n_steps += 1
        adam(
            [self.params[name] for name in self._trained],
            self._grads,
            [*self._state[FIRST].values()],
            [*self._state[SECOND].values()],
            [],
            [*self._state[COUNT].values()],
            foreach=not self._fused,
            fused=self._fused,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=lr,
            weight_decay=0.0,
            eps=1e-8,
            maximize=False,
        )

    def track(self) -> None:
        """Take the parameters, as the step left them, into their average.

        After n steps it is `sum_i decay^(n-i) p_i / sum_i decay^(n-i)`: where they started has no
        part in it, as in Adam's own corrected moments (Kingma and Ba 2015, section 3).
        """
        if self._decay is not None:
            newest = (1 - self._decay) / (1 - self._decay**self.n_steps)
            for name, average in self._average.items():
                average.lerp_(self.params[name], newest)

    @property
    def result(self) -> dict[str, Tensor]:
        """The parameters to keep: averaged ones, copied, where an average is kept."""
        return self.params | {name: average.clone() for name, average in self._average.items()}

    @property
    def moments(self) -> dict[str, dict[str, Tensor]]:
        """Adam's two moments by name, then parameter."""
        return {name: self._state[name] for name in (FIRST, SECOND)}

    def state(self) -> dict[str, Tensor]:
        """What is needed, beside the parameters, to go on to the same bits."""
        averages = {f"{EMA}{name}": average for name, average in self._average.items()}
        return averages | {
            f"{name}.{key}": value
            for key, values in self._state.items()
            for name, value in values.items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
        self.n_steps = int(state[f"{self._trained[0]}.{COUNT}"])


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Rates by the number of a step: lengths of a run in steps; steps are counted from 1.

    A warm-up of w steps multiplies by 1/w, 2/w, ... and leaves step w whole; a decay of the last w
    steps by w/w, ..., 1/w: the last step still learns. Where a run is too short for both, the
    smaller factor counts, so the two slopes meet in a peak below `peak`.
    """

    n_steps: int
    peak: float
    """The learning rate between warm-up and decay."""
    lr_warmup: int = 0
    lr_decay: int = 0
    l1_warmup: int = 0
    hold: int = 0
    """Steps after which a penalty with a target is adjusted; never before its warm-up is over."""

    @classmethod
    def of(cls, config: LoopConfig, *, n_steps: int, hold: str = "0") -> "Schedule":
        """The schedule of a run.

        Raises:
            ConfigError: a setting is no duration.
        """

        def steps(duration: str) -> int:
            return steps_of(duration, batch_size=config.rows_per_step, n_steps=n_steps)

        l1_warmup = steps(config.l1_warmup)
        return cls(
            n_steps=n_steps,
            peak=config.peak_lr,
            lr_warmup=steps(config.lr_warmup),
            lr_decay=steps(config.lr_decay),
            l1_warmup=l1_warmup,
            hold=max(steps(hold), l1_warmup),
        )

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        left = self.n_steps + 1 - step
        return self.peak * min(_risen(step, self.lr_warmup), _risen(left, self.lr_decay))

    def penalty(self, step: int) -> float:
        """The factor of the sparsity penalty at a step."""
        return _risen(step, self.l1_warmup)


def _risen(step: int, length: int) -> float:
    return 1.0 if step >= length else step / length


HORIZON_LR = 0.05
LEAST_HORIZON = 50.0
"""The horizon is `HORIZON_LR / lr` steps, and at least LEAST_HORIZON."""
SMOOTHING = 1 / 20
"""The error is averaged over so much of a horizon, and over ten steps at least."""
LEAST_SMOOTHING = 10.0
SILENCE = -3.0
"""The error that counts where next to nothing, or nothing, is active."""
EARLY = 0.5
"""The share of the target below which no hold lasts."""
REACH = math.log(1e6)
"""How far from its start l1 can be moved: where nothing answers, nothing is gained."""


class Controller:
    """Holds l1 for a while, and then keeps it where a target share of latents is active.

    l1 is the coefficient of the penalty, whatever that counts.

    With the error `e = log(active / target)`, smoothed, `log l1 = level + e`, and each step adds
    `e / horizon` to the level, at most `1 / horizon`: a PI controller on logarithms, so that one
    setting suits penalties and activations of any scale.

    `+ e` is the brake. L0 answers l1 late, and an l1 that rises until L0 has arrived goes too far,
    which kills latents: without a gradient, no lower l1 brings them back. Here an L0 that halves
    halves l1 at once. Where L0 follows l1 with a lag of T steps and an elasticity of -G,
    `T e'' + (1 + G) e' + G e / horizon = 0`, which never swings once the horizon is T, for any G.

    T follows from Adam, which moves a weight by about lr a step however large the gradient: columns
    of W_enc start at norm one and turn around within `1 / (lr sqrt(d_in))` steps. So the horizon is
    a number of `1 / lr`: T for inputs 400 wide; a T of two horizons takes L0 a tenth below its
    target, once. Where that is few steps, Adam's own memory is what lags. When the learning rate
    warms up or decays, so does the speed of l1.

    It begins without a jump: when the hold is over, or as soon as L0 is below half the target:
    later might be too late for latents that fall silent.

    Args:
        l1: Where it starts.
        target: Share of latents to be active.
        hold: Steps for which l1 stays as it is.

    Raises:
        ConfigError: `l1` is zero.
    """

    def __init__(self, l1: float, *, target: float, hold: int) -> None:
        if l1 <= 0:
            raise ConfigError(
                f"l1 is {l1:g}, and a target multiplies it until it is right: type an --l1 above 0"
            )
        self.l1 = l1
        """Of the next step."""
        self._target = target
        self._left = float(max(hold, 1))
        self._error = 0.0
        self._level = self._start = math.log(l1)

    @classmethod
    def of(cls, config: TrainConfig, l1: float, *, d_sae: int, hold: int) -> "Controller | None":
        """The controller of a run; None where its architecture was given no target.

        Raises:
            ConfigError: there is a target, and `l1` is zero.
        """
        if not isinstance(config.arch, Penalised):
            return None
        target = config.arch.wanted(d_sae=d_sae)
        return None if target is None else cls(l1, target=target, hold=hold)

    def update(self, active_fraction: float, *, lr: float) -> float:
        """The l1 of the next step, from the share of latents that a row had active in this one."""
        ratio = active_fraction / self._target
        error = max(math.log(ratio), SILENCE) if ratio > 0 else SILENCE
        if self._left > 0:
            self._left = self._left - 1 if ratio >= EARLY else 0.0
            if self._left > 0:
                return self.l1
            self._error = error
            self._level -= error
        horizon = max(LEAST_HORIZON, HORIZON_LR / lr)
        self._error += (error - self._error) / max(LEAST_SMOOTHING, SMOOTHING * horizon)
        self._level += max(-1.0, min(self._error, 1.0)) / horizon
        moved = max(-REACH, min(self._level + self._error - self._start, REACH))
        self._level = self._start + moved - self._error
        self.l1 = math.exp(self._start + moved)
        return self.l1

    def state(self) -> dict[str, float]:
        """Everything that changes, for a checkpoint."""
        return {"l1": self.l1, "left": self._left, "error": self._error, "level": self._level}

    def restore(self, state: dict[str, float]) -> None:
        """Become what the controller of this state was, to the bit."""
        self.l1, self._left = state["l1"], state["left"]
        self._error, self._level = state["error"], state["level"]
