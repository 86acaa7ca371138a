"""The controller of the sparsity penalty: it finds the l1 that leaves a target share active."""

import math

from pipeline.archs import GatedConfig, ReluAprilConfig, ReluConfig, TiedConfig
from pipeline.errors import ConfigError
from pipeline.train_config import TrainConfig

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
    def of(cls, config: TrainConfig, l1: float, *, hold: int) -> "Controller | None":
        """The controller of a run; None where its architecture was given no target.

        Raises:
            ConfigError: there is a target, and `l1` is zero.
        """
        match config.arch:
            case ReluConfig() | ReluAprilConfig() | TiedConfig() | GatedConfig() as arch:
                return None if arch.target is None else cls(l1, target=arch.target, hold=hold)
            case _:
                return None

    def update(self, active_fraction: float, *, lr: float) -> float:
        """The l1 of the next step.

        Args:
            active_fraction: Of this step: share of latents active on a row, on average.
            lr: Of this step.
        """
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
