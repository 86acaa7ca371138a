"""Read a complete store."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int32, Shaped

from actstore.errors import StoreError
from actstore.layout import Layout
from actstore.manifest import CONTEXT_TOKENS, Manifest, StoreSpec
from actstore.root import GROUP, documents_of, manifest_of, peek, read_root
from actstore.shardreader import ShardReader
from actstore.summary import Summary, check_document, read_summary, summary_name

__all__ = ["ActStore", "peek"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ActStore:
    """A complete store: sites aligned by row, and the token each row stands for.

    Reading is safe from many threads. A store that is extended meanwhile goes on as it was opened.
    """

    path: Path
    manifest: Manifest
    _summary: Summary
    _arrays: Mapping[str, ShardReader]

    @classmethod
    def open(cls, path: Path) -> "ActStore":
        """Open a store, having checked that it is whole and of a version this code reads.

        Bytes inside of shards are checked as they are read.

        Raises:
            StoreError: If it is absent, unfinished, of another version, or damaged.
        """
        document = read_root(path)
        try:
            return cls._open(path, document)
        except StoreError:
            if read_root(path) != document:  # an extension was completed meanwhile
                return cls._open(path, read_root(path))
            raise

    @classmethod
    def _open(cls, path: Path, document: dict[str, Any] | None) -> "ActStore":
        if document is None:
            raise StoreError(f"there is no activation store at {path}; make it: saepipe harvest")
        manifest = manifest_of(path, document)
        if manifest.state != "complete":
            raise StoreError(
                f"{path} is not finished; go on with it: the same saepipe harvest that began it"
            )
        try:
            summary = load_summary(path, manifest, document)
        except StoreError as problem:
            raise _explained(path, manifest, problem) from None
        arrays = {
            name: ShardReader(
                path / GROUP,
                manifest.spec,
                name,
                n_rows=manifest.n_rows,
                sizes=summary.shard_bytes[:, i].tolist(),
            )
            for i, name in enumerate(manifest.spec.arrays)
        }
        for array in arrays.values():
            for problem in array.check_files():
                raise _explained(path, manifest, problem)
            array.keep_last()
        return cls(path=path, manifest=manifest, _summary=summary, _arrays=arrays)

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
    def n_shards(self) -> int:
        """Files of each array."""
        return self.layout.n_shards

    @property
    def sites(self) -> tuple[str, ...]:
        """Names of the sites."""
        return tuple(site.name for site in self.spec.sites)

    @property
    def fingerprint(self) -> str:
        """sha256 of the content: equal for equal rows, in whatever steps they were written."""
        return self.manifest.fingerprint

    @property
    def n_bytes(self) -> int:
        """Size of all shard files."""
        return int(self._summary.shard_bytes.sum())

    def mean(self, site: str) -> Float64[np.ndarray, " width"]:
        """Mean of each coordinate over all rows."""
        return self._summary.mean[self._site(site)]

    def var(self, site: str) -> Float64[np.ndarray, " width"]:
        """Variance of each coordinate over all rows."""
        return self._summary.var[self._site(site)]

    def width(self, site: str) -> int:
        """Values of one row at a site."""
        return self.spec.width(self._site(site))

    def read_chunk_into(self, site: str, chunk: int, out: Shaped[np.ndarray, "rows width"]) -> None:
        """Decode a chunk, numbered through the whole store, into contiguous `out`.

        Args:
            site: Which site.
            chunk: Below `layout.n_chunks`.
            out: Of the stored dtype, with `layout.rows_of_chunk(chunk)` rows.

        Raises:
            StoreError: If its bytes were altered; names site, shard, chunk and file.
        """
        shard, inner = self.layout.locate(chunk)
        self._arrays[site].read_chunk(shard, inner, out)

    def want_chunk(self, site: str, chunk: int) -> None:
        """Tell the system that `read_chunk_into` will ask for a chunk soon."""
        self._arrays[site].want(*self.layout.locate(chunk))

    def shard(self, name: str, index: int) -> Shaped[np.ndarray, "..."]:
        """One shard of a site, as stored; or of `token_id`, `context_id`, `position`, and so on.

        Raises:
            StoreError: If there is no such array, or its bytes were altered.
        """
        if name not in self._arrays:
            raise StoreError(f"{self.path} has no {name!r}; it has {', '.join(self._arrays)}")
        if not 0 <= index < self.n_shards:
            raise StoreError(f"{self.path} has no shard {index}; it has {self.n_shards}")
        return self._arrays[name].read(index)

    def tokens(self, context_ids: Int[np.ndarray, " n"]) -> Int32[np.ndarray, "n ctx_len"]:
        """The tokens of whole contexts, in the order asked for; each shard is read once.

        Raises:
            StoreError: If there is no such context, or its bytes were altered.
        """
        n_contexts = self.n_rows // self.spec.ctx_len
        if len(context_ids) and not 0 <= context_ids.min() <= context_ids.max() < n_contexts:
            raise StoreError(f"{self.path} has contexts 0 to {n_contexts - 1}, not all of these")
        shards, inner = np.divmod(context_ids, self.spec.shard_rows // self.spec.ctx_len)
        out = np.empty((len(context_ids), self.spec.ctx_len), np.int32)
        for shard in np.unique(shards).tolist():
            here = shards == shard
            out[here] = self._arrays[CONTEXT_TOKENS].read(shard)[inner[here]]
        return out

    def _site(self, site: str) -> str:
        if site not in self.sites:
            raise StoreError(f"{self.path} has no site {site!r}; it has {', '.join(self.sites)}")
        return site


def load_summary(path: Path, manifest: Manifest, document: Mapping[str, Any]) -> Summary:
    """The summary of a complete store, held to its root and to every zarr.json.

    Raises:
        StoreError: If any of them is absent or altered, or they do not fit together.
    """
    summary = read_summary(path / GROUP / summary_name(manifest.generation), manifest.spec)
    nodes = documents_of(manifest, summary)
    told = document.get("consolidated_metadata", {}).get("metadata")
    if told != nodes or summary.fingerprint(manifest.spec) != manifest.fingerprint:
        raise StoreError(f"{path / GROUP / 'zarr.json'} was altered: it does not fit the summary")
    for name in manifest.spec.arrays:
        check_document(path / GROUP / name, nodes[name])
    return summary


def _explained(path: Path, manifest: Manifest, problem: StoreError) -> StoreError:
    """Whether it is an extension, between its first and its last step, that is met."""
    if (path / GROUP / summary_name(manifest.generation + 1) / "zarr.json").exists():
        return StoreError(
            f"{path} is just being extended; try again in a moment, or if its writer died, "
            "go on with the extension"
        )
    return problem
