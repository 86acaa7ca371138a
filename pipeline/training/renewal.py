"""When dead latents are resampled, and towards which rows."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.sae.coder import SparseCoder
from pipeline.sae.objectives import starts_of
from pipeline.sae.resample import Resampling, generator_of, resample_random, resample_worst
from pipeline.span import steps_of
from pipeline.train_config import TrainConfig
from pipeline.training.member import Member

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
            steps_of(span, batch_size=config.batch_size, n_steps=n_steps)
            for span in (config.resample_every, config.resample_window)
        )
        return Renewal(config=config, every=every, window=silent * config.batch_size, rms=rms)

    def renew(self, member: Member, dead: Bool[Tensor, " F"], *, sample: Sample) -> None:
        """Give a member's dead latents new weights, and count them."""
        config, learner = member.run.config, member.learner
        if not bool(dead.any()):
            return
        coder = Resampling(
            params=learner.params,
            moments=learner.moments,
            unit_norm=learner.unit_norm,
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
            centred=x - learner.params["b_dec"],
            loss=squared_errors(member.make_coder(learner.params), x),
            generator=generator,
        )


@torch.no_grad()
def squared_errors(coder: SparseCoder, x: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """`||x - x_hat||^2` of each row."""
    return torch.cat([(coder(rows) - rows).square().sum(-1) for rows in x.split(BLOCK_ROWS)])
