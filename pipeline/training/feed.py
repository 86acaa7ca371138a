"""What a member is fed: which rows of its site, and in what unit; and a fixed sample of rows.

Members that are fed alike share one tensor a batch. A row can be excluded by its position, by its
token, or because its norm is far above the others': a few rows of some models, the first of each
context above all, are a hundred times as long as the rest and would be most of the loss.

Excluded rows are dropped and not replaced, so that the rows of a step are those of its place in
the order whatever is excluded: a batch has at most `batch_size` rows, and it may have none.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float32, Shaped
from torch import Tensor

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.config.training import Normalize, TrainConfig
from pipeline.errors import ConfigError
from pipeline.stores import has_tokens
from pipeline.training.batches import as_tensor

POSITION, TOKEN = "position", "token_id"
SAMPLE_ROWS = 2**16
BLOCK_ROWS = 2**12
LEAST_SQUARE = 1e-60
"""Mean square of coordinates by whose root float32 can still divide, and multiply back."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """A site, the rows of it that are left out, and whether the others are scaled."""

    site: str
    normalize: Normalize = "none"
    exclude_positions: tuple[int, ...] = ()
    exclude_tokens: tuple[int, ...] = ()
    exclude_norms: float | None = None

    @staticmethod
    def of(config: TrainConfig, *, site: str) -> "Feed":
        """What a run of this config is fed; equal whenever the rows are."""
        return Feed(
            site=site,
            normalize=config.normalize,
            exclude_positions=tuple(sorted({*config.exclude_positions})),
            exclude_tokens=tuple(sorted({*config.exclude_tokens})),
            exclude_norms=config.exclude_norms,
        )

    @property
    def metadata(self) -> tuple[str, ...]:
        """What a batch must hold beside the site."""
        wanted = {POSITION: self.exclude_positions, TOKEN: self.exclude_tokens}
        return tuple(name for name, excluded in wanted.items() if excluded)

    @property
    def excludes(self) -> bool:
        """Whether any row may be left out."""
        return bool(self.metadata) or self.exclude_norms is not None


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rule:
    """A feed, with what had to be looked up in the store."""

    feed: Feed
    rms: float
    limit: float | None
    """The largest norm that is kept."""
    excluded: Mapping[str, Shaped[Tensor, " n"]]
    """Values of each metadata array."""

    @property
    def scale(self) -> float:
        return self.rms if self.feed.normalize == "rms" else 1.0

    def kept(self, batch: Mapping[str, Tensor]) -> Bool[Tensor, " b"] | None:
        """Which rows are left; None means all."""
        x = batch[self.feed.site]
        norm = None if self.limit is None else torch.linalg.vector_norm(x, dim=-1)
        return _kept(batch, self.excluded, norm, self.limit)

    def apply(self, batch: Mapping[str, Tensor], *, own: bool) -> Float32[Tensor, "b d"]:
        """The rows that are left, scaled; in the memory of the batch where that is its `own`."""
        x, kept = batch[self.feed.site], self.kept(batch)
        if kept is not None:
            x = x[kept]
        if self.feed.normalize != "rms":
            return x
        return x.div_(self.scale) if own or kept is not None else x / self.scale


class Feeder:
    """Makes of each batch of a store what every member is fed.

    Of what is excluded by norm, the median is that of a fixed sample of 65,536 rows. So is the mean
    square of the rows that are left, if any is excluded; else it is exact, over the whole store.

    Args:
        store: Where the batches come from.
        feeds: Those of all members; equal ones are computed once.
        device: Where the batches are.

    Raises:
        ConfigError: A feed leaves no row, or there is nothing that it could mean.
        StoreError: Bytes of the store were altered.
    """

    def __init__(self, store: ActStore, feeds: Iterable[Feed], *, device: torch.device) -> None:
        self.store = store
        self.feeds = tuple(dict.fromkeys(feeds))
        self._device = device
        for feed in self.feeds:
            _require_meaning(feed, ctx_len=store.spec.ctx_len)
            if feed.exclude_tokens and not has_tokens(store.spec):
                raise ConfigError(
                    f"exclude_tokens leaves nothing out: {store.path} was imported without token "
                    "ids; import it with --tokens-file"
                )
        excluding = dict.fromkeys(feed.site for feed in self.feeds if feed.excludes)
        samples = {site: self._look(site) for site in excluding}
        self._rules = {feed: self._rule(feed, samples.get(feed.site, {})) for feed in self.feeds}

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that every batch must hold."""
        return tuple(dict.fromkeys(feed.site for feed in self.feeds))

    @property
    def metadata(self) -> tuple[str, ...]:
        """The metadata that every batch must hold."""
        return tuple(dict.fromkeys(name for feed in self.feeds for name in feed.metadata))

    def fed(self, batch: Mapping[str, Tensor]) -> dict[Feed, Float32[Tensor, "b d"]]:
        """The rows of a batch for each feed; not to be written to, as some share memory.

        What a tensor has fewer rows than the batch was dropped; it may be all of them. The batch
        is used up: the rows of a site that one feed takes are scaled in place.
        """
        alone = len(self.sites) == len(self.feeds)
        return {feed: rule.apply(batch, own=alone) for feed, rule in self._rules.items()}

    def kept(self, feed: Feed, batch: Mapping[str, Tensor]) -> Bool[Tensor, " b"] | None:
        """Which rows of a batch a feed leaves; None means all."""
        return self._rules[feed].kept(batch)

    def scale(self, feed: Feed) -> float:
        """What the rows of a feed are divided by."""
        return self._rules[feed].scale

    def rms(self, feed: Feed) -> float:
        """Root mean square of the coordinates of rows as they are fed; 1 where all are zero."""
        rule = self._rules[feed]
        return rule.rms / rule.scale or 1.0

    def sample(self, feed: Feed, *, n_rows: int, seed: int = 0) -> Float32[Tensor, "n d"]:
        """What is left of so many rows from all over the store, as they are fed.

        Raises:
            ConfigError: Nothing is left.
            StoreError: Bytes of the store were altered.
        """
        left = torch.cat([*self.blocks(feed, n_rows=n_rows, seed=seed)])
        _require_rows(feed, left, n_rows=n_rows)
        return left

    def blocks(
        self, feed: Feed, *, n_rows: int, seed: int = 0
    ) -> Generator[Float32[Tensor, "n d"], None, None]:
        """The same block by block, of which some may be empty."""
        rule = self._rules[feed]
        for block in sample_rows(
            self.store, sites=(feed.site,), metadata=feed.metadata, n_rows=n_rows, seed=seed
        ):
            yield rule.apply(_moved(block, self._device), own=False)

    def _look(self, site: str) -> dict[str, Tensor]:
        """Norms and metadata of sampled rows: of this site alone, whatever others are fed."""
        blocks = [
            block | {site: torch.linalg.vector_norm(block[site], dim=-1)}
            for block in sample_rows(self.store, sites=(site,), metadata=self.metadata)
        ]
        found = {name: torch.cat([block[name] for block in blocks]) for name in blocks[0]}
        return _moved(found, self._device)

    def _rule(self, feed: Feed, sample: Mapping[str, Tensor]) -> _Rule:
        banned = {POSITION: feed.exclude_positions, TOKEN: feed.exclude_tokens}
        excluded = {n: torch.tensor(banned[n], device=self._device) for n in feed.metadata}
        limit = None
        if not feed.excludes:
            square = mean_square(self.store, feed.site)
        else:
            norm = sample[feed.site]
            if feed.exclude_norms is not None:
                limit = feed.exclude_norms * float(norm.median())
            left = norm[_kept(sample, excluded, norm, limit)]
            _require_rows(feed, left, n_rows=len(norm))
            square = float(left.double().square().mean()) / self.store.width(feed.site)
        if square < LEAST_SQUARE and feed.normalize == "rms":
            rows = "zero in every row" if square == 0 else f"as small as {square**0.5:.1g}"
            raise ConfigError(
                f"{feed.site} is {rows} and cannot be scaled: type --set normalize=none"
            )
        return _Rule(feed=feed, rms=square**0.5, limit=limit, excluded=excluded)


