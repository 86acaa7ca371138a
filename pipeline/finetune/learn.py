"""Train a few numbers of a model by the loss of its predictions, all else frozen.

AdamW (Loshchilov and Hutter 2019), whose decay pulls towards where the numbers started, or towards
zero. A price of change, if any, is `price * sum |x - start|` added to the loss, of which each
update takes the proximal step in Adam's own metric (Yun, Lozano and Yang 2021, NeurIPS), so that
what is not worth its price does not move at all.

The gradient starts at the logits, of which only a slice is alive at a time, and ends at the site:
below it nothing requires one, so nothing is kept for it.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import final

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from pipeline.config.stages import FinetuneConfig
from pipeline.finetune.measure import finite, mean_cross_entropy
from pipeline.finetune.task import Task
from pipeline.lm.cross_entropy import backward_cross_entropy
from pipeline.lm.model import LanguageModel
from pipeline.sae.sae import TunedSAE
from pipeline.training.loop import deferred_interrupt

KEEP_EVERY = 100
"""Steps between checkpoints, which are small: four vectors of a number per feature."""


@dataclass(kw_only=True)
class Course:
    """How learning has gone so far."""

    losses: list[float] = field(default_factory=list[float])
    """Of each step's batch, before its update (nats)."""
    by_epoch: list[float] = field(default_factory=list[float])
    """After each epoch, of the rows to choose by (nats)."""
    best: dict[str, Tensor] = field(default_factory=dict[str, Tensor])
    """The numbers after the best epoch so far, if one is to be chosen."""

    @property
    def best_epoch(self) -> int:
        """From 1; of equal ones the first."""
        return 1 + int(np.argmin(self.by_epoch))


@final
class Learner:
    """What is trained, and its optimizer.

    Args:
        numbers: What is trained, by name; all on one device.
        lr: Learning rate.
        weight_decay: What decay takes of the distance in a step, over `lr`.
        towards_start: Of decay; else towards zero.
        change_l1: Price of a change by one, in loss: what gains less does not move.
    """

    def __init__(
        self,
        numbers: Mapping[str, Tensor],
        *,
        lr: float,
        weight_decay: float,
        towards_start: bool,
        change_l1: float = 0.0,
    ) -> None:
        self.numbers = dict(numbers)
        self.adam = torch.optim.Adam(list(self.numbers.values()), lr=lr)
        self._start = {name: x.detach().clone() for name, x in self.numbers.items()}
        self._goal = {
            name: start if towards_start else torch.zeros_like(start)
            for name, start in self._start.items()
        }
        self._lr, self._decay, self._price = lr, lr * weight_decay, change_l1

    @torch.no_grad()
    def step(self) -> None:
        """Decay, update, shrink: in the order of AdamW."""
        for name, x in self.numbers.items():
            x.lerp_(self._goal[name], self._decay)
        self.adam.step()
        (group,) = self.adam.param_groups
        for name, x in self.numbers.items() if self._price else ():
            state = self.adam.state[x]
            seen = 1 - group["betas"][1] ** state["step"].item()
            scale = (state["exp_avg_sq"] / seen).sqrt_().add_(group["eps"])
            change = x - self._start[name]
            shrunk = change.abs().sub_(self._lr * self._price / scale).relu_()
            x.copy_(self._start[name] + shrunk.copysign_(change))

    @torch.no_grad()
    def become(self, numbers: Mapping[str, Tensor]) -> None:
        """Take these values."""
        for name, x in self.numbers.items():
            x.copy_(numbers[name])

    def copied(self) -> dict[str, Tensor]:
        """The values as they are, on the CPU."""
        return {name: x.detach().cpu().clone() for name, x in self.numbers.items()}

    def reached(self, some: Iterable[Tensor]) -> Bool[Tensor, " numbers"]:
        """Where any of these vectors, which are trained, ever had a gradient that was not zero."""
        squares = [self.adam.state[x]["exp_avg_sq"] for x in some]
        return torch.stack(squares).amax(0) > 0


def trained_of(tuned: TunedSAE, config: FinetuneConfig) -> dict[str, Tensor]:
    """What is trained of a tuned SAE, by name; the rest of it is frozen."""
    numbers: dict[str, Tensor] = {"c": tuned.c, "d": tuned.d}
    left = {"both": "", "scale": "d", "bias": "c"}[config.train]
    if left:
        numbers.pop(left).requires_grad_(False)
    return numbers


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where a course is kept, so that it can be gone on with."""

    restore: Callable[[Learner], Course]
    keep: Callable[[Learner, Course], None]


def learn(
    lm: LanguageModel,
    learner: Learner,
    task: Task,
    config: FinetuneConfig,
    *,
    keeping: Keeping | None = None,
    on_step: Callable[[Course, int], None] = lambda course, total: None,
) -> Course:
    """Train in place, in a model that is spliced as it is to be; Ctrl-C takes effect between steps.

    Args:
        lm: With the edits that depend on what is trained.
        learner: What is trained.
        task: The rows.
        config: Batches, epochs, patience, seed.
        keeping: What was kept is gone on from.
        on_step: Told the course, and how many steps there will be at most.
    """
    n_rows, size = len(task.train), config.batch_size
    per_epoch = -(-n_rows // size)
    total = config.epochs * per_epoch
    course = Course() if keeping is None else keeping.restore(learner)
    with deferred_interrupt() as presses:
        try:
            while not _ended(lm, learner, task, config, course, per_epoch=per_epoch):
                chosen = _batch(len(course.losses), n_rows, size, per_epoch, seed=config.seed)
                course.losses.append(_step(lm, learner, task, chosen))
                if keeping is not None and len(course.losses) % KEEP_EVERY == 0:
                    keeping.keep(learner, course)
                on_step(course, total)
                if presses:
                    raise KeyboardInterrupt  # noqa: TRY301 - the place where it is safe
        except KeyboardInterrupt:
            if len(presses) < 2 and course.losses and keeping is not None:
                keeping.keep(learner, course)
            raise
    if keeping is not None:
        keeping.keep(learner, course)
    if course.best:
        learner.become(course.best)
    return course


def _ended(
    lm: LanguageModel,
    learner: Learner,
    task: Task,
    config: FinetuneConfig,
    course: Course,
    *,
    per_epoch: int,
) -> bool:
    """Whether all is learned; at the end of an epoch it is measured first."""
    epochs, inside = divmod(len(course.losses), per_epoch)
    if inside:
        return False
    if len(course.by_epoch) < epochs:
        ce = mean_cross_entropy(lm, task.choosing, {}, batch_size=config.batch_size)
        course.by_epoch.append(ce)
        if config.patience is not None and course.best_epoch == epochs:
            course.best = learner.copied()
    waited = epochs and epochs - course.best_epoch
    stops = config.patience is not None and waited >= config.patience
    return stops or epochs == config.epochs


def _step(lm: LanguageModel, learner: Learner, task: Task, chosen: Tensor) -> float:
    rows = task.train.part(chosen)
    tokens = rows.tokens.to(lm.device)
    learner.adam.zero_grad()
    loss = backward_cross_entropy(lm, lm.hidden(tokens), tokens, rows.counted)
    learner.step()
    return finite(loss.item(), lm)


def _batch(step: int, n_rows: int, size: int, per_epoch: int, *, seed: int) -> Tensor:
    """Indices of a step's rows: every row once per epoch, in an order by seed."""
    epoch, i = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(n_rows)
    return torch.from_numpy(order[i * size : (i + 1) * size])
