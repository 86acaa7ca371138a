"""Where tensors live, in which precision the model runs, and what is drawn there by a seed."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import get_args

import numpy as np
import torch

from pipeline.config.stages import Device, Precision
from pipeline.errors import ConfigError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(device: str | torch.device) -> torch.device:
    """The device asked for; `auto` is cuda, then mps, then cpu, by what is there.

    Raises:
        ConfigError: there is no such device, or it is not there.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        names = ", ".join(get_args(Device))
        raise ConfigError(f"device must be one of {names}, got {device!r}") from None
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device {found} was asked for, but torch sees {torch.cuda.device_count() or 'no'} "
            "GPU: type --device cpu, or install a torch built for your CUDA"
        )
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            "device mps was asked for, but torch sees no Apple GPU: type --device cpu"
        )
    return found


def pick_precision(precision: Precision, *, device: torch.device) -> Precision:
    """`auto` resolved: bf16 on a CUDA GPU that computes in it, fp32 elsewhere."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def pick_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """The dtype of the model's weights and arithmetic."""
    return DTYPES[pick_precision(precision, device=device)]


@contextmanager
def seeded(device: torch.device, *, seed: int, part: int) -> Generator[None]:
    """Within the block, torch draws what this seed and part say; afterwards, what it would have."""
    state = np.random.SeedSequence([seed, part]).generate_state(1, np.uint64)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(state[0]))
        yield