def sample_rows(
    store: ActStore,
    *,
    sites: tuple[str, ...],
    metadata: tuple[str, ...] = (),
    n_rows: int = SAMPLE_ROWS,
    seed: int = 0,
) -> Generator[dict[str, Tensor], None, None]:
    """Rows of the sites as float32, with their metadata, block by block.

    They come from chunks all over the store, the same for the same seed. A store that has no more
    than `n_rows` gives each of its rows once.

    Raises:
        StoreError: while iterating, if bytes of the store were altered.
    """
    n_rows = min(n_rows, store.n_rows)
    size = min(n_rows, BLOCK_ROWS)
    batches = Batches(
        store=store, sites=sites, batch_size=size, seed=seed, window_rows=n_rows, metadata=metadata
    )
    with closing(batches.start_at(0, -(-n_rows // size))) as stream:
        for start, whole in zip(range(0, n_rows, size), stream, strict=True):
            block = {name: values[: n_rows - start] for name, values in whole.items()}
            yield {
                name: as_tensor(values).float() if name in sites else torch.from_numpy(values)
                for name, values in block.items()
            }


def mean_square(store: ActStore, site: str) -> float:
    """Mean square of the coordinates of all rows: `sum(var + mean^2) / d`."""
    return float((store.var(site) + store.mean(site) ** 2).mean())


def _require_meaning(feed: Feed, *, ctx_len: int) -> None:
    """Raise ConfigError for an exclusion that no row could have."""
    for position in feed.exclude_positions:
        if not 0 <= position < ctx_len:
            raise ConfigError(
                f"exclude_positions {position} is no position: they are 0 to {ctx_len - 1}"
            )
    for token in feed.exclude_tokens:
        if not 0 <= token < 2**31:
            raise ConfigError(f"exclude_tokens {token} is no token id: they are 0 to 2147483647")


def _require_rows(feed: Feed, left: Shaped[Tensor, "n ..."], *, n_rows: int) -> None:
    if not len(left):
        raise ConfigError(
            f"{_told(feed)} leaves none of {n_rows} rows of {feed.site}: exclude less"
        )


def _kept(
    batch: Mapping[str, Tensor],
    excluded: Mapping[str, Tensor],
    norm: Float32[Tensor, " B"] | None,
    limit: float | None,
) -> Bool[Tensor, " B"] | None:
    """Which rows are left; None means all."""
    kept = None if norm is None or limit is None else norm <= limit
    for name, values in excluded.items():
        here = torch.isin(batch[name], values, invert=True)
        kept = here if kept is None else kept & here
    return kept


def _told(feed: Feed) -> str:
    """The exclusions, as they were asked for."""
    given = {
        "exclude_positions": feed.exclude_positions,
        "exclude_tokens": feed.exclude_tokens,
        "exclude_norms": () if feed.exclude_norms is None else (feed.exclude_norms,),
    }
    return " and ".join(
        f"{name} {', '.join(map(str, values[:8]))}{', ...' if len(values) > 8 else ''}"
        for name, values in given.items()
        if values
    )


def _moved(tensors: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: tensor.to(device) for name, tensor in tensors.items()}
