"""The forward passes of a harvest: contexts in, activations of the chosen sites out."""

import logging
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from pipeline.config import HarvestConfig
from pipeline.device import DTYPES, pick_device
from pipeline.families import Site
from pipeline.model import load_for_sites
from pipeline.plan import HarvestPlan
from pipeline.sites import reading

log = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 1024  # more leaves the caches, and is slower
GPU_BATCH_TOKENS = 65_536  # halved until it fits

Acts = dict[Site, Tensor]


@contextmanager
def forward_of(plan: HarvestPlan) -> Generator["Forward"]:
    """Load what a plan needs of its model, and run it up to the last of its sites.

    Raises:
        ConfigError: the device asked for is not there.
        ModelError: the weights cannot be fetched or read.
    """
    config, device = plan.config, pick_device(plan.config.device)
    model = load_for_sites(
        config.model,
        plan.sites,
        revision=config.revision,
        device=device,
        dtype=DTYPES[str(plan.spec.source["model_precision"])],
    )
    with torch.inference_mode(), reading(model, plan.sites) as read:
        yield Forward(read, batch_size=_batch_size(config, device), device=device)


def _batch_size(config: HarvestConfig, device: torch.device) -> int:
    """Contexts per forward pass."""
    tokens = CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS
    return config.batch_size or max(1, tokens // config.ctx_len)


class Forward:
    """Runs batches through the model; on a GPU, batches that do not fit are halved for good."""

    def __init__(
        self, read: Callable[[Tensor], Acts], *, batch_size: int, device: torch.device
    ) -> None:
        self.batch_size = batch_size
        self.device = device
        self._read = read

    def __call__(self, tokens: Int32[np.ndarray, "contexts position"]) -> Iterator[Acts]:
        """Activations of these contexts, in order, in as few parts as fit."""
        done = 0
        while done < len(tokens):
            part = torch.from_numpy(tokens[done : done + self.batch_size])
            try:
                acts = self._read(self._to_device(part))
            except torch.OutOfMemoryError:
                if self.batch_size == 1:
                    raise
                self.batch_size //= 2
                torch.cuda.empty_cache()
                log.info("out of memory: %d contexts a batch from here on", self.batch_size)
                continue
            done += len(part)
            yield acts

    def seconds_per_context(self, ctx_len: int) -> float:
        """Of the fastest of some batches: the first ones wait for threads and memory."""
        tokens = np.zeros((self.batch_size, ctx_len), dtype=np.int32)
        return min(self._seconds(tokens) for _ in range(4)) / len(tokens)

    def _seconds(self, tokens: Int32[np.ndarray, "contexts position"]) -> float:
        start = time.perf_counter()
        for acts in self(tokens):
            next(iter(acts.values()))[-1, -1, -1].item()  # waits for the device
        return time.perf_counter() - start

    def _to_device(self, tokens: Tensor) -> Tensor:
        if self.device.type == "cuda":
            tokens = tokens.pin_memory()
        return tokens.to(self.device, non_blocking=True).long()
