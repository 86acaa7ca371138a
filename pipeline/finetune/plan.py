"""What a fine-tuning is going to do, and how long it will take: told before its first step.

What is done is counted at most: learning may end early, and fewer features may change than there
are. How long a pass takes is known from measuring the model with its SAEs as they are.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.config.stages import FinetuneConfig
from pipeline.finetune.effects import n_passes
from pipeline.finetune.firing import n_batches
from pipeline.finetune.setting import Setting

_STEP = 3
"""Passes that take as long as a step, which goes through the model and back to the site."""


@dataclass(frozen=True, kw_only=True)
class FinetunePlan:
    """What is still to be done, at most."""

    n_steps: int
    batch_size: int
    """Contexts of a step, and of a pass."""
    n_passes: int
    """After learning: to find what changed, and what that does."""
    seconds: float


OnPlan = Callable[[FinetunePlan], None]
"""Told the plan before the first step."""


def make_plan(
    setting: Setting, config: FinetuneConfig, n_latents: Iterable[int], *, seconds: float
) -> FinetunePlan:
    """Count steps and passes.

    Args:
        setting: What is learned and measured.
        config: Of the fine-tuning.
        n_latents: Of each SAE.
        seconds: That one measuring of the setting took.
    """
    task, size = setting.task, config.batch_size
    measured = [rows for rows in (task.heldout, task.asked, setting.general) if rows is not None]
    of_measuring = sum(-(-len(rows) // size) for rows in measured)
    n_steps = config.epochs * -(-len(task.train) // size)
    meaning = sum(
        n_passes(n, task.heldout, batch_size=size) + n_batches(task.train, batch_size=size)
        for n in n_latents
    )
    of_choosing = config.epochs * -(-len(task.choosing) // size)
    passes = _STEP * n_steps + of_choosing + of_measuring + meaning
    return FinetunePlan(
        n_steps=n_steps,
        batch_size=size,
        n_passes=meaning,
        seconds=seconds / of_measuring * passes,
    )
