"""One coder being trained: everything about it that changes from step to step."""

import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.checkpoint import FOLDER, Checkpoint, save_checkpoint
from pipeline.curves import Curves, TrainReport
from pipeline.errors import CheckpointError, DataError
from pipeline.run import Run
from pipeline.sae.coder import SparseCoder
from pipeline.sae.dead import SilentRows
from pipeline.sae.loss import Coded, code, measure

BETAS = (0.9, 0.999)
SILENT = "silent"


class Member:
    """A coder with its optimiser, counters, curves and checkpoints.

    Args:
        run: Where it is kept, and its config.
        coder: On its device; trained in place.
        curves: Open at the end of what is to be kept.
        n_steps: When it is done.
    """

    def __init__(self, run: Run, coder: SparseCoder, *, curves: Curves, n_steps: int) -> None:
        self.run = run
        self.coder = coder
        self.n_steps = n_steps
        self.step = 0
        device = coder.b_dec.device
        self._curves = curves
        self._silent = SilentRows(coder.d_sae, device=device)
        self._optimizer = torch.optim.Adam(
            coder.parameters(), lr=run.config.lr, betas=BETAS, fused=device.type in {"cpu", "cuda"}
        )
        self._unchecked: list[Tensor] = []
        self._saved = 0
        self._logged = (0, time.perf_counter())

    @property
    def site(self) -> str:
        """The site whose rows it learns from."""
        return self.run.provenance.site

    @property
    def done(self) -> bool:
        """Whether every step was made."""
        return self.step >= self.n_steps

    def advance(self, x: Float[Tensor, "batch d_in"]) -> TrainReport | None:
        """One step on a batch, with its line of curves and its checkpoint where they are due.

        Returns:
            What was written to the curves, if anything was.

        Raises:
            DataError: a loss since the last check was not finite; earlier checkpoints are kept.
            CheckpointError: the disk is full or fails.
        """
        config = self.run.config
        coded = self._learn(x)
        report = None
        if self.step == 1 or self.step % config.log_every == 0 or self.done:
            report = self._report(coded)
            with _writing(self.run.path):
                self._curves.append(report)
        if self.step % config.checkpoint_every == 0 or self.done:
            self.save()
        return report

    def save(self) -> None:
        """Write a checkpoint of this step, unless there is nothing new.

        Raises:
            DataError: the coder is no longer finite, so nothing was written.
            CheckpointError: the disk is full or fails.
        """
        if self.step == self._saved:
            return
        self._require_finite()
        with _writing(self.run.path):
            checkpoint = Checkpoint(
                step=self.step,
                metrics_bytes=self._curves.sync(),
                coder=_on_cpu(self.coder.state_dict()),
                optimizer=_on_cpu(self._moments() | {SILENT: self._silent.silent}),
            )
            save_checkpoint(self.run.path, checkpoint)
        self._saved = self.step

    def finish(self) -> None:
        """Leave the finished coder behind and call the run complete.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        with _writing(self.run.path):
            self.run.finish(self.coder)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what the checkpoint's member was, to the bit."""
        self.step = self._saved = checkpoint.step
        self._logged = (self.step, time.perf_counter())
        self.coder.load_state_dict(checkpoint.coder)
        self._silent.silent.copy_(checkpoint.optimizer[SILENT])
        state: dict[int, dict[str, Tensor]] = {}
        for i, (name, _) in enumerate(self.coder.named_parameters()):
            keys = ("step", "exp_avg", "exp_avg_sq")
            state[i] = {key: checkpoint.optimizer[f"{name}.{key}"] for key in keys}
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _learn(self, x: Float[Tensor, "batch d_in"]) -> Coded:
        coded = code(self.coder, x)
        loss = coded.losses.total
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self.coder.renormalise()
        self._silent.update(coded.z.detach())
        self._unchecked.append(loss.detach())
        self.step += 1
        return coded

    def _report(self, coded: Coded) -> TrainReport:
        """The one place where the host waits for the device."""
        self._require_finite()
        measured = measure(coded)
        n_dead = self._silent.n_dead(self.run.config.dead_window)
        values = torch.stack([*measured.values()]).tolist()
        before, since = self._logged
        self._logged = (self.step, time.perf_counter())
        rows = (self.step - before) * len(coded.x)
        return TrainReport(
            step=self.step,
            n_steps=self.n_steps,
            rows=self.step * len(coded.x),
            **dict(zip(measured, values, strict=True)),
            n_dead=int(n_dead),
            lr=self.run.config.lr,
            rows_per_s=rows / (self._logged[1] - since),
        )

    def _require_finite(self) -> None:
        """Raise DataError naming the first step since the last check whose loss is not finite."""
        if self._unchecked:
            losses = torch.stack(self._unchecked).tolist()
            first = self.step - len(losses) + 1
            self._unchecked.clear()
            for step, loss in enumerate(losses, start=first):
                if not abs(loss) < float("inf"):
                    raise self._diverged(step, f"the loss is {loss}")
        if not all(bool(p.isfinite().all()) for p in self.coder.parameters()):
            raise self._diverged(self.step, "a weight is not finite")

    def _diverged(self, step: int, what: str) -> DataError:
        return DataError(
            f"training diverged: {what} at step {step} of {self.run.path} with lr "
            f"{self.run.config.lr:g}; its checkpoints up to step {self._saved} are kept; train "
            "with a lower --lr into another --out"
        )

    def _moments(self) -> dict[str, Tensor]:
        state = self._optimizer.state
        return {
            f"{name}.{key}": value
            for name, parameter in self.coder.named_parameters()
            for key, value in state[parameter].items()
        }


def _on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


@contextmanager
def _writing(path: Path) -> Generator[None, None, None]:
    """Within the block, a disk that fails is one line that says how to go on."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(
            f"cannot write to {path} ({error.strerror or error}): make room, then train again "
            f"with --resume; what is in {path / FOLDER} is whole"
        ) from error
