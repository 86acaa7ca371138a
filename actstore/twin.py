"""A complete store that another is written beside: row `i` of both must be of the same token."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from actstore.errors import StoreError
from actstore.manifest import CONTEXT_TOKENS, ROW_ARRAYS, Manifest
from actstore.reader import load_summary
from actstore.root import GROUP, manifest_of, read_root
from actstore.shardreader import ShardReader
from actstore.summary import Summary

TOKEN_ARRAYS = (*ROW_ARRAYS, CONTEXT_TOKENS)
"""What two stores of the same tokens have in common; the first columns of a summary."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Twin:
    """The store whose tokens are given, and what it says of its shards."""

    path: Path
    manifest: Manifest
    summary: Summary

    @staticmethod
    def load(path: Path) -> "Twin":
        """Read what a complete store says of its shards.

        Raises:
            StoreError: If it is absent or damaged.
        """
        document = read_root(path)
        if document is None:
            raise StoreError(f"there is no activation store at {path}; make it: saepipe harvest")
        manifest = manifest_of(path, document)
        summary = load_summary(path, manifest, document)
        return Twin(path=path, manifest=manifest, summary=summary)

    def require_same(
        self, shard: int, *, rows: int, files: Mapping[str, Sequence[int]], group: Path
    ) -> None:
        """Hold one shard of the other store to the tokens of this one.

        Args:
            shard: Which.
            rows: It holds.
            files: Bytes and crc32c of each of its arrays, as in the journal.
            group: Where its files are.

        Raises:
            StoreError: If they differ, or a file that has to be read is damaged.
        """
        if not (shard < len(self.summary.shard_rows) and rows == self.summary.shard_rows[shard]):
            raise self.differs(shard)
        for column, name in enumerate(TOKEN_ARRAYS):
            size = int(self.summary.shard_bytes[shard, column])
            crc = int(self.summary.shard_crc32c[shard, column])
            if tuple(files[name]) == (size, crc):
                continue
            # Another release of the compressor packs the same tokens differently.
            own = self._read(self.path / GROUP, name, shard, rows=rows, size=size)
            other = self._read(group, name, shard, rows=rows, size=files[name][0])
            if not np.array_equal(own, other):
                raise self.differs(shard)

    def differs(self, shard: int) -> StoreError:
        """What it means that the other store has another shard."""
        return StoreError(
            f"{self.path} cannot take more sites: its source no longer gives the tokens it gave "
            f"for shard {shard}; it stays as it was, write another store"
        )

    def _read(
        self, group: Path, name: str, shard: int, *, rows: int, size: int
    ) -> Shaped[np.ndarray, "..."]:
        spec = self.manifest.spec
        sizes = [0] * shard + [size]
        n_rows = shard * spec.shard_rows + rows
        return ShardReader(group, spec, name, n_rows=n_rows, sizes=sizes).read(shard)
