"""Contexts in, rows of a shard out: the forward passes of a harvest, and where their rows go.

Rows are cast and put in the store's order on the device, and copied to the host a shard at a time.
"""

import logging
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import numpy as np
import torch
from jaxtyping import Int32
from torch import Tensor

from actstore.layout import row_permutation
from actstore.writer import Shard
from pipeline.device import DTYPES, pick_device
from pipeline.harvest.plan import HarvestPlan
from pipeline.lm.asked import by_transformers
from pipeline.lm.check import check, why_unchecked
from pipeline.lm.hooks import reading
from pipeline.lm.model import LanguageModel, load_for_sites
from pipeline.lm.sites import LayerSite, Site
from pipeline.text.contexts import Contexts, ContextStream

log = logging.getLogger(__name__)

CPU_BATCH_TOKENS = 1024  # more leaves the caches, and is slower
GPU_BATCH_TOKENS = 65_536  # halved until it fits

Acts = dict[Site, Tensor]


@contextmanager
def forward_of(plan: HarvestPlan) -> Generator["Forward"]:
    """Load what a plan needs of its model, and run it up to the last of its sites.

    Raises:
        ModelError: the model cannot be loaded, or computes something else than transformers' own.
    """
    config, device = plan.config, pick_device(plan.config.device)
    model = load_for_sites(
        config.model,
        plan.sites,
        revision=config.revision,
        device=device,
        dtype=DTYPES[str(plan.spec.source["model_precision"])],
        trust_remote_code=config.trust_remote_code,
    )
    if config.check_model and plan.state in ("new", "add"):
        _hold_to_transformers(model, plan.sites)
    with torch.inference_mode(), reading(model, plan.sites) as read:
        tokens = CPU_BATCH_TOKENS if device.type == "cpu" else GPU_BATCH_TOKENS
        batch_size = config.batch_size or max(1, tokens // config.ctx_len)
        yield Forward(read, batch_size=batch_size, device=device)


def _hold_to_transformers(model: LanguageModel, sites: Sequence[Site]) -> None:
    ours = [site for site in sites if isinstance(site, LayerSite)]
    if by_transformers(model.files) or len(ours) < len(sites):
        return  # it is transformers' own
    if why_not := why_unchecked(model):
        log.warning("%s was not held to what transformers computes: %s", model.name, why_not)
    else:
        check(model, ours)


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
                if self.device.type == "cuda":
                    part = part.pin_memory()
                acts = self._read(part.to(self.device, non_blocking=True).long())
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
        took: list[float] = []
        for _ in range(4):
            start = time.perf_counter()
            for acts in self(tokens):
                next(iter(acts.values()))[-1, -1, -1].item()  # waits for the device
            took.append(time.perf_counter() - start)
        return min(took) / len(tokens)


OnBatch = Callable[[int], None]
"""Told the contexts of the shard that went through the model so far."""


def harvest_shard(
    plan: HarvestPlan,
    index: int,
    n_contexts: int,
    *,
    forward: Forward,
    stream: ContextStream,
    on_batch: OnBatch | None = None,
) -> "FilledShard | None":
    """Compute shard `index` from the next `n_contexts` contexts of the text.

    It is shorter if the text ends inside it, and None if the text had ended before.
    """
    rows = _Rows(plan, index=index, n_rows=n_contexts * plan.spec.ctx_len, device=forward.device)
    taken: list[Contexts] = []
    n_taken = 0
    while n_taken < n_contexts:
        wanted = min(forward.batch_size, n_contexts - n_taken)
        contexts = stream.take(wanted)
        for acts in forward(contexts.tokens):
            rows.add(acts)
        taken.append(contexts)
        n_taken += len(contexts.tokens)
        if on_batch is not None:
            on_batch(n_taken)
        if len(contexts.tokens) < wanted:
            break
    if not n_taken:
        return None
    acts, arrived = rows.on_host()
    shard = Shard(
        index=index,
        acts=acts,
        tokens=np.concatenate([contexts.tokens for contexts in taken]),
        document_id=np.concatenate([contexts.document_id for contexts in taken]),
        cursor=asdict(stream.cursor),
    )
    return FilledShard(shard=shard, arrived=arrived)


@dataclass(frozen=True, kw_only=True)
class FilledShard:
    """A shard whose rows may still be on their way to host memory."""

    shard: Shard
    arrived: torch.cuda.Event | None

    def wait(self) -> Shard:
        """The shard, once all of it is in host memory."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.shard


class _Rows:
    """Rows of one shard, in the store's order and dtype, in the memory of the model's device."""

    def __init__(self, plan: HarvestPlan, *, index: int, n_rows: int, device: torch.device) -> None:
        self._seed, self._index = plan.spec.seed, index
        self._n_added = 0
        dtype = getattr(torch, plan.spec.dtype)
        self._rows = {
            site: torch.empty(n_rows, spec.width, dtype=dtype, device=device)
            for site, spec in zip(plan.sites, plan.spec.sites, strict=True)
        }
        self._place = self._places(n_rows).to(device)

    def add(self, acts: Acts) -> None:
        """Put the rows of the next contexts in their places."""
        n_rows = 0
        for site, x in acts.items():
            rows = x.reshape(-1, x.shape[-1]).to(self._rows[site].dtype)
            n_rows = len(rows)
            place = self._place[self._n_added : self._n_added + n_rows]
            self._rows[site].index_copy_(0, place, rows)
        self._n_added += n_rows

    def on_host(self) -> tuple[dict[str, np.ndarray], torch.cuda.Event | None]:
        """Start the copy to host memory, and tell when it has arrived; None if it is there.

        The order of a shard depends on its length: if the text ended inside it, the planned one is
        undone and the real one applied.
        """
        if self._n_added < len(self._place):
            places = self._places(self._n_added).to(self._place.device)
            added = self._place[: self._n_added]
            for site, x in self._rows.items():
                cut = torch.empty_like(x[: self._n_added])
                self._rows[site] = cut.index_copy_(0, places, x[added])
        arrived, host = None, {str(site): _to_host(x) for site, x in self._rows.items()}
        if self._place.device.type == "cuda":
            arrived = torch.cuda.Event()
            arrived.record()
        return {name: _as_numpy(x) for name, x in host.items()}, arrived

    def _places(self, n_rows: int) -> Tensor:
        """For each row in text order its place in the shard."""
        order = row_permutation(n_rows, seed=self._seed, shard=self._index)
        places = np.empty_like(order)
        places[order] = np.arange(n_rows)
        return torch.from_numpy(places)


def _to_host(x: Tensor) -> Tensor:
    """In pinned memory where that exists, not waited for."""
    if x.device.type != "cuda":
        return x.cpu()
    host = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    return host.copy_(x, non_blocking=True)


def _as_numpy(x: Tensor) -> np.ndarray:
    """The same memory as numpy sees it; bfloat16 as its bits."""
    return x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
