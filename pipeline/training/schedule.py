"""What a step is told by its number: the learning rate, and how much of the penalty counts."""

from dataclasses import dataclass

from pipeline.span import steps_of
from pipeline.train_config import LoopConfig


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Lengths of a run in steps; steps are counted from 1.

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
            ConfigError: a setting is not a span.
        """

        def steps(span: str) -> int:
            return steps_of(span, batch_size=config.batch_size, n_steps=n_steps)

        l1_warmup = steps(config.l1_warmup)
        return cls(
            n_steps=n_steps,
            peak=config.lr,
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
