"""What a store says of itself."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from actstore.codec import STORAGE, check_codec, checksum, kept_bits
from actstore.errors import StoreError
from actstore.files import PARTIAL, canonical_json
from actstore.layout import Layout, plan_layout

FORMAT_VERSION = 2
READABLE = (1, 2)
"""Versions that are read; what is completed is of the newest."""
ROW_ARRAYS = {
    "token_id": "int32",
    "context_id": "int64",
    "position": "int32",
    "document_id": "int64",
}
"""One value a row, aligned with the sites."""
CONTEXT_TOKENS = "context_tokens"
TOKEN_ARRAYS = (*ROW_ARRAYS, CONTEXT_TOKENS)
"""What two stores of the same tokens have in common; the first columns of a summary."""
RESERVED = (*TOKEN_ARRAYS, "zarr.json")
"""Names in a store's group that are no site's."""

State = Literal["writing", "complete"]

METADATA_BYTES = 28
"""Of a row, beside its activations."""
MAX_SHARD_BYTES = 2**32
MAX_SHARDS = 100_000
MAX_NAME = 200
"""Letters of a site's name: with what is put before it, a file's name on every system."""


@dataclass(frozen=True, kw_only=True)
class SiteSpec:
    """One array of activations: where they were taken, as `mlp_out.3`, and how wide a row is."""

    name: str
    width: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name):
            raise StoreError(
                f"{self.name[:20]!r} cannot name a site: use letters, digits and . _ -, "
                "and begin with neither . nor -"
            )
        if len(self.name) > MAX_NAME:
            raise StoreError(
                f"{self.name[:20]}... of {len(self.name)} letters cannot name a site: "
                f"use at most {MAX_NAME}"
            )
        folded = self.name.lower()  # as systems do that take two cases for one name
        if folded in RESERVED or folded.startswith("summary-") or folded.endswith(PARTIAL):
            raise StoreError(f"{self.name!r} cannot name a site: the store uses it itself")
        _positive(width=self.width)


@dataclass(frozen=True, kw_only=True)
class StoreSpec:
    """What a store is told when it is created; two harvests with equal specs hold equal rows."""

    sites: tuple[SiteSpec, ...]
    ctx_len: int
    dtype: str
    codec: str = "lz4"
    chunk_rows: int
    shard_rows: int
    seed: int = 0
    """Of the order of rows inside each shard."""
    source: Mapping[str, object] = field(default_factory=dict[str, object])
    """Where the rows come from, as JSON: identity to whoever harvests, opaque here."""

    def __post_init__(self) -> None:
        require_sites(self.names)
        _positive(ctx_len=self.ctx_len, chunk_rows=self.chunk_rows, shard_rows=self.shard_rows)
        _require_known(self.dtype)
        check_codec(self.codec, self.dtype)
        if self.seed < 0:
            raise StoreError(f"seed must not be negative, got {self.seed}")
        for name in ("chunk_rows", "ctx_len"):
            if self.shard_rows % getattr(self, name):
                raise StoreError(
                    f"shard_rows {self.shard_rows} is not a multiple of "
                    f"{name} {getattr(self, name)}; let plan_layout choose it"
                )

    @staticmethod
    def of(
        *,
        widths: Mapping[str, int],
        ctx_len: int,
        dtype: str,
        codec: str = "lz4",
        shard_rows: int | None = None,
        seed: int = 0,
        source: Mapping[str, object] | None = None,
    ) -> "StoreSpec":
        """A spec for sites of these widths, with the layout that `plan_layout` gives."""
        sites = tuple(SiteSpec(name=name, width=width) for name, width in widths.items())
        require_sites([*widths])
        _require_known(dtype)
        _positive(ctx_len=ctx_len)
        chunk_rows, shard_rows = plan_layout(
            widths=tuple(widths.values()),
            itemsize=STORAGE[dtype].itemsize,
            ctx_len=ctx_len,
            shard_rows=shard_rows,
        )
        return StoreSpec(
            sites=sites,
            ctx_len=ctx_len,
            dtype=dtype,
            codec=codec,
            chunk_rows=chunk_rows,
            shard_rows=shard_rows,
            seed=seed,
            source=source or {},
        )

    @property
    def storage(self) -> np.dtype:
        """The numpy dtype of stored values; bfloat16 is kept as its bits, uint16."""
        return STORAGE[self.dtype]

    @property
    def lossy(self) -> bool:
        """Whether activations are rounded before they are stored."""
        return kept_bits(self.codec) is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Of its sites."""
        return tuple(site.name for site in self.sites)

    @property
    def arrays(self) -> tuple[str, ...]:
        """Every array that has shards: what is written first comes first."""
        return (*TOKEN_ARRAYS, *self.names)

    def holds(self, other: "StoreSpec") -> bool:
        """Whether a store of this spec has the sites of the other, too."""
        return set(other.names) <= set(self.names)

    def width(self, site: str) -> int:
        """Values of one row at a site."""
        return next(spec.width for spec in self.sites if spec.name == site)

    def layout(self, n_rows: int) -> Layout:
        """How `n_rows` rows fall into shards and chunks."""
        return Layout(n_rows=n_rows, shard_rows=self.shard_rows, chunk_rows=self.chunk_rows)

    def require_sensible(self, n_rows: int) -> None:
        """Hold the shards of a new store of `n_rows` rows to what memory and folders bear.

        Raises:
            StoreError: If `shard_rows` was chosen, and they do not.
        """
        widths = [site.width for site in self.sites]
        itemsize, shard = self.storage.itemsize, self.shard_rows
        _, usual = plan_layout(widths=widths, itemsize=itemsize, ctx_len=self.ctx_len)
        advice = f"leave it out, for {usual:,} a shard"
        n_bytes = shard * (max(widths) * itemsize + METADATA_BYTES)
        if shard > usual and n_bytes > MAX_SHARD_BYTES:
            raise StoreError(
                f"shard_rows {shard:,} makes shards of {n_bytes / 2**30:,.1f} GiB a site, which a "
                f"writer holds in memory: {advice}"
            )
        n_shards = self.layout(n_rows).n_shards
        if shard < usual and n_shards > MAX_SHARDS:
            raise StoreError(
                f"shard_rows {shard:,} makes {n_shards:,} shards, each a file of every array: "
                f"{advice}"
            )

    def as_json(self) -> dict[str, Any]:
        """The spec as plain JSON."""
        return {
            **asdict(self),
            "sites": [asdict(s) for s in self.sites],
            "source": dict(self.source),
        }

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "StoreSpec":
        """Inverse of `as_json`."""
        rest = dict(document)
        sites = tuple(SiteSpec(**site) for site in rest.pop("sites"))
        return StoreSpec(sites=sites, **rest)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What the root of a store says."""

    spec: StoreSpec
    n_rows: int
    """Rows it holds once complete; rows it is meant to hold while it is being written."""
    state: State
    generation: int = 0
    """How often the store was completed: 1, and one more after each extension."""
    source_exhausted: bool = False
    """The text ended before the rows that were asked for."""
    fingerprint: str = ""
    """sha256 of the content, by spec and summary; empty until complete."""
    format_version: int = FORMAT_VERSION

    def as_attributes(self) -> dict[str, Any]:
        """The attributes of the root group, under the name they stand under."""
        told = {**asdict(self), "spec": self.spec.as_json()}
        return {"actstore": {**told, "crc32c": checksum(canonical_json(told))}}

    @staticmethod
    def from_attributes(attributes: Mapping[str, Any]) -> "Manifest":
        """Inverse of `as_attributes`."""
        told = dict(attributes.get("actstore", {}))
        version = told.get("format_version")
        if version is None:
            raise StoreError("it is not an activation store")
        if version not in READABLE:
            raise StoreError(
                f"it has format version {version}; this version reads {FORMAT_VERSION} and before: "
                "use the version that wrote it, or write it anew"
            )
        if told.pop("crc32c", None) != checksum(canonical_json(told)):
            raise StoreError("its attributes do not match their checksum")
        spec = StoreSpec.from_json(told.pop("spec"))
        return Manifest(spec=spec, **told)


def differences(
    there: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> Iterator[str]:
    """Each field in which two JSON documents differ, with both values."""
    for name in dict.fromkeys((*there, *now)):
        old, new = there.get(name, "absent"), now.get(name, "absent")
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{prefix}{name}.")
        elif old != new:
            yield f"{prefix}{name}: {_brief(old)} there, {_brief(new)} now"


def _brief(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(_brief, value))
    if isinstance(value, Mapping):
        return " ".join(map(str, value.values()))
    return str(value)


def require_sites(names: Sequence[str]) -> None:
    """Refuse no sites, one twice, and those that some systems take for one another."""
    if not names or len(set(names)) < len(names):
        raise StoreError(f"a store needs sites, each once, got {[*names]}")
    known: dict[str, str] = {}
    for name in names:
        other = known.setdefault(name.lower(), name)
        if other != name:
            raise StoreError(
                f"{other!r} and {name!r} differ in case alone, which is one folder on some "
                "systems: rename a site"
            )


def _positive(**values: int) -> None:
    for name, value in values.items():
        if value <= 0:
            raise StoreError(f"{name} must be positive, got {value}")


def _require_known(dtype: str) -> None:
    if dtype not in STORAGE:
        raise StoreError(f"unknown dtype {dtype!r}; known are {', '.join(STORAGE)}")
