"""A complete store as what every reader stands on: its arrays, a chunk or a shard at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int, Shaped

from actstore.errors import StoreError
from actstore.layout import Layout
from actstore.manifest import Manifest, StoreSpec
from actstore.shardfile import ShardReader

Arrays = Mapping[str, ShardReader]


@dataclass(frozen=True, kw_only=True, eq=False)
class ChunkStore:
    """Sites aligned by row, and the token each row stands for.

    Reading is safe from many threads. A store that is extended meanwhile goes on as it was opened.
    """

    path: Path
    manifest: Manifest
    _arrays: Arrays

    @property
    def spec(self) -> StoreSpec:
        """What the store was made to hold."""
        return self.manifest.spec

    @property
    def layout(self) -> Layout:
        """How its rows fall into shards and chunks."""
        return self.spec.layout(self.n_rows)

    @property
    def n_rows(self) -> int:
        """Rows of each site."""
        return self.manifest.n_rows

    @property
    def n_contexts(self) -> int:
        """Contexts of `spec.ctx_len` rows."""
        return self.n_rows // self.spec.ctx_len

    @property
    def n_shards(self) -> int:
        """Files of each array."""
        return self.layout.n_shards

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return self.spec.names

    def width(self, site: str) -> int:
        """Values of one row at a site."""
        return self.spec.width(self._site(site))

    def read_chunk_into(
        self, site: str, chunk: int, out: Shaped[np.ndarray, "rows width"], *, skip: int = 0
    ) -> None:
        """Decode rows of a chunk, numbered through the whole store, into contiguous `out`.

        Args:
            site: Which site.
            chunk: Below `layout.n_chunks`.
            out: Of the stored dtype, with as many rows as are wanted.
            skip: Rows of the chunk that come before them.

        Raises:
            StoreError: If its bytes were altered; names site, shard, chunk and file.
        """
        shard, inner = self.layout.locate(chunk)
        self._arrays[site].read_chunk(shard, inner, out, skip=skip)

    def want_chunk(self, site: str, chunk: int) -> None:
        """Tell the system that `read_chunk_into` will ask for a chunk soon."""
        self._arrays[site].want(*self.layout.locate(chunk))

    def shard(self, name: str, index: int) -> Shaped[np.ndarray, "..."]:
        """One shard of a site, as stored; or of `token_id`, `context_id`, `position`, and so on.

        Raises:
            StoreError: If there is no such array, or its bytes were altered.
        """
        array = self.array(name)
        if not 0 <= index < self.n_shards:
            raise StoreError(f"{self.path} has no shard {index}; it has {self.n_shards}")
        return array.read(index)

    def array(self, name: str) -> ShardReader:
        """The shards of a site, or of `token_id` and so on."""
        if name not in self._arrays:
            raise StoreError(f"{self.path} has no {name!r}; it has {', '.join(self._arrays)}")
        return self._arrays[name]

    def require_within(self, what: str, numbers: Int[np.ndarray, " n"], n: int) -> None:
        """Refuse numbers of rows or contexts that are not from 0 to `n - 1`."""
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < n:
            raise StoreError(
                f"{self.path} has {what} 0 to {n - 1}, got {numbers.min()} to {numbers.max()}"
            )

    def _site(self, site: str) -> str:
        if site not in self.sites:
            raise StoreError(f"{self.path} has no site {site!r}; it has {', '.join(self.sites)}")
        return site
