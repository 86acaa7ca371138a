"""One sparse autoencoder in training."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from pipeline.checkpoint import Checkpoint
from pipeline.curves import Curves, TrainReport
from pipeline.errors import DataError
from pipeline.run import Run
from pipeline.sae.coder import SparseCoder
from pipeline.sae.fold import fold
from pipeline.sae.stack import to_state
from pipeline.training.controller import Controller
from pipeline.training.record import Record, writing
from pipeline.training.schedule import Schedule

CONTROLLER = "controller."


@final
class Member(Record):
    """What one run keeps from step to step.

    Args:
        run: Where it is kept, and its config.
        curves: Open at the end of what is to be kept.
        n_steps: When it is done.
        coefficient: Of the sparsity penalty, before warm-up and control.
    """

    def __init__(self, run: Run, *, curves: Curves, n_steps: int, coefficient: float) -> None:
        schedule = Schedule.of(run.config, n_steps=n_steps, hold=run.config.hold)
        super().__init__(run.path, run.config, curves=curves, schedule=schedule)
        self.run = run
        self.controller = Controller.of(run.config, coefficient, hold=schedule.hold)
        self.n_resampled = 0
        self._coefficient = coefficient

    @property
    def coefficient(self) -> float:
        """Of the sparsity penalty, for the step to come."""
        base = self._coefficient if self.controller is None else self.controller.l1
        return base * self.schedule.penalty(self.step + 1)

    def report(self, measured: Mapping[str, float], *, n_dead: int, sparse: bool) -> TrainReport:
        """Write a line of the curves.

        Raises:
            DataError: a loss since the last check was not finite; earlier checkpoints are kept.
            CheckpointError: the disk is full or fails.
        """
        self.require_finite()
        report = TrainReport(
            run=self.path,
            step=self.step,
            n_steps=self.n_steps,
            rows=self.step * self.run.config.batch_size,
            **measured,  # pyright: ignore[reportArgumentType] - of the right names
            n_dead=n_dead,
            n_resampled=self.n_resampled,
            sparse=sparse,
            rows_per_s=self.pace(),
        )
        self.write(report)
        return report

    def save(self, extra: Mapping[str, Tensor]) -> None:
        """Write a checkpoint of this step, unless there is nothing new.

        Args:
            extra: What the group keeps for this member.

        Raises:
            DataError: the coder is no longer finite, so nothing was written.
            CheckpointError: the disk is full or fails.
        """
        if self.saved:
            return
        learner = self.learner
        own = {"n_resampled": torch.tensor(self.n_resampled)}
        if self.controller is not None:
            for name, value in self.controller.state().items():
                own[CONTROLLER + name] = torch.tensor(value, dtype=torch.float64)
        if "log_threshold" in learner.params:  # its exponential, in the coder, is not all its bits
            own["log_threshold"] = learner.params["log_threshold"]
        self.checkpoint(to_state(learner.params), learner.state() | own | dict(extra))

    def make_coder(self, params: Mapping[str, Tensor], *, scale: float = 1.0) -> SparseCoder:
        """The coder of these parameters, for activations `scale` times those it was fed."""
        coder = self.run.blank_coder()
        coder.load_state_dict(fold(to_state(params), scale=scale))
        return coder.to(params["W_dec"].device)

    def finish(self, *, scale: float) -> None:
        """Leave the finished coder behind and call the run complete.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        with writing(self.path):
            self.run.finish(self.make_coder(self.learner.result, scale=scale))

    def fail(self, error: DataError) -> None:
        """Leave word that the run diverged, so that it is not gone on with.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        with writing(self.path):
            self.run.fail(str(error))

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what the checkpoint's member was, to the bit, but for what its group keeps."""
        self.go_on_from(checkpoint.step)
        state = checkpoint.optimizer
        self.n_resampled = int(state["n_resampled"])
        self.learner.load(state)
        if self.controller is not None:
            names = [name for name in state if name.startswith(CONTROLLER)]
            self.controller.restore(
                {name.removeprefix(CONTROLLER): float(state[name]) for name in names}
            )
