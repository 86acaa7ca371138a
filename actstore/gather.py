"""Contexts as they come, until they make a shard."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from actstore.errors import StoreError
from actstore.manifest import StoreSpec
from actstore.order import row_permutation
from actstore.shardwriter import Shard


class Gathered:
    """Contexts in the order they were added, taken out as permuted shards."""

    def __init__(self, spec: StoreSpec) -> None:
        self._spec = spec
        self._acts: dict[str, list[Shaped[np.ndarray, "n ctx_len width"]]] = {
            site.name: [] for site in spec.sites
        }
        self._tokens: list[Int32[np.ndarray, "n ctx_len"]] = []
        self._documents: list[Int64[np.ndarray, "n ctx_len"]] = []

    @property
    def n_rows(self) -> int:
        """Rows waiting at each site."""
        return sum(tokens.size for tokens in self._tokens)

    def add(
        self,
        acts: Mapping[str, Shaped[np.ndarray, "n ctx_len width"]],
        tokens: Int32[np.ndarray, "n ctx_len"],
        document_id: Int64[np.ndarray, "n ctx_len"],
    ) -> None:
        """Take up contexts; they are copied, the caller may reuse its arrays.

        Raises:
            StoreError: If they do not fit the store.
        """
        wanted = {site.name: (*tokens.shape, site.width) for site in self._spec.sites}
        given = {name: rows.shape for name, rows in acts.items()}
        if given != wanted or tokens.shape != document_id.shape:
            raise StoreError(f"expected rows of {wanted} for these tokens, got {given}")
        if tokens.shape[1] != self._spec.ctx_len:
            raise StoreError(f"expected contexts of {self._spec.ctx_len}, got {tokens.shape[1]}")
        for name, rows in acts.items():
            if rows.dtype != self._spec.storage:
                raise StoreError(f"{name}: expected {self._spec.storage}, got {rows.dtype}")
            self._acts[name].append(rows.copy())
        self._tokens.append(tokens.copy())
        self._documents.append(document_id.copy())

    def take(self, shard: int, n_rows: int) -> Shard:
        """The first `n_rows` rows, as a shard."""
        n_contexts = n_rows // self._spec.ctx_len
        order = row_permutation(n_rows, seed=self._spec.seed, shard=shard)
        return Shard(
            index=shard,
            acts={
                name: _cut(parts, n_contexts).reshape(n_rows, -1)[order]
                for name, parts in self._acts.items()
            },
            tokens=_cut(self._tokens, n_contexts),
            document_id=_cut(self._documents, n_contexts),
            cursor={},
        )


def _cut(parts: list[np.ndarray], n: int) -> np.ndarray:
    """Join `parts`, keep what follows the first `n` entries in them, give those."""
    whole = np.concatenate(parts)
    parts[:] = [whole[n:]]
    return whole[:n]
