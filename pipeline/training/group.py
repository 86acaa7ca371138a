"""Members that learn from the same rows; resampling.

When dead latents are resampled, and towards which rows.

Members of one shape that learn from the same rows, as one stack.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.config.checks import steps_of
from pipeline.config.training import TrainConfig
from pipeline.errors import DataError
from pipeline.runs.checkpoints import Checkpoint
from pipeline.runs.curves import TrainReport
from pipeline.sae.dead import Resampling, SilentRows, generator_of, resample_random, resample_worst
from pipeline.sae.objective import Parts, measure
from pipeline.sae.registry import starts_of
from pipeline.sae.sae import SAE
from pipeline.sae.stack import Stack, member_of, to_params
from pipeline.training.feed import Feed, Feeder
from pipeline.training.member import Member
from pipeline.training.optimizer import Adam

SAMPLE_ROWS = 2**15
BLOCK_ROWS = 2**12

Sample = Callable[[int], Float[Tensor, "rows d"]]
"""So many rows from all over the store, fed as the members' batches are."""


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """How a group resamples: `every` steps, what was silent for `window` rows."""

    config: TrainConfig
    every: int
    window: int
    rms: float

    @staticmethod
    def of(config: TrainConfig, *, n_steps: int, rms: float) -> "Renewal | None":
        """What a config asks for; None is no resampling."""
        if config.resample == "none":
            return None
        every, silent = (
            steps_of(duration, batch_size=config.batch_size, n_steps=n_steps)
            for duration in (config.resample_every, config.resample_window)
        )
        return Renewal(config=config, every=every, window=silent * config.batch_size, rms=rms)

    def renew(self, member: Member, dead: Bool[Tensor, " F"], *, sample: Sample) -> None:
        """Give a member's dead latents new weights, and count them."""
        config, adam = member.run.config, member.adam
        if not bool(dead.any()):
            return
        coder = Resampling(
            params=adam.params,
            moments=adam.moments,
            unit_norm=adam.unit_norm,
            starts=starts_of(config.arch, rms=self.rms),
        )
        generator = generator_of(config.seed, member.step)
        if config.resample == "random":
            member.n_resampled += resample_random(coder, dead, generator=generator)
            return
        x = sample(SAMPLE_ROWS)
        member.n_resampled += resample_worst(
            coder,
            dead,
            centred=x - adam.params["b_dec"],
            loss=squared_errors(member.make_sae(adam.params), x),
            generator=generator,
        )


