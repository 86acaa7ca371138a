"""Random numbers of a seed, which leave the ones that a program draws itself as they are."""

from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def seeded(device: torch.device, *, seed: int, part: int) -> Generator[None]:
    """Within the block, torch draws what this seed and part say; afterwards, what it would have."""
    state = np.random.SeedSequence([seed, part]).generate_state(1, np.uint64)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(int(state[0]))
        yield
