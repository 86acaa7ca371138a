"""What a store says of itself, as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from actstore.addition import under_way
from actstore.files import size_of
from actstore.ledger import read_journal
from actstore.manifest import Manifest
from actstore.metadata import shard_key
from actstore.reader import ActStore
from actstore.summary import GROUP, peek

CHECKS = "crc32c of every chunk, of every shard and of the root"


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """What rounding before compression cost a site."""

    relative_error: float
    """Summed squared error over summed variance of all coordinates."""
    worst_coordinate: float
    """The largest such ratio of one coordinate, of those that vary."""


def fidelity_of(store: ActStore) -> dict[str, Fidelity]:
    """By site; empty if the store keeps every bit it was given."""
    told: dict[str, Fidelity] = {}
    for site in store.sites:
        lost, var = store.rounding(site), store.var(site)
        if lost is not None:
            varies = var > 0
            told[site] = Fidelity(
                relative_error=float(lost.sum() / var.sum()) if varies.any() else 0.0,
                worst_coordinate=float((lost[varies] / var[varies]).max(initial=0.0)),
            )
    return told


def facts_of(path: Path, manifest: Manifest) -> dict[str, object]:
    """What the root tells, of any store."""
    spec = manifest.spec
    return {
        "path": str(path),
        "state": manifest.state,
        "generation": manifest.generation,
        "n_rows": manifest.n_rows,
        "n_contexts": manifest.n_rows // spec.ctx_len,
        "ctx_len": spec.ctx_len,
        "sites": {site.name: site.width for site in spec.sites},
        "dtype": spec.dtype,
        "codec": spec.codec,
        "chunk_rows": spec.chunk_rows,
        "shard_rows": spec.shard_rows,
        "n_shards": spec.layout(manifest.n_rows).n_shards,
        "seed": spec.seed,
        "source": dict(spec.source),
        "source_exhausted": manifest.source_exhausted,
        "fingerprint": manifest.fingerprint,
    }


def listed(path: Path, told: Manifest | str) -> dict[str, object]:
    """Of any store that was found, or of what looked like one: why it cannot be told."""
    return {"path": str(path), "problem": told} if isinstance(told, str) else facts_of(path, told)


def store_facts(path: Path) -> dict[str, object]:
    """Of the store at a path: what the root tells, and more where it is complete."""
    manifest = peek(path)
    if manifest is None or manifest.state == "complete":
        return _complete(ActStore.open(path))
    safe = sum(entry.rows for entry in read_journal(path))
    return {**facts_of(path, manifest), "n_rows_safe": safe}


def _complete(store: ActStore) -> dict[str, object]:
    """Sizes, statistics and, where it was rounded, what that cost."""
    statistics = {site: _statistics(store, site) for site in store.sites}
    stored, raw = (sum(facts[key] for facts in statistics.values()) for key in ("bytes", "raw"))
    fidelity, begun = fidelity_of(store), under_way(store.path)
    return {
        **facts_of(store.path, store.manifest),
        "adding": [site.name for site in begun.spec.sites] if begun is not None else [],
        "checks": CHECKS,
        "n_bytes": store.n_bytes,
        "site_bytes": stored,
        "raw_bytes": raw,
        "ratio": stored / raw,
        "statistics": statistics,
        "fidelity": {site: asdict(told) for site, told in fidelity.items()} or None,
    }


def _statistics(store: ActStore, site: str) -> Mapping[str, int | float]:
    files = (store.path / GROUP / shard_key(site, shard) for shard in range(store.n_shards))
    return {
        "bytes": sum(size_of(file) or 0 for file in files),
        "raw": store.n_rows * store.width(site) * store.spec.storage.itemsize,
        "mean_norm": float(np.linalg.norm(store.mean(site))),
        "variance": float(store.var(site).sum()),
    }
