"""From runs of connectors to what trains them, each where its checkpoints left it.

They are fed the latents of their SAEs, at rows that both were trained on.
"""

import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import torch
from jaxtyping import Bool
from torch import Tensor

from actstore.reader import ActStore
from pipeline.connect.connector import Connector, Ends, PairLatents
from pipeline.connect.group import ConnectorGroup, ConnectorMember
from pipeline.connect.moments import Moments, find_moments
from pipeline.connect.run import ConnectorRun, load_pair
from pipeline.connect.start import needs_moments, start_connector
from pipeline.device import pick_device
from pipeline.errors import ConfigError
from pipeline.progress import size
from pipeline.runs.checkpoints import checkpoints_of, load_checkpoint
from pipeline.runs.curves import METRICS, Curves
from pipeline.runs.sae_run import SAERun
from pipeline.sae.active_pairs import Scratch
from pipeline.training.feed import SAMPLE_ROWS, Feed, Feeder, sample_rows
from pipeline.training.optimizer import Schedule


class PairFeeder:
    """Makes of each batch of a store the latents that connectors learn from.

    Connectors between the same SAEs share them. A row that one of the SAEs was not trained on, by
    its position, token or norm, is left out: what an SAE makes of it means nothing.

    Raises:
        CheckpointError: an SAE is gone or damaged.
    """

    def __init__(
        self, store: ActStore, runs: Iterable[ConnectorRun], *, device: torch.device
    ) -> None:
        self.store = store
        self._device = device
        several = dict.fromkeys(run.ends for run in runs)
        opened = {ends: [SAERun.open(end.run) for end in ends] for ends in several}
        self.pairs = {ends: load_pair(*its, device=device) for ends, its in opened.items()}
        self._feeds = {  # the rows of each SAE, given to it as they are in the store
            ends: [
                replace(Feed.of(run.config, site=run.provenance.site), normalize="none")
                for run in its
            ]
            for ends, its in opened.items()
        }
        feeds = [feed for pair in self._feeds.values() for feed in pair]
        self._rows = Feeder(store, feeds, device=device)
        self.sites, self.metadata = self._rows.sites, self._rows.metadata
        """What every batch must hold."""

    def fed(self, batch: Mapping[str, Tensor]) -> dict[Ends, PairLatents]:
        """Latents at the rows of a batch that are left, of which there may be none."""
        return {ends: self._latents(ends, batch) for ends in self.pairs}

    def sample(
        self, ends: Ends, *, n_rows: int = SAMPLE_ROWS, seed: int = 0
    ) -> Generator[PairLatents, None, None]:
        """Latents at a fixed sample of rows from all over the store."""
        blocks = sample_rows(
            self.store,
            sites=tuple(dict.fromkeys(self.pairs[ends].sites)),
            metadata=self.metadata,
            n_rows=n_rows,
            seed=seed,
        )
        for block in blocks:
            yield self._latents(ends, {n: t.to(self._device) for n, t in block.items()})

    def moments(self, ends: Ends) -> Moments:
        """Of these latents, and of the activations that they are of, on a fixed sample of rows."""
        return find_moments(
            self.pairs[ends],
            self.store,
            device=self._device,
            kept=lambda batch: self.mask(ends, batch),
            metadata=self.metadata,
        )

    def predicted(self, ends: Ends) -> Bool[Tensor, " n_out"]:
        """Which latents of the second SAE are active on any of the sampled rows."""
        pair = self.pairs[ends]
        alive = torch.zeros(pair.target.d_sae, dtype=torch.bool, device=self._device)
        for latents in self.sample(ends):
            alive |= (latents.z2 > 0).any(0)
        return alive

    def mask(self, ends: Ends, batch: Mapping[str, Tensor]) -> Bool[Tensor, " b"]:
        """Which rows of a batch are left."""
        n_rows = len(batch[self.pairs[ends].sites[0]])
        left = torch.ones(n_rows, dtype=torch.bool, device=self._device)
        for feed in self._feeds[ends]:
            kept = self._rows.kept(feed, batch)
            left = left if kept is None else left & kept
        return left

    def _latents(self, ends: Ends, batch: Mapping[str, Tensor]) -> PairLatents:
        pair = self.pairs[ends]
        rows = {site: batch[site] for site in pair.sites}
        if any(feed.excludes for feed in self._feeds[ends]):
            kept = self.mask(ends, batch)
            rows = {site: x[kept] for site, x in rows.items()}
        z1, z2 = pair.latents(rows)
        return PairLatents(z1=z1, z2=z2)