@torch.no_grad()
def squared_errors(coder: SAE, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """`||x - x_hat||^2` of each row."""
    return torch.cat([(coder(rows) - rows).square().sum(-1) for rows in x.split(BLOCK_ROWS)])


SILENT, SPARSE, STACKED = "silent", "sparse", "stacked"
CHOOSE_EVERY = 16
"""Steps between looks at whether the sparse path is still the faster one."""


class Group:
    """Trains a stack, each member on a schedule of its own.

    Args:
        members: With equal configs but for seeds, learning rates and penalties.
        stack: Of their coders, in the same order.
        feeder: Makes their rows.
        feed: Which rows those are.
    """

    def __init__(
        self, members: Sequence[Member], stack: Stack, *, feeder: Feeder, feed: Feed
    ) -> None:
        self.members = list(members)
        self.feed = feed
        self._feeder = feeder
        self._config = config = members[0].run.config
        n_steps = members[0].n_steps
        window = steps_of(config.dead_window, batch_size=config.batch_size, n_steps=n_steps)
        self._dead_rows = window * config.batch_size
        self._renewal = Renewal.of(config, n_steps=n_steps, rms=feeder.rms(feed))
        b_enc = stack.params["b_enc"]
        self._silent = SilentRows(*b_enc.shape, device=b_enc.device)
        self._sparse = stack.starts_sparse(config.sparse)
        self._failures: list[tuple[Member, DataError]] = []
        self._attach(stack)

    @property
    def step(self) -> int:
        """Steps done, by every member."""
        return max((member.step for member in self.members), default=0)

    @property
    def done(self) -> bool:
        """Whether every step was made."""
        return all(member.done for member in self.members)

    @torch.no_grad()
    def advance(self, x: Float[Tensor, "rows d"]) -> list[TrainReport]:
        """One step of every member on a batch, of which exclusions may have left nothing.

        Returns:
            What was written to the members' curves.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        reports = self.members[0].reports_next
        used = [(member.coefficient, member.lr) for member in self.members]
        parts = self._learn(x, used) if len(x) else None
        total = torch.zeros(len(self.members)) if parts is None else parts.total
        for member, loss in zip(self.members, total.unbind(), strict=True):
            member.count(loss)
        written = list[TrainReport]()
        if parts is not None:
            self._follow(parts, [lr for _, lr in used], n_rows=len(x))
            self._renew()
            if reports:
                written = self._report(measure(x, parts), used)
        if self.step % self._config.checkpoint_every == 0 or self.done:
            self.save()
        return written

    def part_with_failures(self) -> list[tuple[Member, DataError]]:
        """Let go of the members that diverged, and say why; the others go on without them."""
        gone, self._failures = self._failures, []
        kept = [m for m, member in enumerate(self.members) if all(member is not g for g, _ in gone)]
        if gone:
            states = [self.members[m].adam.state() for m in kept]
            self.members = [self.members[m] for m in kept]
            self._silent.silent = self._silent.silent[kept]
            if kept:
                self._attach(self._stack.subset(kept))
            for member, state in zip(self.members, states, strict=True):
                member.adam.load(state)
        return gone

    def save(self) -> None:
        """Write a checkpoint of every member that did not diverge, unless there is nothing new.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        own = {SPARSE: torch.tensor(self._sparse), STACKED: torch.tensor(len(self.members) > 1)}
        for m, member in enumerate(self.members):
            if self._failed(member):
                continue
            with self._failing(member):
                member.save({SILENT: self._silent.silent[m]} | own)

    def restore(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Become what was saved, to the bit: one checkpoint a member, all of one step."""
        for m, (member, checkpoint) in enumerate(zip(self.members, checkpoints, strict=True)):
            state = checkpoint.optimizer
            kept = to_params(checkpoint.coder, self._stack.objective)
            kept |= {name: state[name] for name in kept.keys() & state.keys()}
            for name, param in member.adam.params.items():
                param.copy_(kept[name])
            member.restore(checkpoint)
            self._silent.silent[m].copy_(state[SILENT])
            self._sparse = bool(state[SPARSE])

    def finish(self) -> None:
        """Leave the finished coders behind.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        for member in self.members:
            member.finish(scale=self._feeder.scale(self.feed))

    def _attach(self, stack: Stack) -> None:
        """Let the members learn in the memory of a stack."""
        self._stack = stack
        for m, member in enumerate(self.members):
            member.adam = Adam(
                member_of(stack.params, m),
                member_of(stack.grads, m),
                member.run.config,
                trained=stack.objective.trained,
                unit_norm=stack.objective.unit_norm,
            )

    def _learn(self, x: Float[Tensor, "rows d"], used: Sequence[tuple[float, float]]) -> Parts:
        """One step of every member's weights."""
        stack, config = self._stack, self._config
        coefficient = stack.params["b_enc"].new_tensor([c for c, _ in used])
        parts = stack.learn(x, coefficient=coefficient, dead=self._dead(), sparse=self._sparse)
        if config.project and stack.objective.unit_norm:
            stack.project()
        if config.clip:
            stack.clip(config.clip)
        for member, (_, lr) in zip(self.members, used, strict=True):
            member.adam.step(lr)
        stack.renormalise()
        for member in self.members:
            member.adam.track()
        return parts

    def _dead(self) -> Bool[Tensor, "M F"] | None:
        """Latents for AuxK, if there are any."""
        if self._stack.aux is None:
            return None
        dead = self._silent.dead(self._dead_rows)
        return dead if bool(dead.any()) else None

    def _follow(self, parts: Parts, lrs: Sequence[float], *, n_rows: int) -> None:
        """Let what was active move counters, controllers and the choice of path."""
        self._silent.update(parts.counts, n_rows=self._config.batch_size)
        controlled = any(member.controller is not None for member in self.members)
        look = self.step % CHOOSE_EVERY == 0
        if not controlled and not look:
            return
        active = (parts.counts.sum(-1) / (n_rows * parts.counts.shape[1])).tolist()
        for member, fraction, lr in zip(self.members, active, lrs, strict=True):
            if member.controller is not None:
                member.controller.update(fraction, lr=lr)
        if look and self._config.sparse == "auto":
            self._sparse = self._stack.prefers_sparse(max(active), now=self._sparse)

    def _renew(self) -> None:
        """Resample dead latents where it is time to."""
        renewal = self._renewal
        if renewal is None or self.step % renewal.every or self.done:
            return
        dead = self._silent.dead(renewal.window)
        for m, member in enumerate(self.members):
            renewal.renew(
                member, dead[m], sample=lambda n: self._feeder.sample(self.feed, n_rows=n)
            )
        self._silent.forgive(dead)

    def _report(
        self, measured: Mapping[str, Float[Tensor, " M"]], used: Sequence[tuple[float, float]]
    ) -> list[TrainReport]:
        """A line in the curves of every member; here alone the host waits for the device."""
        rows = torch.stack([*measured.values()], -1).tolist()
        n_dead = self._silent.dead(self._dead_rows).sum(-1).tolist()
        written = list[TrainReport]()
        for member, row, dead, (beta, lr) in zip(self.members, rows, n_dead, used, strict=True):
            with self._failing(member):
                values = dict(zip(measured, row, strict=True)) | {"beta": beta, "lr": lr}
                written.append(member.report(values, n_dead=dead, sparse=self._sparse))
        return written

    @contextmanager
    def _failing(self, member: Member) -> Generator[None, None, None]:
        """Within the block, a member that diverged is noted, once."""
        try:
            yield
        except DataError as error:
            if not self._failed(member):
                self._failures.append((member, error))

    def _failed(self, member: Member) -> bool:
        """Whether it diverged, and is still to be parted with."""
        return any(member is other for other, _ in self._failures)
