"""Runs in training, and groups of them that take their steps together, whatever they train."""

import time
from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from pipeline.disk import writing
from pipeline.errors import DataError
from pipeline.runs.checkpoints import Checkpoint, save_checkpoint
from pipeline.runs.curves import Curves, StepReport
from pipeline.runs.folder import RunFolder
from pipeline.training.optimizer import Adam, Schedule

ROWS = 1024
"""Of a matrix that are looked at together: no second one is made."""

RunT = TypeVar("RunT", bound=RunFolder)


class Member(Generic[RunT]):
    """One run in training: its place in it, its curves and checkpoints.

    The curves are open at the end of what is to be kept.
    """

    adam: Adam
    """Given by the group it is trained in."""

    def __init__(self, run: RunT, *, curves: Curves, schedule: Schedule) -> None:
        self.run = run
        self.path = run.path
        self.schedule = schedule
        self.n_steps = schedule.n_steps
        self.step = 0
        self._curves = curves
        self._unchecked: list[Tensor] = []
        self._saved = 0
        self._digest = run.digest
        self._logged = (0, time.perf_counter())

    @property
    def done(self) -> bool:
        """Whether every step was made."""
        return self.step >= self.n_steps

    @property
    def lr(self) -> float:
        """The learning rate for the step to come."""
        return self.schedule.lr(self.step + 1)

    @property
    def reports_next(self) -> bool:
        """Whether the step to come has a line in the curves."""
        step = self.step + 1
        return step == 1 or step % self.run.config.log_every == 0 or step == self.n_steps

    @property
    def saved(self) -> bool:
        """Whether there is a checkpoint of this step."""
        return self.step == self._saved

    def count(self, loss: Tensor) -> None:
        """Note that a step was made, with this loss, still to be checked."""
        self._unchecked.append(loss)
        self.step += 1

    def pace(self) -> float:
        """Rows a second since this was asked last."""
        before, since = self._logged
        self._logged = (self.step, time.perf_counter())
        return (self.step - before) * self.run.config.rows_per_step / (self._logged[1] - since)

    def write(self, report: StepReport) -> None:
        """Write a line of the curves."""
        with writing(self.path):
            self._curves.append(report)

    def checkpoint(self, trained: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Write a checkpoint of this step: `state` is what else the same bits need to go on.

        Raises:
            DataError: a weight or loss is no longer finite, so nothing was written.
        """
        self.require_finite()
        with writing(self.path):
            checkpoint = Checkpoint(
                step=self.step,
                metrics_bytes=self._curves.sync(),
                trained=_on_cpu(trained),
                optimizer=_on_cpu(state),
            )
            save_checkpoint(self.path, checkpoint, digest=self._digest)
        self._saved = self.step

    def go_on_from(self, step: int) -> None:
        """Stand where a checkpoint was taken."""
        self.step = self._saved = step
        self._logged = (step, time.perf_counter())

    def fail(self, error: DataError) -> None:
        """Leave word that the run diverged, so that it is not gone on with."""
        with writing(self.path):
            self.run.fail(str(error))

    def require_finite(self) -> None:
        """Check losses and weights.

        Raises:
            DataError: names the first step since the last check whose loss is not finite.
        """
        if self._unchecked:
            losses = torch.stack(self._unchecked).tolist()
            first = self.step - len(losses) + 1
            self._unchecked.clear()
            for step, loss in enumerate(losses, start=first):
                if not abs(loss) < float("inf"):
                    raise self._diverged(step, f"the loss is {loss}")
        finite = [
            part.isfinite().all()
            for p in self.adam.params.values()
            for part in torch.atleast_1d(p).split(ROWS)
        ]
        if not bool(torch.stack(finite).all()):  # a GPU is waited for once
            raise self._diverged(self.step, "a weight is not finite")

    def _diverged(self, step: int, what: str) -> DataError:
        kept = f"its checkpoints up to step {self._saved} are kept"
        if not self._saved:
            kept = "there was no checkpoint yet"
        return DataError(
            f"training diverged: {what} at step {step} of {self.path} with lr "
            f"{self.run.config.peak_lr:g}; {kept}; train with a lower --lr into another --out"
        )


MemberT = TypeVar("MemberT", bound=Member[Any])


class MemberGroup(ABC, Generic[MemberT]):
    """Members that take their steps together. One that diverges is parted with, alone."""

    def __init__(self, members: Sequence[MemberT]) -> None:
        self.members = list(members)
        self._failures: list[tuple[MemberT, DataError]] = []

    @property
    def step(self) -> int:
        """Steps done, by every member."""
        return max((member.step for member in self.members), default=0)

    @property
    def done(self) -> bool:
        """Whether every step was made."""
        return all(member.done for member in self.members)

    @abstractmethod
    def save_member(self, m: int) -> None:
        """Write a checkpoint of a member, unless there is nothing new.

        Raises:
            DataError: it diverged.
        """

    @abstractmethod
    def keep(self, kept: Sequence[int]) -> None:
        """Go on with these of the members alone."""

    def save(self) -> None:
        """Write a checkpoint of every member that did not diverge, unless there is nothing new."""
        for m, member in enumerate(self.members):
            if not self._failed(member):
                with self.failing(member):
                    self.save_member(m)

    def check(self) -> None:
        """Note which members diverged."""
        for member in self.members:
            with self.failing(member):
                member.require_finite()

    def part_with_failures(self) -> list[tuple[MemberT, DataError]]:
        """Let go of the members that diverged, and say why; the others go on without them."""
        gone = self._failures
        if gone:
            self.keep([m for m, member in enumerate(self.members) if not self._failed(member)])
            self._failures = []
        return gone

    @contextmanager
    def failing(self, member: MemberT) -> Generator[None, None, None]:
        """Within the block, a member that diverged is noted, once."""
        try:
            yield
        except DataError as error:
            if not self._failed(member):
                self._failures.append((member, error))

    def _failed(self, member: MemberT) -> bool:
        """Whether it diverged, and is still to be parted with."""
        return any(member is other for other, _ in self._failures)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
