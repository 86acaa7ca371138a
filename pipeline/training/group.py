"""SAEs of one shape that learn from the same rows, as one stack."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import final

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.config.checks import steps_of
from pipeline.disk import writing
from pipeline.runs.checkpoints import Checkpoint
from pipeline.runs.curves import Curves, TrainReport, defined
from pipeline.runs.sae_run import SAERun
from pipeline.sae.architecture import Architecture, Parts, mean_square, measure, sent
from pipeline.sae.dead import Resampling, SilentRows, generator_of, resample_random, resample_worst
from pipeline.sae.sae import SAE, fit, fold
from pipeline.sae.stack import LOG, Stack, member_of, to_params, to_state, to_unit_norm_
from pipeline.training.feed import Feed, Feeder
from pipeline.training.member import ROWS, Member, MemberGroup
from pipeline.training.optimizer import Adam, Controller, Schedule

SAMPLE_ROWS = 2**15
"""Of the store, among which resampling looks for those that are badly reconstructed."""
FITTED_ROWS = 2**16
"""Of the store, or as many as were trained on, to which thresholds are fitted at the end."""
BLOCK_ROWS = 2**12
CONSTANT = 0.9
"""A latent that is active on more of a batch is active on nearly all rows."""
LONG = 10
"""A latent silent for so many times `revive_after` does not come back by itself."""
CHOOSE_EVERY = 16
"""Steps between looks at whether the sparse path is still the faster one."""

# What a checkpoint has beside weights and moments.
SILENT, SPARSE, STACKED, RESAMPLED = "silent", "sparse", "stacked", "n_resampled"
CONTROLLER = "controller."


@final
class SAEMember(Member[SAERun]):
    """One SAE in training; `coefficient` is that of its penalty, before warm-up and control."""

    def __init__(
        self, run: SAERun, *, curves: Curves, n_steps: int, architecture: Architecture
    ) -> None:
        schedule = Schedule.of(run.config, n_steps=n_steps, hold=run.config.hold)
        super().__init__(run, curves=curves, schedule=schedule)
        self.fitted_l0 = architecture.fitted_l0
        self.controller = Controller.of(
            run.config, architecture.coefficient, d_sae=run.d_sae, hold=schedule.hold
        )
        self.n_resampled = 0
        self.left: SAE | None = None
        """What the run leaves behind, for rows as they are fed, once it is done."""
        self._coefficient = architecture.coefficient

    @property
    def coefficient(self) -> float:
        """Of the sparsity penalty, for the step to come."""
        base = self._coefficient if self.controller is None else self.controller.l1
        return base * self.schedule.penalty(self.step + 1)

    def report(self, measured: Mapping[str, float | None], *, sparse: bool) -> TrainReport:
        """Write a line of the curves.

        Raises:
            DataError: a loss since the last check was not finite; earlier checkpoints are kept.
        """
        self.require_finite()
        report = TrainReport(
            run=self.path,
            step=self.step,
            n_steps=self.n_steps,
            rows=self.step * self.run.config.rows_per_step,
            **measured,  # pyright: ignore[reportArgumentType] - of the right names
            n_resampled=self.n_resampled,
            sparse=sparse,
            rows_per_s=self.pace(),
        )
        self.write(report)
        return report

    def state(self) -> dict[str, Tensor]:
        """What is needed, beside the SAE and what its group keeps, to go on to the same bits."""
        own = {RESAMPLED: torch.tensor(self.n_resampled)}
        if self.controller is not None:
            for name, value in self.controller.state().items():
                own[CONTROLLER + name] = torch.tensor(value, dtype=torch.float64)
        # Of a logarithm, the exponential that the SAE has is not all its bits.
        logs = {name: p for name, p in self.adam.params.items() if name.startswith(LOG)}
        return self.adam.state() | own | logs

    def restore(self, checkpoint: Checkpoint) -> None:
        """Become what `state` was of, to the bit."""
        self.go_on_from(checkpoint.step)
        state = checkpoint.optimizer
        self.n_resampled = int(state[RESAMPLED])
        self.adam.load(state)
        if self.controller is not None:
            self.controller.restore(
                {name: float(state[CONTROLLER + name]) for name in self.controller.state()}
            )

    def make_sae(self, params: Mapping[str, Tensor]) -> SAE:
        """The SAE of these parameters."""
        sae = self.run.blank_sae()
        sae.load_state_dict(to_state(params))
        return sae.to(params["W_dec"].device)


@final
class Group(MemberGroup[SAEMember]):
    """Trains a stack, each member on a schedule of its own.

    Members have equal configs but for seeds, learning rates and penalties, and one feed.
    """

    def __init__(
        self, members: Sequence[SAEMember], stack: Stack, *, feeder: Feeder, feed: Feed
    ) -> None:
        super().__init__(members)
        self.feed = feed
        self._feeder = feeder
        self._config = config = members[0].run.config
        self._dead_rows = self._steps(config.dead_window or "0") * config.rows_per_step
        self._revived_rows = self._steps(config.revive_after or "0") * config.rows_per_step
        b_enc = stack.params["b_enc"]
        self._silent = SilentRows(*b_enc.shape, device=b_enc.device)
        self._sparse = stack.starts_sparse(config.sparse)
        self._attach(stack)

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
            self._resample()
            if reports:
                written = self._report(x, parts, used)
        if self.step % self._config.checkpoint_every == 0:
            self.save()
        elif self.done:
            self.check()
        return written

    def keep(self, kept: Sequence[int]) -> None:
        """Go on with these of the members alone, in memory of their own."""
        states = [self.members[m].adam.state() for m in kept]
        self.members = [self.members[m] for m in kept]
        self._silent.silent = self._silent.silent[list(kept)]
        if kept:
            self._attach(self._stack.subset(kept))
        for member, state in zip(self.members, states, strict=True):
            member.adam.load(state)

    def save_member(self, m: int) -> None:
        """Write a checkpoint of a member, unless there is nothing new."""
        member = self.members[m]
        if not member.saved:
            own = {
                SILENT: self._silent.silent[m],
                SPARSE: torch.tensor(self._sparse),
                STACKED: torch.tensor(len(self.members) > 1),
            }
            member.checkpoint(to_state(member.adam.params), member.state() | own)

    def restore(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Become what was saved, to the bit: one checkpoint a member, all of one step."""
        for m, (member, checkpoint) in enumerate(zip(self.members, checkpoints, strict=True)):
            state = checkpoint.optimizer
            kept = to_params(checkpoint.trained, self._stack.arch)
            kept |= {name: state[name] for name in kept.keys() & state.keys()}
            for name, param in member.adam.params.items():
                param.copy_(kept[name])
            member.restore(checkpoint)
            self._silent.restore(m, state[SILENT])
            self._sparse = bool(state[SPARSE])

    def finish(self) -> None:
        """Leave the finished SAEs behind.

        Raises:
            CheckpointError: the disk is full or fails.
        """
        scale = self._feeder.scale(self.feed)
        for member in self.members:
            sae = self._left_by(member)
            sae.load_state_dict(fold(sae.state_dict(), scale=scale))
            with writing(member.path):
                member.run.finish(sae)

    @torch.no_grad()
    def _left_by(self, member: SAEMember) -> SAE:
        """The SAE that a member leaves behind, its threshold fitted to what was asked for."""
        if member.left is None:
            arch, params = self._stack.arch, dict(member.adam.result)
            if arch.unit_norm and self._config.ema is not None:  # a mean of unit rows is shorter
                to_unit_norm_(params["W_dec"])
            if "E" not in arch.trained:
                params["E"] = params["W_dec"]
            sae = member.left = member.make_sae(params)
            if member.fitted_l0 is not None:
                n_rows = min(FITTED_ROWS, member.n_steps * self._config.rows_per_step)
                blocks = self._feeder.blocks(self.feed, n_rows=n_rows)
                fit(sae, arch, blocks, l0=member.fitted_l0)
        return member.left

    def _attach(self, stack: Stack) -> None:
        """Let the members learn in the memory of a stack."""
        self._stack = stack
        for m, member in enumerate(self.members):
            member.adam = Adam(
                member_of(stack.params, m),
                member_of(stack.grads, m),
                member.run.config,
                trained=stack.arch.trained,
            )

    def _steps(self, duration: str) -> int:
        return steps_of(
            duration, batch_size=self._config.rows_per_step, n_steps=self.members[0].n_steps
        )

    def _learn(self, x: Float[Tensor, "rows d"], used: Sequence[tuple[float, float]]) -> Parts:
        """One step of every member's weights."""
        stack, config = self._stack, self._config
        like = stack.params["b_enc"]
        coefficient = _numbers([c for c, _ in used], like=like)
        dead = self._silent.dead(self._revived_rows)
        aux = stack.arch.aux is not None and self._silent.any_dead(self._revived_rows)
        to_aux = dead if aux else None
        watched = self._controlled or self._looks(self.step + 1)
        parts = stack.learn(
            x, coefficient=coefficient, dead=to_aux, sparse=self._sparse, watched=watched
        )
        if config.project and stack.arch.unit_norm:
            stack.project()
        if config.clip:
            stack.clip(config.clip)
        for member, (_, lr) in zip(self.members, used, strict=True):
            member.adam.step(lr)
        if config.revive:
            step = _numbers([lr for _, lr in used], like=like)[:, None]
            # What stays silent is helped at the full rate, though learning slows down.
            full = _numbers([m.run.config.peak_lr for m in self.members], like=like)[:, None]
            step = torch.where(self._silent.dead(LONG * self._revived_rows), full, step)
            stack.arch.revive(
                stack.params,
                dead,
                step=step * (config.revive * stack.arch.revival * self._feeder.rms(self.feed)),
            )
        stack.renormalise()
        for member in self.members:
            member.adam.track()
        return parts

    def _follow(self, parts: Parts, lrs: Sequence[float], *, n_rows: int) -> None:
        """Let what was active move counters, controllers and the choice of path."""
        self._silent.update(parts.counts, n_rows=self._config.rows_per_step)
        look = self._looks(self.step)
        if not self._controlled and not look:
            return
        active = (parts.density or sent(parts.counts, n_rows=n_rows)).tolist()
        for member, fraction, lr in zip(self.members, active, lrs, strict=True):
            if member.controller is not None:
                member.controller.update(fraction, lr=lr)
        if look and self._config.sparse == "auto":
            self._sparse = self._stack.prefers_sparse(max(active), now=self._sparse)

    @property
    def _controlled(self) -> bool:
        return any(member.controller is not None for member in self.members)

    @staticmethod
    def _looks(step: int) -> bool:
        return step % CHOOSE_EVERY == 0

    def _resample(self) -> None:
        """Give dead latents new weights, where it is time to."""
        config = self._config
        if config.resample == "none" or self.done or self.step % self._steps(config.resample_every):
            return
        dead = self._silent.dead(self._steps(config.resample_window) * config.rows_per_step)
        for m, member in enumerate(self.members):
            if bool(dead[m].any()):
                member.n_resampled += self._resample_member(member, dead[m])
        self._silent.forgive(dead)

    def _resample_member(self, member: SAEMember, dead: Bool[Tensor, " F"]) -> int:
        config, adam, arch = member.run.config, member.adam, self._stack.arch
        latents = Resampling(
            params=adam.params, moments=adam.moments, unit_norm=arch.unit_norm, starts=arch.starts
        )
        generator = generator_of(config.seed, member.step)
        if config.resample == "random":
            return resample_random(latents, dead, generator=generator)
        x = self._feeder.sample(self.feed, n_rows=SAMPLE_ROWS)
        loss = squared_errors(member.make_sae(adam.params), x)
        centred = x - adam.params["b_dec"]
        return resample_worst(latents, dead, centred=centred, loss=loss, generator=generator)

    def _report(
        self, x: Float[Tensor, "rows d"], parts: Parts, used: Sequence[tuple[float, float]]
    ) -> list[TrainReport]:
        """A line in the curves of every member; here alone the host waits for the device."""
        if self.done:
            parts = as_left([self._left_by(member) for member in self.members], x, parts)
        measured = measure(x, parts)
        rows = torch.stack([*measured.values()], -1).tolist()
        n_constant = (parts.counts > CONSTANT * len(x)).sum(-1).tolist()
        over = min(self._dead_rows, self.step * self._config.rows_per_step)
        n_dead = self._silent.dead(over).sum(-1).tolist()
        written = list[TrainReport]()
        for m, (member, (beta, lr)) in enumerate(zip(self.members, used, strict=True)):
            with self.failing(member):
                values: dict[str, float | None] = dict(zip(measured, rows[m], strict=True))
                values |= {"beta": beta, "lr": lr, "explained_variance": defined(rows[m][-1])}
                counts = {"n_dead": n_dead[m], "dead_over": over, "n_constant": n_constant[m]}
                written.append(member.report(values | counts, sparse=self._sparse))
        return written


