"""One connector in training: loss, gradient, proximal step.

It minimises

    mean over rows of sum_o (z2_o - z2_hat_o)^2  +  l1 * sum_io |W_io|

over the outputs o that are predicted. The mean over all elements that Riggs, Mitchell and Kaufman
(2023) take, beside `l1' * mean_o ||W_o||_1`, is this divided by the number of outputs, so that
`l1 = l1'` where all outputs are predicted.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.config.training import Rectify
from pipeline.connect.connector import Connector, Ends, PairLatents
from pipeline.connect.run import ConnectorRun
from pipeline.device import DTYPES, pick_precision
from pipeline.disk import writing
from pipeline.errors import ConfigError
from pipeline.runs.checkpoints import Checkpoint
from pipeline.runs.curves import WEIGHTY, ConnectStep, defined
from pipeline.sae.active_pairs import Scratch
from pipeline.sae.kernels import Kernels, kernels_for
from pipeline.sae.stack import BREAK_EVEN
from pipeline.training.member import Member, MemberGroup
from pipeline.training.optimizer import SECOND, Adam

ConnectorMember = Member[ConnectorRun]

BLOCK = 2**20
"""Weights that are looked at together: what they need stays in the cache."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What is learned, but for the rows."""

    W: Float[Tensor, "n_in n_out"]
    b: Float[Tensor, " n_out"]
    predicted: Bool[Tensor, " n_out"]
    """Outputs whose error counts."""
    activation: Rectify
    dtype: torch.dtype
    """Of the products of whole matrices."""

    def learn(
        self,
        latents: PairLatents,
        W_grad: Float[Tensor, "n_in n_out"],
        b_grad: Float[Tensor, " n_out"],
        *,
        kernels: Kernels | None,
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows n_out"]]:
        """Gradients of the squared error, written into `W_grad` and `b_grad`.

        Returns:
            The squared error, and `z2_hat - z2`, zero for outputs that are not predicted.
        """
        pre = latents.times(self.W, kernels=kernels, dtype=self.dtype).add_(self.b)
        silent = ~self.predicted if self.activation == "linear" else (pre <= 0) | ~self.predicted
        error = pre.relu_() if self.activation == "relu" else pre
        error.sub_(latents.z2).mul_(self.predicted)
        recon = torch.linalg.vector_norm(error).square() / len(error)
        slope = error.mul(2 / len(error)).masked_fill_(silent, 0.0)
        latents.outer(slope, W_grad, kernels=kernels, dtype=self.dtype)
        b_grad.copy_(slope.sum(0))
        return recon, error

    def add_penalty(self, W_grad: Float[Tensor, "n_in n_out"], coefficient: float) -> None:
        """The (sub)gradient of the penalty."""
        W_grad.add_(self.W.sign(), alpha=coefficient)


def sizes_of(W: Float[Tensor, "n_in n_out"], *, threshold: float) -> tuple[float, int, int]:
    """`sum |W|`, how many are above the threshold and how many not zero, block by block."""
    total, n_above, n_nonzero = 0.0, 0, 0
    for some in W.split(max(1, BLOCK // W.shape[1])):  # no second matrix is made
        size = some.abs()
        total += float(size.sum())
        n_above += int(torch.count_nonzero(size > threshold))
        n_nonzero += int(torch.count_nonzero(size))
    return total, n_above, n_nonzero


def shrink(
    W: Float[Tensor, "n_in n_out"],
    second: Float[Tensor, "n_in n_out"],
    *,
    step: int,
    beta2: float,
    lr: float,
    coefficient: float,
    eps: float = 1e-8,
) -> None:
    """The proximal step of `coefficient * sum |W|` after one of Adam: towards zero, never past it.

    Adam moves a weight by its learning rate over `sqrt(second) + eps`; the penalty's share of that
    is what the weight loses in size (Yun, Lozano and Yang 2021, arXiv 2007.07869). Weights that the
    squared error does not hold become exactly zero.

    `W` is changed in place; `second` are Adam's second moments, not corrected, after `step` steps.
    """
    correction = (1 - beta2**step) ** 0.5
    rows = max(1, BLOCK // W.shape[1])
    for some, moments in zip(W.split(rows), second.split(rows), strict=True):
        reach = moments.sqrt().div_(correction).add_(eps).reciprocal_().mul_(lr * coefficient)
        some.sub_(torch.clamp(some, min=-reach, max=reach))


@final
class ConnectorGroup(MemberGroup[ConnectorMember]):
    """Trains one connector; several that are fed alike share the latents, not the step.

    It begins at `start`, on whose device it is. The gradient lies in `scratch`, as no two
    connectors need theirs at the same time.

    Raises:
        ConfigError: the sparse path was asked for, and there are no kernels for it.
    """

    def __init__(
        self,
        member: ConnectorMember,
        start: Connector,
        *,
        predicted: Bool[Tensor, " n_out"],
        scratch: Scratch,
    ) -> None:
        super().__init__([member])
        self.feed: Ends = member.run.ends
        self._member = member
        self._config = config = member.run.config
        # What is not predicted is said to be silent.
        W, b = (p.detach() * predicted for p in (start.W, start.b))
        device = W.device
        self._problem = Problem(
            W=W,
            b=b,
            predicted=predicted,
            activation=config.activation,
            dtype=DTYPES[pick_precision(config.precision, device=device)],
        )
        self._kernels = kernels_for(device)
        if config.sparse == "on" and self._kernels is None:
            raise ConfigError(
                f"sparse on was asked for, but there are no sparse kernels for {device.type} here "
                "(torch with MKL on a CPU, triton on CUDA): type --set sparse=auto"
            )
        self._grads = {
            "W": scratch.take("W_grad", (W.shape[0], W.shape[1]), dtype=W.dtype, device=device),
            "b": torch.zeros_like(b),
        }
        self._trained = ("W", "b") if config.bias else ("W",)
        member.adam = Adam({"W": W, "b": b}, self._grads, config, trained=self._trained)

    @torch.no_grad()
    def advance(self, latents: PairLatents) -> list[ConnectStep]:
        """One step on a batch, of which exclusions may have left nothing."""
        member, config = self._member, self._config
        lr, measured = member.lr, None
        coefficient = config.l1 * member.schedule.penalty(member.step + 1)
        sparse = self._sparse(latents)
        recon, written = torch.zeros(()), list[ConnectStep]()
        if len(latents.z1):
            recon, error = self._problem.learn(
                latents,
                self._grads["W"],
                self._grads["b"],
                kernels=self._kernels if sparse else None,
            )
            if member.reports_next:
                measured = self._measure(latents, recon, error, coefficient=coefficient)
            self._move(lr, coefficient)
        member.count(recon)
        if measured is not None:
            with self.failing(member):
                written = [self._report(measured, lr=lr, beta=coefficient, sparse=sparse)]
        if member.step % config.checkpoint_every == 0:
            self.save()
        elif member.done:
            self.check()
        return written

    def keep(self, kept: Sequence[int]) -> None:
        """Let go of the connector, if it diverged."""
        self.members = [self.members[m] for m in kept]

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what was saved, to the bit."""
        for name, param in self._member.adam.params.items():
            param.copy_(checkpoint.trained[name])
        self._member.adam.load(checkpoint.optimizer)
        self._member.go_on_from(checkpoint.step)

    def finish(self) -> None:
        """Leave the finished connector behind."""
        result = self._member.adam.result
        with writing(self._member.path):
            self._member.run.finish(
                Connector(result["W"], result["b"], activation=self._config.activation)
            )

    def _sparse(self, latents: PairLatents) -> bool:
        """Whether to compute what active input latents need alone."""
        if self._kernels is None or self._config.sparse == "off":
            return False
        enter, _ = BREAK_EVEN[latents.z1.device.type]
        return self._config.sparse == "on" or latents.density < enter

    def _move(self, lr: float, coefficient: float) -> None:
        """One step of the weights."""
        adam, config = self._member.adam, self._config
        if not config.proximal:
            self._problem.add_penalty(self._grads["W"], coefficient)
        if config.clip:
            self._clip(config.clip)
        adam.step(lr)
        if config.proximal and coefficient:
            shrink(
                self._problem.W,
                adam.moments[SECOND]["W"],
                step=adam.n_steps,
                beta2=config.beta2,
                lr=lr,
                coefficient=coefficient,
            )
        adam.track()

    def _clip(self, largest: float) -> None:
        grads = [self._grads[name] for name in self._trained]
        norms = [torch.linalg.vector_norm(grad) for grad in grads]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        if float(norm) > largest:
            for grad in grads:
                grad.mul_(largest / norm)

    def _measure(
        self,
        latents: PairLatents,
        recon: Float[Tensor, ""],
        error: Float[Tensor, "rows n_out"],
        *,
        coefficient: float,
    ) -> dict[str, float | None]:
        """What the curves show of a batch, before its update."""
        z2 = latents.z2[:, self._problem.predicted]
        spread = (z2 - z2.mean(0)).square().sum() / len(z2)
        size, n_above, n_nonzero = sizes_of(self._problem.W, threshold=WEIGHTY)
        n = max(1, z2.shape[1])
        sparsity = coefficient * size
        return {
            "recon": float(recon),
            "sparsity": sparsity,
            "loss": float(recon) + sparsity,
            "fvu": defined(float(recon / spread)),
            "weights": n_above / n,
            "nonzero": n_nonzero / n,
        }

    def _report(
        self, measured: Mapping[str, float | None], *, lr: float, beta: float, sparse: bool
    ) -> ConnectStep:
        member = self._member
        member.require_finite()
        report = ConnectStep(
            run=member.path,
            step=member.step,
            n_steps=member.n_steps,
            rows=member.step * self._config.batch_size,
            **measured,  # pyright: ignore[reportArgumentType] - of the right names
            beta=beta,
            lr=lr,
            sparse=sparse,
            rows_per_s=member.pace(),
        )
        member.write(report)
        return report

    def save_member(self, m: int) -> None:
        """Write a checkpoint, unless there is nothing new."""
        member = self.members[m]
        if not member.saved:
            member.checkpoint(member.adam.params, member.adam.state())
