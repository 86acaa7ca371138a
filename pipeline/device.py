"""Where tensors live and how much fits there, in which precision, and what a seed draws there."""

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
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


def bytes_free(device: torch.device) -> int | None:
    """What can still be allocated there; None where nobody says.

    On a CPU that of the machine, or of the group of processes that has a limit of its own; on a
    GPU with what torch holds for later.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    found: list[int] = []
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        (available,) = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
        found.append(1024 * int(available))
    for folder, limit, used in _GROUPS:  # without a limit, a word or a huge number stands there
        with suppress(OSError, ValueError):
            most, now = (int((folder / name).read_text()) for name in (limit, used))
            facts = [line.split() for line in (folder / "memory.stat").read_text().splitlines()]
            cached = sum(int(n) for name, n in facts if name in ("active_file", "inactive_file"))
            found.append(most - now + cached)
    return max(0, min(found)) if found else None


_GROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
    (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
)
"""Where Linux tells of the group of processes that this one is in: in a container, its own."""


def bytes_resident() -> int:
    """What this process holds of the machine's memory now; 0 where nobody says."""
    with suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


@contextmanager
def seeded(device: torch.device, *, seed: int, part: int) -> Generator[None]:
    """Within the block, torch draws what this seed and part say; afterwards, what it would have."""
    state = np.random.SeedSequence([seed, part]).generate_state(1, np.uint64)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(state[0]))
        yield
