"""What connectors are fed: the latents of their SAEs, at rows that both were trained on."""

from collections.abc import Generator, Iterable, Mapping
from dataclasses import replace

import torch
from jaxtyping import Bool
from torch import Tensor

from actstore.reader import ActStore
from pipeline.connect.connector import End, Latents, Pair
from pipeline.connect.run import ConnectorRun, load_pair
from pipeline.runs.sae_run import SAERun
from pipeline.training.feed import SAMPLE_ROWS, Feed, Feeder, sample_rows

Ends = tuple[End, End]


class PairFeeder:
    """Makes of each batch of a store the latents that connectors learn from.

    Connectors between the same SAEs share them. A row that one of the SAEs was not trained on, by
    its position, token or norm, is left out: what an SAE makes of it means nothing.

    Args:
        store: Where the batches come from.
        runs: Those to be fed.
        device: Where the batches are.

    Raises:
        CheckpointError: an SAE is gone, damaged, or was trained anew.
        StoreError: bytes of the store were altered.
    """

    def __init__(
        self, store: ActStore, runs: Iterable[ConnectorRun], *, device: torch.device
    ) -> None:
        self.store = store
        self._device = device
        ends = list(dict.fromkeys((run.source, run.target) for run in runs))
        opened = {pair: [SAERun.open(end.run) for end in pair] for pair in ends}
        self._pairs = {pair: load_pair(*opened[pair], device=device) for pair in ends}
        self._feeds = {pair: [_feed(run) for run in opened[pair]] for pair in ends}
        feeds = [feed for pair in self._feeds.values() for feed in pair]
        self._rows = Feeder(store, feeds, device=device)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that every batch must hold."""
        return self._rows.sites

    @property
    def metadata(self) -> tuple[str, ...]:
        """The metadata that every batch must hold."""
        return self._rows.metadata

    def pair(self, ends: Ends) -> Pair:
        """The SAEs of a connector."""
        return self._pairs[ends]

    def fed(self, batch: Mapping[str, Tensor]) -> dict[Ends, Latents]:
        """Latents at the rows of a batch that are left, of which there may be none."""
        return {ends: self._latents(ends, batch) for ends in self._pairs}

    def sample(
        self, ends: Ends, *, n_rows: int = SAMPLE_ROWS, seed: int = 0
    ) -> Generator[Latents, None, None]:
        """Latents at a fixed sample of rows from all over the store.

        Raises:
            StoreError: while iterating, if bytes of the store were altered.
        """
        blocks = sample_rows(
            self.store,
            sites=self._pairs[ends].sites,
            metadata=self.metadata,
            n_rows=n_rows,
            seed=seed,
        )
        for block in blocks:
            yield self._latents(ends, {n: t.to(self._device) for n, t in block.items()})

    def predicted(self, ends: Ends) -> Bool[Tensor, " n_out"]:
        """Which latents of the second SAE are active on any of the sampled rows.

        Raises:
            StoreError: bytes of the store were altered.
        """
        pair = self._pairs[ends]
        alive = torch.zeros(pair.target.d_sae, dtype=torch.bool, device=self._device)
        for latents in self.sample(ends):
            alive |= (latents.z2 > 0).any(0)
        return alive

    def mask(self, ends: Ends, batch: Mapping[str, Tensor]) -> Bool[Tensor, " b"]:
        """Which rows of a batch are left."""
        masks = [self._rows.kept(feed, batch) for feed in self._feeds[ends]]
        some = [mask for mask in masks if mask is not None]
        if not some:
            n_rows = len(batch[self._pairs[ends].sites[0]])
            return torch.ones(n_rows, dtype=torch.bool, device=self._device)
        return torch.stack(some).all(0)

    def _latents(self, ends: Ends, batch: Mapping[str, Tensor]) -> Latents:
        pair = self._pairs[ends]
        rows = {site: batch[site] for site in pair.sites}
        if any(feed.excludes for feed in self._feeds[ends]):
            kept = self.mask(ends, batch)
            rows = {site: x[kept] for site, x in rows.items()}
        z1, z2 = pair.latents(rows)
        return Latents(z1=z1, z2=z2)


def _feed(run: SAERun) -> Feed:
    """The rows of an SAE, which are given to it as they are in the store."""
    return replace(Feed.of(run.config, site=run.provenance.site), normalize="none")