def assemble_connectors(
    feeder: PairFeeder,
    runs: Sequence[ConnectorRun],
    n_steps: Sequence[int],
    *,
    files: ExitStack,
) -> list[ConnectorGroup]:
    """A group for each run, none of them finished; `files` closes their curves.

    Raises:
        ConfigError: they do not fit into memory, or a device or kernels are not there.
        CheckpointError: a checkpoint is damaged, or the disk fails.
    """
    device = pick_device(runs[0].config.device)
    require_memory(runs, device=device)
    starts = _Starts(feeder)
    scratch = Scratch()
    groups = list[ConnectorGroup]()
    for run, n in zip(runs, n_steps, strict=True):
        folders = checkpoints_of(run.path)
        checkpoint = load_checkpoint(folders[max(folders)], digest=run.digest) if folders else None
        keep = checkpoint.metrics_bytes if checkpoint else 0
        curves = files.enter_context(Curves(run.path / METRICS, keep=keep))
        member = ConnectorMember(run, curves=curves, schedule=Schedule.of(run.config, n_steps=n))
        if checkpoint:  # which overwrites one of the right shape
            n_in, n_out = run.source.d_sae, run.target.d_sae
            start = Connector(torch.zeros(n_in, n_out), torch.zeros(n_out))
        else:
            start = starts.of(run)
        group = ConnectorGroup(
            member,
            start.to(device),
            predicted=starts.predicted(run).to(device),
            scratch=scratch,
        )
        if checkpoint:
            group.restore(checkpoint)
        groups.append(group)
    return groups


class _Starts:
    """Where connectors start; what connectors between the same SAEs share is found once."""

    def __init__(self, feeder: PairFeeder) -> None:
        self._feeder = feeder
        self._alive = cache(feeder.predicted)
        self._moments = cache(feeder.moments)
        self._found: dict[object, Connector] = {}

    def of(self, run: ConnectorRun) -> Connector:
        """The connector of a run at its start."""
        ends, config = run.ends, run.config
        alike = (ends, config.start, config.activation, config.bias, config.layer, config.seed)
        if alike not in self._found:
            moments = self._moments(ends) if needs_moments(config) else None
            self._found[alike] = start_connector(config, self._feeder.pairs[ends], moments)
        return self._found[alike]

    def predicted(self, run: ConnectorRun) -> Bool[Tensor, " n_out"]:
        """Outputs whose error counts."""
        if run.config.outputs == "all":
            return torch.ones(run.target.d_sae, dtype=torch.bool)
        return self._alive(run.ends)


# --- memory --------------------------------------------------------------------------------------

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
    fitted = [(r.source.d_sae, r.target.d_sae) for r in runs if needs_moments(r.config)]
    started = max((SOLVING * n_in * max(n_in, n_out) for n_in, n_out in fitted), default=0)
    return FLOAT * (kept + max(sizes) + batch + started)


def memory_free(device: torch.device) -> int | None:
    """Memory that is free on a device; None where it does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") + _cached()
    except (ValueError, OSError):
        return None


def require_memory(runs: Sequence[ConnectorRun], *, device: torch.device) -> None:
    """Hold what training takes to what the device has free."""
    needed, free = connector_bytes(runs), memory_free(device)
    if free is not None and needed > free:
        largest = max(runs, key=lambda run: run.source.d_sae * run.target.d_sae)
        several = f"{len(runs)} connectors need" if len(runs) > 1 else "this connector needs"
        raise ConfigError(
            f"{several} about {size(needed)} for weights, moments and gradient of up to "
            f"{largest.source.d_sae:,} x {largest.target.d_sae:,}, {size(needed - free)} more than "
            f"the {size(free)} free on {device.type}: train fewer at once, or between smaller SAEs"
        )


def _cached() -> int:
    """What Linux holds of files and gives back when asked."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:  # noqa: PTH123 - not a file of ours
            lines = dict(line.split(":") for line in file)
        return int(lines["Cached"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return 0
