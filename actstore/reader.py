"""ActStore; single rows and contexts.

Single rows and whole contexts by number: for looking at, not for training.

Rows of a context lie all over their shard, so that every chunk of it is decoded to find one; what
is asked for together is sorted first, and each chunk is decoded once.

Read a complete store.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from os import cpu_count
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int, Int32, Int64, Shaped

from actstore.errors import StoreError
from actstore.layout import Layout
from actstore.manifest import CONTEXT_TOKENS, Manifest, StoreSpec
from actstore.metadata import root_document
from actstore.shardfile import ShardReader
from actstore.summary import (
    GROUP,
    Summary,
    being_extended,
    check_document,
    documents_of,
    manifest_of,
    peek,
    read_root,
    read_summary,
    summary_name,
)

Arrays = Mapping[str, ShardReader]


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """One context, in the order of its tokens."""

    tokens: Int32[np.ndarray, " ctx_len"]
    document_id: Int64[np.ndarray, " ctx_len"]
    acts: Mapping[str, Shaped[np.ndarray, "ctx_len width"]]
    """Of each site, as stored: bfloat16 as its bits, uint16."""


def read_rows(array: ShardReader, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n ..."]:
    """Rows of an array by their number in the store, in the order asked for.

    Raises:
        StoreError: If their bytes were altered.
    """
    out = array.empty(len(indices))
    order = np.argsort(indices, kind="stable")
    chunks, inner = np.divmod(indices[order], array.chunk_entries)
    starts = [*np.flatnonzero(np.diff(chunks, prepend=-1)).tolist(), len(chunks)]

    def read(here: tuple[int, int]) -> None:
        start, stop = here
        shard, chunk = divmod(int(chunks[start]), array.chunks_per_shard)
        rest = array.entries_in(shard) - chunk * array.chunk_entries
        values = array.empty(min(array.chunk_entries, rest))
        array.read_chunk(shard, chunk, values)
        out[order[start:stop]] = values[inner[start:stop]]

    with ThreadPoolExecutor(min(8, cpu_count() or 1), "actstore-lookup") as pool:
        for _ in pool.map(read, pairwise(starts)):
            pass
    return out


def read_tokens(
    arrays: Arrays, spec: StoreSpec, context_ids: Int[np.ndarray, " n"]
) -> Int32[np.ndarray, "n ctx_len"]:
    """The tokens of whole contexts, in the order asked for; each shard is read once.

    Raises:
        StoreError: If their bytes were altered.
    """
    out = np.empty((len(context_ids), spec.ctx_len), np.int32)
    for shard, here, inner in _by_shard(spec, context_ids):
        out[here] = arrays[CONTEXT_TOKENS].read(shard)[inner]
    return out


def read_contexts(
    arrays: Arrays, spec: StoreSpec, context_ids: Int[np.ndarray, " n"], sites: Sequence[str]
) -> list[Context]:
    """Whole contexts, in the order asked for.

    Raises:
        StoreError: If their bytes were altered.
    """
    tokens = read_tokens(arrays, spec, context_ids)
    rows = np.empty((len(context_ids), spec.ctx_len), np.int64)
    for shard, here, inner in _by_shard(spec, context_ids):
        rows[here] = _rows_of_shard(arrays, spec, shard)[inner]
    names = ("document_id", *sites)
    flat = {name: read_rows(arrays[name], rows.reshape(-1)) for name in names}
    found = {name: x.reshape(*rows.shape, *x.shape[1:]) for name, x in flat.items()}
    return [
        Context(
            tokens=tokens[i],
            document_id=found["document_id"][i],
            acts={site: found[site][i] for site in sites},
        )
        for i in range(len(context_ids))
    ]


def _rows_of_shard(
    arrays: Arrays, spec: StoreSpec, shard: int
) -> Int64[np.ndarray, "contexts ctx_len"]:
    """The rows of every context of a shard, by what the store says of each row."""
    first = shard * (spec.shard_rows // spec.ctx_len)
    context, position = (arrays[name].read(shard) for name in ("context_id", "position"))
    rows = np.full((len(context) // spec.ctx_len, spec.ctx_len), -1)
    rows[context - first, position] = np.arange(len(context)) + shard * spec.shard_rows
    return rows


def _by_shard(
    spec: StoreSpec, context_ids: Int[np.ndarray, " n"]
) -> Iterator[tuple[int, Bool[np.ndarray, " n"], Int[np.ndarray, " _"]]]:
    """Each shard that holds some of the contexts, which of them, and their places in it."""
    shards, inner = np.divmod(context_ids, spec.shard_rows // spec.ctx_len)
    for shard in np.unique(shards).tolist():
        here = shards == shard
        yield shard, here, inner[here]


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
            raise being_extended(path, manifest) or problem from None
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
                raise being_extended(path, manifest) or problem
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

    def rounding(self, site: str) -> Float64[np.ndarray, " width"] | None:
        """Mean squared difference that a lossy codec made to each coordinate; None if exact."""
        return self._summary.rounding.get(self._site(site))

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
        array = self._array(name)
        if not 0 <= index < self.n_shards:
            raise StoreError(f"{self.path} has no shard {index}; it has {self.n_shards}")
        return array.read(index)

    def rows(self, name: str, indices: Int[np.ndarray, " n"]) -> Shaped[np.ndarray, "n ..."]:
        """Rows of a site, or values of `token_id` and so on, by number, in the order asked for.

        Raises:
            StoreError: If there is no such array or row, or its bytes were altered.
        """
        self._require_within("rows", indices, self.n_rows)
        return read_rows(self._array(name), indices)

    def tokens(self, context_ids: Int[np.ndarray, " n"]) -> Int32[np.ndarray, "n ctx_len"]:
        """The tokens of whole contexts, in the order asked for; each shard is read once.

        Raises:
            StoreError: If there is no such context, or its bytes were altered.
        """
        self._require_within("contexts", context_ids, self.n_contexts)
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
        self._require_within("contexts", context_ids, self.n_contexts)
        wanted = self.sites if sites is None else [self._site(site) for site in sites]
        return read_contexts(self._arrays, self.spec, context_ids, wanted)

    def context(self, context_id: int) -> Context:
        """One context with its activations.

        Raises:
            StoreError: As `contexts` does.
        """
        return self.contexts(np.array([context_id]))[0]

    def _array(self, name: str) -> ShardReader:
        if name not in self._arrays:
            raise StoreError(f"{self.path} has no {name!r}; it has {', '.join(self._arrays)}")
        return self._arrays[name]

    def _require_within(self, what: str, numbers: Int[np.ndarray, " n"], n: int) -> None:
        if len(numbers) and not 0 <= numbers.min() <= numbers.max() < n:
            raise StoreError(
                f"{self.path} has {what} 0 to {n - 1}, got {numbers.min()} to {numbers.max()}"
            )

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
    fits = summary.fingerprint(manifest.spec) == manifest.fingerprint
    if not fits or document != root_document(manifest, nodes):
        raise StoreError(f"{path / GROUP / 'zarr.json'} was altered: it does not fit the summary")
    for name in manifest.spec.arrays:
        check_document(path / GROUP / name, nodes[name])
    return summary
