"""Open a complete store: rows by number, shuffled batches, and what is known of all rows."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from html import escape
from os import PathLike
from pathlib import Path
from typing import Any, overload

import numpy as np
from jaxtyping import Float64, Int, Int32, Shaped

from actstore.batches import Batches
from actstore.chunks import ChunkStore
from actstore.errors import StoreError
from actstore.lookup import Context, Rows, read_contexts, read_rows, read_tokens
from actstore.manifest import ROW_ARRAYS, Manifest
from actstore.metadata import root_document
from actstore.shardfile import ShardReader
from actstore.summary import (
    GROUP,
    Summary,
    being_extended,
    check_document,
    documents_of,
    peek,
    read_root,
    read_summary,
    require_root,
    summary_name,
)

__all__ = ["ActStore", "peek"]


@dataclass(frozen=True, kw_only=True, eq=False)
class ActStore(ChunkStore):
    """A complete store: sites aligned by row, and the token each row stands for.

        store = ActStore.open("acts.actstore")
        store["mlp_out.2"][:10]                                # float32 [10, width]
        for x in store.batches("mlp_out.2", 4096, seed=0):     # each row once, shuffled
            ...

    Reading is safe from many threads. A store that is extended meanwhile goes on as it was opened.
    """

    _summary: Summary

    @classmethod
    def open(cls, path: str | PathLike[str]) -> "ActStore":
        """Open a store, having checked that it is whole and of a version this code reads.

        Bytes inside of shards are checked as they are read.

        Raises:
            StoreError: If it is absent, unfinished, of another version, or damaged.
        """
        path = Path(path)
        before = read_root(path)
        try:
            return cls._open(path)
        except StoreError:
            if read_root(path) != before:  # an extension was completed meanwhile
                return cls._open(path)
            raise

    @classmethod
    def _open(cls, path: Path) -> "ActStore":
        document, manifest = require_root(path)
        if manifest.state != "complete":
            raise StoreError(
                f"{path} is not finished; go on with it: the same saepipe harvest or store import "
                "that began it"
            )
        try:
            summary = load_summary(path, manifest, document)
        except StoreError as problem:
            raise being_extended(path, manifest) or problem from None
        arrays = shard_readers(path, manifest, summary)
        for array in arrays.values():
            for problem in array.check_files():
                raise being_extended(path, manifest) or problem
            array.keep_last()
        return cls(path=path, manifest=manifest, _summary=summary, _arrays=arrays)

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

    def rounding(self, site: str) -> Float64[np.ndarray, " width"] | None:
        """Mean squared difference that a lossy codec made to each coordinate; None if exact."""
        return self._summary.rounding.get(self._site(site))

    def rows(self, name: str, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n ..."]:
        """Rows of a site, or values of `token_id` and so on, by number, in the order asked for.

        Raises:
            StoreError: If there is no such array or row, or its bytes were altered.
        """
        self.require_within("rows", indices, self.n_rows)
        return read_rows(self.array(name), indices)

    def tokens(self, context_ids: Int[np.ndarray, " n"]) -> Int32[np.ndarray, "n ctx_len"]:
        """The tokens of whole contexts, in the order asked for; each shard is read once.

        Raises:
            StoreError: If there is no such context, or its bytes were altered.
        """
        self.require_within("contexts", context_ids, self.n_contexts)
        return read_tokens(self._arrays, self.spec, context_ids)

    def contexts(
        self, context_ids: Int[np.ndarray, " n"], *, sites: Sequence[str] | None = None
    ) -> list[Context]:
        """Whole contexts with their activations, in the order asked for: ask for many at once.

        Args:
            context_ids: Which ones; a shard is decoded once for all of its own.
            sites: None means all.

        Raises:
            StoreError: If there is no such context or site, or its bytes were altered.
        """
        self.require_within("contexts", context_ids, self.n_contexts)
        wanted = self.sites if sites is None else [self._site(site) for site in sites]
        found = read_contexts(self._arrays, self.spec, context_ids, wanted)
        return [
            replace(one, acts={site: self[site].settled(x) for site, x in one.acts.items()})
            for one in found
        ]

    def context(self, context_id: int) -> Context:
        """One context with its activations.

        Raises:
            StoreError: As `contexts` does.
        """
        return self.contexts(np.array([context_id]))[0]

    def __getitem__(self, name: str) -> Rows:
        """The rows of a site as float32, or `token_id` and so on, read where they are asked for.

        Raises:
            StoreError: If there is no such array.
        """
        if name not in self.sites and name not in ROW_ARRAYS:
            has = ", ".join((*self.sites, *ROW_ARRAYS))
            raise StoreError(f"{self.path} has no site {name!r}; it has {has}")
        return Rows(store=self, name=name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.sites)

    @overload
    def batches(
        self,
        sites: str,
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = 1,
        **options: Any,  # noqa: ANN401
    ) -> Iterator[np.ndarray]: ...

    @overload
    def batches(
        self,
        sites: list[str] | tuple[str, ...],
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = 1,
        **options: Any,  # noqa: ANN401
    ) -> Iterator[dict[str, np.ndarray]]: ...

    def batches(
        self,
        sites: str | list[str] | tuple[str, ...],
        batch_size: int,
        *,
        seed: int = 0,
        epochs: int | None = 1,
        **options: Any,
    ) -> Iterator[Any]:
        """Shuffled batches of activations as float32: every row comes once an epoch.

        They are those of `Batches`, which also opens the stream at any step, in parts for several
        processes, and as it is stored.

        Args:
            sites: One site: batches are arrays `[batch_size, width]`. Or several names, `token_id`
                and the like among them: batches are such arrays by name, rows aligned.
            batch_size: Rows of a batch.
            seed: Of the order.
            epochs: Passes over the store, in whole batches; None never ends.
            options: What else `Batches` takes: `window_rows`, `threads`.

        Raises:
            StoreError: If there is no such site, a setting is impossible, or, while iterating, the
                bytes of the store were altered.
        """
        names = (sites,) if isinstance(sites, str) else tuple(sites)
        rows_of = {name: self[name] for name in names}  # or there is no such array
        batches = Batches(
            store=self,
            sites=tuple(name for name in names if name not in ROW_ARRAYS),
            metadata=tuple(name for name in names if name in ROW_ARRAYS),
            batch_size=batch_size,
            seed=seed,
            **options,
        )
        n = None if epochs is None else epochs * self.n_rows // batch_size

        def drawn() -> Iterator[Any]:
            with closing(batches.start_at(0, n)) as stream:
                for batch in stream:
                    found = {name: rows_of[name].settled(rows) for name, rows in batch.items()}
                    yield found[sites] if isinstance(sites, str) else found

        return drawn()

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        source = self.spec.source
        told = {
            "rows": f"{self.n_rows:,}, in contexts of {self.spec.ctx_len} tokens",
            "sites": ", ".join(f"{site.name} ({site.width} wide)" for site in self.spec.sites),
            "model": source.get("model", "-"),
            "text": source.get("text", "-"),
            "kept as": f"{self.spec.dtype}, {self.spec.codec}, {self.n_bytes / 1e6:,.3g} MB",
            "fingerprint": f"{self.fingerprint[:16]}…",
        }
        rows = "".join(
            f'<tr><th style="text-align: left">{name}</th>'
            f'<td style="text-align: left">{escape(str(value))}</td></tr>'
            for name, value in told.items()
        )
        return f"<table><caption>{escape(str(self.path))}</caption>{rows}</table>"

    def __repr__(self) -> str:
        sites = ", ".join(f"{site.name} [{site.width}]" for site in self.spec.sites)
        size = f"{self.spec.dtype}, {self.n_bytes / 1e6:,.3g} MB"
        return f"ActStore({self.path}: {self.n_rows:,} rows of {sites}; {size})"


def shard_readers(path: Path, manifest: Manifest, summary: Summary) -> dict[str, ShardReader]:
    """Of every array of a complete store."""
    spec, n_rows = manifest.spec, manifest.n_rows
    columns = zip(summary.shard_bytes.T.tolist(), summary.shard_crc32c.T.tolist(), strict=True)
    return {
        name: ShardReader(path / GROUP, spec, name, n_rows=n_rows, sizes=sizes, crcs=crcs)
        for name, (sizes, crcs) in zip(spec.arrays, columns, strict=True)
    }


def load_summary(path: Path, manifest: Manifest, document: Mapping[str, Any]) -> Summary:
    """The summary of a complete store, held to its root and to every zarr.json."""
    summary = read_summary(path / GROUP / summary_name(manifest.generation), manifest.spec)
    nodes = documents_of(manifest, summary)
    if not summary.is_of(manifest) or document != root_document(manifest, nodes):
        raise StoreError(f"{path / GROUP / 'zarr.json'} was altered: it does not fit the summary")
    for name in manifest.spec.arrays:
        check_document(path / GROUP / name, nodes[name])
    return summary
