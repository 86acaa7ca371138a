"""What a careful colleague would say of a finished training: a line each, only where it is true."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.config.architectures import ArchConfig, Penalised
from pipeline.config.checks import steps_of
from pipeline.config.training import TrainConfig

L0_OFF = 0.1
"""From what was asked for."""
MOST_DEAD = 0.1
"""Of all latents."""
LEAST_EXPLAINED = 0.5
"""Of the variance."""
STILL_FALLING = 0.25
"""Of the error in the middle of a run, by which it is less at the end."""
MOST_CONSTANT = 0.2
"""Of the active latents of a row, that are active on nearly all rows."""
MOST_PASSES = 10
"""Over the store."""


def advice_on(
    config: TrainConfig, curves: Sequence[Mapping[str, Any]], *, d_sae: int, n_rows: int
) -> tuple[str, ...]:
    """Lines on a run that is complete; none where all is as one would wish.

    Args:
        config: Its own, settled.
        curves: Lines of its metrics.jsonl, at least one.
        d_sae: Its latents.
        n_rows: Of its store.
    """
    last = curves[-1]
    found = (_on_sparsity, _on_dead, _on_error, _on_schedule)
    n_steps = int(last["step"])
    lines = [line for look in found for line in look(config, curves, d_sae, n_steps)]
    passes = int(last["rows"]) / n_rows
    if passes >= 1:  # a training on more would see the same rows again
        lines = [line.replace(_MORE, f"harvest more `tokens` and {_MORE}") for line in lines]
    if passes > MOST_PASSES:
        return (*lines, f"each row of the store was seen {passes:.0f} times: harvest more `tokens`")
    return tuple(lines)


_MORE = "train on more `tokens`"

Lines = Iterator[str]
Curves = Sequence[Mapping[str, Any]]


def _on_sparsity(config: TrainConfig, curves: Curves, d_sae: int, n_steps: int) -> Lines:
    last, wanted = curves[-1], wanted_l0(config.arch, d_sae=d_sae)
    l0 = float(last["l0"])
    if wanted is not None and abs(l0 / wanted - 1) > L0_OFF:
        why = _MORE
        if isinstance(config.arch, Penalised) and config.arch.l0 is None:
            why = f"{_MORE}, or type `l0`, which begins near it and ends on it"
        yield f"L0 is {l0:.1f} where {wanted:g} was asked for: {why}"
    constant = int(last.get("n_constant", 0))
    if constant > MOST_CONSTANT * l0:
        yield (
            f"{constant} of the {l0:.0f} active latents of a row are active on nearly all rows: "
            "what rows share is still in them; look at these latents before you trust them, and "
            "if the first position is far from the others, type `exclude_positions=0`"
        )


def wanted_l0(arch: ArchConfig, *, d_sae: int) -> float | None:
    """The active latents of a row that were asked for, if any number was."""
    if isinstance(arch, Penalised):
        share = arch.wanted(d_sae=d_sae)
        return None if share is None else share * d_sae
    return getattr(arch, arch.l0_as, None)


def _penalty(arch: ArchConfig) -> str:
    """The setting that is the penalty, where it was told in place of an L0; else nothing."""
    if isinstance(arch, Penalised) and arch.wanted(d_sae=1) is None:
        return arch.penalty_as
    return ""


def _on_dead(config: TrainConfig, curves: Curves, d_sae: int, n_steps: int) -> Lines:
    last = curves[-1]
    dead = int(last["n_dead"])
    if dead > MOST_DEAD * d_sae:
        knobs = f"`{told}`, `lr`" if (told := _penalty(config.arch)) else "`lr`"
        yield (
            f"{dead:,} of {d_sae:,} latents ({dead / d_sae:.0%}) were silent on the last "
            f"{int(last['dead_over']):,} rows: lower {knobs} or `expansion`, or {_MORE}"
        )
    if config.resample != "none" and _steps(config, config.resample_every, n_steps) >= n_steps:
        yield (
            f"no latent was resampled, as the run is shorter than resample_every = "
            f"{config.resample_every}: type `resample_every=20%`"
        )


def _on_error(config: TrainConfig, curves: Curves, d_sae: int, n_steps: int) -> Lines:
    explained = curves[-1].get("explained_variance")
    if explained is not None and explained < LEAST_EXPLAINED:
        more = f"lower `{told}`" if (told := _penalty(config.arch)) else "raise `l0`"
        yield (f"explained variance is {explained:.2f}: {more} or raise `expansion`, or {_MORE}")
    middle = _mean_recon(curves, 0.4 * n_steps, 0.5 * n_steps)
    end = _mean_recon(curves, 0.9 * n_steps, n_steps)
    if middle is not None and end is not None and end < (1 - STILL_FALLING) * middle:
        yield (
            f"the error fell by {1 - end / middle:.0%} in the second half of the run, and may "
            f"fall further: {_MORE}"
        )


def _mean_recon(curves: Curves, first: float, last: float) -> float | None:
    found = [float(line["recon"]) for line in curves if first <= line["step"] <= last]
    return sum(found) / len(found) if found else None


def _on_schedule(config: TrainConfig, curves: Curves, d_sae: int, n_steps: int) -> Lines:
    if not isinstance(config.arch, Penalised) or config.arch.wanted(d_sae=d_sae) is None:
        return
    if _steps(config, config.hold, n_steps) >= n_steps:
        yield (
            f"the penalty was never adjusted, as the run is shorter than hold = {config.hold}: "
            "type `hold=20%`"
        )


def _steps(config: TrainConfig, duration: str, n_steps: int) -> int:
    return steps_of(duration, batch_size=config.rows_per_step, n_steps=n_steps)
