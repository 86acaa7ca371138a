"""One SAE in training: curves, checkpoints.

What any run keeps from step to step: its schedule, its curves, its checkpoints.

One sparse autoencoder in training.
"""

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from pipeline.config.training import LoopConfig
from pipeline.errors import CheckpointError, DataError
from pipeline.runs.checkpoints import FOLDER, Checkpoint, save_checkpoint
from pipeline.runs.curves import Curves, StepReport, TrainReport
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE, fold
from pipeline.sae.stack import to_state
from pipeline.training.optimizer import Adam, Controller, Schedule

ROWS = 1024
"""Of a matrix that are looked at together: no second one is made."""


class Record:
    """The part of a member that is alike for whatever is trained.

    Args:
        path: Folder of the run.
        config: Of the run.
        curves: Open at the end of what is to be kept.
        schedule: Of its learning rate and penalty.
    """

    adam: Adam
    """Given by the group it is trained in."""

    def __init__(
        self, path: Path, config: LoopConfig, *, curves: Curves, schedule: Schedule
    ) -> None:
        self.path = path
        self.schedule = schedule
        self.n_steps = schedule.n_steps
        self.step = 0
        self._config = config
        self._curves = curves
        self._unchecked: list[Tensor] = []
        self._saved = 0
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
        return step == 1 or step % self._config.log_every == 0 or step == self.n_steps

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
        return (self.step - before) * self._config.batch_size / (self._logged[1] - since)

    def write(self, report: StepReport) -> None:
        """Write a line of the curves.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        with writing(self.path):
            self._curves.append(report)

    def checkpoint(self, trained: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
        """Write a checkpoint of this step.

        Args:
            trained: What the run is about.
            state: What else is needed to go on to the same bits.

        Raises:
            DataError: a weight or loss is no longer finite, so nothing was written.
            CheckpointError: the disk is full or fails.
        """
        self.require_finite()
        with writing(self.path):
            checkpoint = Checkpoint(
                step=self.step,
                metrics_bytes=self._curves.sync(),
                coder=_on_cpu(trained),
                optimizer=_on_cpu(state),
            )
            save_checkpoint(self.path, checkpoint)
        self._saved = self.step

    def go_on_from(self, step: int) -> None:
        """Stand where a checkpoint was taken."""
        self.step = self._saved = step
        self._logged = (step, time.perf_counter())

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
        parts = (
            part for p in self.adam.params.values() for part in torch.atleast_1d(p).split(ROWS)
        )
        if not all(bool(part.isfinite().all()) for part in parts):
            raise self._diverged(self.step, "a weight is not finite")

    def _diverged(self, step: int, what: str) -> DataError:
        kept = f"its checkpoints up to step {self._saved} are kept"
        if not self._saved:
            kept = "there was no checkpoint yet"
        return DataError(
            f"training diverged: {what} at step {step} of {self.path} with lr "
            f"{self._config.lr:g}; {kept}; train with a lower --lr into another --out"
        )


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


@contextmanager
def writing(path: Path) -> Generator[None, None, None]:
    """Within the block, a disk that fails is one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {path} ({error.strerror or error}): make room, then train again "
            f"with --resume; what is in {path / FOLDER} is whole"
        ) from error


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

    def __init__(self, run: SAERun, *, curves: Curves, n_steps: int, coefficient: float) -> None:
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
        adam = self.adam
        own = {"n_resampled": torch.tensor(self.n_resampled)}
        if self.controller is not None:
            for name, value in self.controller.state().items():
                own[CONTROLLER + name] = torch.tensor(value, dtype=torch.float64)
        if "log_threshold" in adam.params:  # its exponential, in the coder, is not all its bits
            own["log_threshold"] = adam.params["log_threshold"]
        self.checkpoint(to_state(adam.params), adam.state() | own | dict(extra))

    def make_sae(self, params: Mapping[str, Tensor], *, scale: float = 1.0) -> SAE:
        """The coder of these parameters, for activations `scale` times those it was fed."""
        coder = self.run.blank_sae()
        coder.load_state_dict(fold(to_state(params), scale=scale))
        return coder.to(params["W_dec"].device)

    def finish(self, *, scale: float) -> None:
        """Leave the finished coder behind and call the run complete.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        with writing(self.path):
            self.run.finish(self.make_sae(self.adam.result, scale=scale))

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
        self.adam.load(state)
        if self.controller is not None:
            names = [name for name in state if name.startswith(CONTROLLER)]
            self.controller.restore(
                {name.removeprefix(CONTROLLER): float(state[name]) for name in names}
            )
