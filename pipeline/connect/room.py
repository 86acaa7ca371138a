"""What training connectors takes in memory, before any of it is taken."""

import os
from collections.abc import Sequence

import torch

from pipeline.connect.run import ConnectorRun
from pipeline.connect.start import needs_moments
from pipeline.errors import ConfigError

FLOAT = 4
SOLVING = 11
"""Floats for each pair of latents while a start is fitted: 5.5 matrices of doubles, measured."""
LATENTS = 5
"""Blocks of a batch's output latents at once: true, predicted, their difference and its slope."""


def connector_bytes(runs: Sequence[ConnectorRun]) -> int:
    """What training these in one pass takes, beside the SAEs and the windows of the store.

    Weights and Adam's two moments for each, and the average where one is kept; one gradient, since
    connectors take their steps one after another; the latents of a batch.
    """
    sizes = [run.source.d_sae * run.target.d_sae for run in runs]
    copies = [3 + (run.config.ema is not None) for run in runs]
    kept = sum(size * n for size, n in zip(sizes, copies, strict=True))
    batch = max(
        run.config.batch_size * (2 * run.source.d_sae + LATENTS * run.target.d_sae) for run in runs
    )
    started = 0
    for run in runs:
        if needs_moments(run.config):
            n_in, n_out = run.source.d_sae, run.target.d_sae
            started = max(started, round(SOLVING * n_in * max(n_in, n_out)))
    return FLOAT * (kept + max(sizes) + batch + started)


def bytes_free(device: torch.device) -> int | None:
    """Memory that is free on a device; None where it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _cached()
    except (ValueError, OSError):
        return None


def require_memory(runs: Sequence[ConnectorRun], *, device: torch.device) -> None:
    """Hold what training takes to what the device has free.

    Raises:
        ConfigError: it does not fit.
    """
    needed, free = connector_bytes(runs), bytes_free(device)
    if free is not None and needed > free:
        largest = max(runs, key=lambda run: run.source.d_sae * run.target.d_sae)
        several = f"{len(runs)} connectors need" if len(runs) > 1 else "this connector needs"
        raise ConfigError(
            f"{several} about {needed / 1e9:.1f} GB for weights, moments and gradient of up to "
            f"{largest.source.d_sae:,} x {largest.target.d_sae:,}, and {device.type} has "
            f"{free / 1e9:.1f} GB free: train fewer at once, or between smaller SAEs"
        )


def _cached() -> int:
    """What Linux holds of files and gives back when asked."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - not a file of ours
            lines = dict(line.split(":") for line in file)
        return int(lines["Cached"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0
