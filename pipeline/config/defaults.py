"""What a training is told where its user left it open, by how long it is and how wide.

Measured by `tests/bench/defaults.py`; docs/measurements/quality.md has its tables.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from pipeline.config.training import LoopConfig, TrainConfig

BATCH_SIZES = (128, 1024)
"""Rows of a step, at least and at most."""
STEPS = 2000
"""That a run is to have before its batches grow: a step learns nearly as much from fewer rows."""
LR, MOST_LR = 7.0, 1e-2
"""The rate is `LR * batch_size / sqrt(rows * d_in * d_sae)`, or `MOST_LR` if that is less.

That it goes as `1 / sqrt(d_sae)` is of Gao et al. 2024 (arXiv 2406.04093), section 2.4. That it
goes as `1 / sqrt(d_in)`, too, which is the size of an entry of a direction of norm 1, was measured;
so was that twice the batch takes twice the rate, and a training four times as long half of it.
"""
DEAD_WINDOW = 1_000_000
DEAD_SHARE = 0.1
"""Of a run, if that is shorter."""
REVIVE_SHARE = 0.003
"""Of a run as well; longer ones wait no longer than one of ten times DEAD_WINDOW."""

Config = TypeVar("Config", bound=LoopConfig)


def with_batch_size(configs: Sequence[Config], *, n_rows: int) -> list[Config]:
    """Runs that learn in one pass, with the batch size that they share, where it is open.

    Args:
        configs: Theirs.
        n_rows: Of the store.
    """
    longest = max(config.tokens or n_rows for config in configs)
    least, most = BATCH_SIZES
    size = least
    while size < most and size * 2 * STEPS <= longest:
        size *= 2
    return [
        replace(config, batch_size=size) if config.batch_size is None else config
        for config in configs
    ]


def settled(config: TrainConfig, *, d_in: int, d_sae: int, n_rows: int) -> TrainConfig:
    """The same, with nothing left open.

    Args:
        config: Of one run.
        d_in: Width of its rows.
        d_sae: Its latents.
        n_rows: Of its store.
    """
    (config,) = with_batch_size([config], n_rows=n_rows)
    n_steps = config.n_steps(n_rows)
    rate = best_lr(config.rows_per_step, n_steps, d_in=d_in, d_sae=d_sae)
    rows = min(n_steps * config.rows_per_step, round(DEAD_WINDOW / DEAD_SHARE))
    return replace(
        config,
        arch=config.arch.settled,
        lr=rate if config.lr is None else config.lr,
        dead_window=config.dead_window or f"{round(DEAD_SHARE * rows)}",
        revive_after=config.revive_after or config.dead_window or f"{round(REVIVE_SHARE * rows)}",
    )


def best_lr(batch_size: int, n_steps: int, *, d_in: int, d_sae: int) -> float:
    """Peak learning rate of Adam for so many steps of so many rows, to two digits.

    Args:
        batch_size: Rows of a step.
        n_steps: Of the run.
        d_in: Width of a row.
        d_sae: Latents.
    """
    rate = LR * batch_size / (batch_size * n_steps * d_in * d_sae) ** 0.5
    return float(f"{min(rate, MOST_LR):.1e}")