def _numbers(values: Sequence[float], *, like: Tensor) -> Float[Tensor, " n"]:
    """These on the device and in the dtype of another tensor.

    Written there one by one: a copy from a list would let the host wait for the device.
    """
    numbers = like.new_empty(len(values))
    for slot, value in zip(numbers.unbind(), values, strict=True):
        slot.fill_(value)
    return numbers


@torch.no_grad()
def as_left(saes: Sequence[SAE], x: Float[Tensor, "rows d"], parts: Parts) -> Parts:
    """The last step's parts, but of what these SAEs, left behind, make of its rows."""
    sums, counts = torch.zeros_like(parts.sums), torch.zeros_like(parts.counts)
    residual = torch.empty_like(parts.residual)
    for m, sae in enumerate(saes):
        for start in range(0, len(x), ROWS):
            rows = slice(start, start + ROWS)
            z = sae.encode(x[rows])
            sums[m] += z.sum(0)
            counts[m] += (z > 0).sum(0)
            residual[m, rows] = sae.decode(z) - x[rows]
    return replace(parts, recon=mean_square(residual), sums=sums, counts=counts, residual=residual)


@torch.no_grad()
def squared_errors(sae: SAE, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """`||x - x_hat||^2` of each row."""
    return torch.cat([(sae(rows) - rows).square().sum(-1) for rows in x.split(BLOCK_ROWS)])
