"""From one finished shard in memory to its files, not yet committed."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Int32, Int64, Shaped

from actstore.encoding import Encoded, Encoder
from actstore.errors import NonFiniteError, StoreError
from actstore.files import make_folder, partial_of, sync_file, sync_folder, write_all
from actstore.layout import row_permutation
from actstore.manifest import CONTEXT_TOKENS, StoreSpec
from actstore.metadata import codec_of, shard_and_chunk
from actstore.moments import Moments, as_float
from actstore.shardfile import Parts, Tally, shard_parts

Rows = Shaped[np.ndarray, "rows width"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Shard:
    """One finished shard, on its way into a store."""

    index: int
    acts: Mapping[str, Rows]
    """Rows by site, in the order `row_permutation` gives; bfloat16 as its bits, uint16."""
    tokens: Int32[np.ndarray, "contexts ctx_len"]
    """In the order of contexts, as is `document_id`."""
    document_id: Int64[np.ndarray, "contexts ctx_len"]
    cursor: Mapping[str, object]
    """Where the source stands after this shard, as JSON."""

    def check(self, spec: StoreSpec) -> None:
        """Hold shapes and dtypes to the store's."""
        wanted = {site.name: (self.n_rows, site.width) for site in spec.sites}
        if set(self.acts) != set(wanted):
            raise StoreError(f"expected rows of {', '.join(wanted)}, got {', '.join(self.acts)}")
        for name, rows in self.acts.items():
            if rows.shape != wanted[name] or rows.dtype != spec.storage:
                raise StoreError(
                    f"{name}: expected {wanted[name]} {spec.storage}, got {rows.shape} {rows.dtype}"
                )
        if self.tokens.shape[1] != spec.ctx_len or self.document_id.shape != self.tokens.shape:
            raise StoreError(
                f"expected tokens and document ids of (contexts, {spec.ctx_len}), "
                f"got {self.tokens.shape} and {self.document_id.shape}"
            )

    @property
    def n_rows(self) -> int:
        """Rows of each site."""
        return self.tokens.size

    def columns(self, spec: StoreSpec) -> dict[str, Shaped[np.ndarray, "..."]]:
        """The arrays beside the activations, in stored order."""
        order = row_permutation(self.n_rows, seed=spec.seed, shard=self.index)
        context, position = np.divmod(order, spec.ctx_len)
        return {
            "token_id": self.tokens.reshape(-1)[order].astype("<i4"),
            "context_id": context + self.index * (spec.shard_rows // spec.ctx_len),
            "position": position.astype("<i4"),
            "document_id": self.document_id.reshape(-1)[order].astype("<i8"),
            CONTEXT_TOKENS: self.tokens.astype("<i4"),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class Written:
    """Files of a shard under their temporary names."""

    shard: Shard
    open_files: dict[Path, int] = field(default_factory=dict[Path, int])
    """Descriptors by final path, in the order in which they become final."""
    tallies: dict[str, Tally] = field(default_factory=dict[str, Tally])
    moments: dict[str, list[Moments]] = field(default_factory=dict[str, list[Moments]])
    """Of some chunks each, in order, by site."""

    @property
    def files(self) -> dict[str, tuple[int, int]]:
        """Size and checksum of each array's file, as the journal has them."""
        return {name: (tally.size, tally.crc) for name, tally in self.tallies.items()}

    def place(self) -> None:
        """Sync the files and give them their names."""
        for path, fd in self.open_files.items():
            sync_file(fd)
            partial_of(path).replace(path)
            sync_folder(path.parent)
        for folder in {path.parent.parent for path in self.open_files}:
            sync_folder(folder)

    def discard(self, path: Path) -> None:
        """Let go of one file, removing it if it has no name yet."""
        os.close(self.open_files.pop(path))
        partial_of(path).unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of all of them."""
        for path in tuple(self.open_files):
            self.discard(path)


def write_files(
    shard: Shard, spec: StoreSpec, place: Callable[[str, int], Path], encoder: Encoder
) -> Written:
    """Encode a shard and write its files under the temporary names of their `place`.

    Raises:
        NonFiniteError: If a value is NaN or infinite.
        OSError: If the disk is full or fails. Nothing is left behind in either case.
    """
    values = {**shard.columns(spec), **shard.acts}
    written = Written(shard=shard)
    with ExitStack() as stack:
        pieces: dict[str, Generator[Encoded]] = {}
        for name in spec.arrays:
            codec, (_, chunk) = codec_of(spec, name), shard_and_chunk(spec, name)
            encoded = encoder.encode(values[name], codec=codec, chunk=chunk)
            pieces[name] = stack.enter_context(closing(encoded))
        try:
            for name, encoded in pieces.items():
                rows, chunk = shard_and_chunk(spec, name)
                path = place(name, shard.index)
                _write_file(written, name, path, encoded, slots=rows // chunk)
            _require_finite(written, spec)
        except BaseException:
            written.close()
            raise
    return written


def _write_file(
    written: Written,
    name: str,
    path: Path,
    pieces: Iterable[Encoded],
    *,
    slots: int,
) -> None:
    make_folder(path.parent)
    fd = os.open(partial_of(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    written.open_files[path] = fd
    tally = written.tallies[name] = Tally()
    moments = written.moments[name] = []

    def encoded() -> Iterator[Sequence[Parts]]:
        for some in pieces:
            moments.extend(some.moments)
            yield some.chunks

    for parts in shard_parts(encoded(), slots=slots, tally=tally):
        write_all(fd, parts)


def _require_finite(written: Written, spec: StoreSpec) -> None:
    """Find the first row, in stored order, that is not finite."""
    for site in spec.sites:
        if all(moments.finite for moments in written.moments[site.name]):
            continue
        shard = written.shard
        finite = np.isfinite(as_float(shard.acts[site.name])).all(axis=1)
        columns = shard.columns(spec)
        row = int(np.argmin(finite))
        raise NonFiniteError(
            site=site.name,
            context_id=int(columns["context_id"][row]),
            position=int(columns["position"][row]),
        )
