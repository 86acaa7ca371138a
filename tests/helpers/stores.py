"""Small stores for tests: their content is a function of the context number alone."""

import json
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from actstore.addition import adding
from actstore.layout import row_permutation
from actstore.ledger import Ledger
from actstore.manifest import StoreSpec
from actstore.metadata import shard_key
from actstore.reader import ActStore, peek
from actstore.summary import GROUP, read_summary, write_summary
from actstore.verify import verify
from actstore.writer import ActWriter, Shard

CTX_LEN = 8
TWO_SITES = {"mlp_out.1": 16, "resid.0": 24}


def make_spec(
    *,
    widths=None,
    ctx_len=CTX_LEN,
    dtype="bfloat16",
    codec="lz4",
    shard_rows=64,
    seed=0,
    source=None,
) -> StoreSpec:
    return StoreSpec.of(
        widths=widths or {"mlp_out.1": 16},
        ctx_len=ctx_len,
        dtype=dtype,
        codec=codec,
        shard_rows=shard_rows,
        seed=seed,
        source=source or {},
    )


def context(spec: StoreSpec, number: int):
    """Activations by site, tokens and document ids of one context."""
    rng = np.random.default_rng([7, number])
    acts = {}
    for site in spec.sites:
        x = rng.standard_normal((spec.ctx_len, site.width), np.float32) + 0.5
        if spec.dtype == "bfloat16":
            acts[site.name] = (x.view(np.uint32) >> 16).astype(np.uint16)
        else:
            acts[site.name] = x.astype(spec.storage)
    tokens = rng.integers(0, 500, spec.ctx_len, dtype=np.int32)
    return acts, tokens, np.full(spec.ctx_len, number // 3, np.int64)


def contexts(spec: StoreSpec, start: int, stop: int):
    """Contexts `start` to `stop`, stacked."""
    acts, tokens, documents = zip(*(context(spec, i) for i in range(start, stop)), strict=True)
    stacked = {site.name: np.stack([a[site.name] for a in acts]) for site in spec.sites}
    return stacked, np.stack(tokens), np.stack(documents)


def shard_of(spec: StoreSpec, index: int, n_rows: int, *, whole: StoreSpec | None = None) -> Shard:
    """The shard a harvest would hand over: rows of a `whole` of more sites, already permuted."""
    start = index * spec.shard_rows // spec.ctx_len
    acts, tokens, documents = contexts(whole or spec, start, start + n_rows // spec.ctx_len)
    order = row_permutation(n_rows, seed=spec.seed, shard=index)
    return Shard(
        index=index,
        acts={name: acts[name].reshape(n_rows, -1)[order] for name in spec.names},
        tokens=tokens,
        document_id=documents,
        cursor={"context": start + n_rows // spec.ctx_len},
    )


def fill(writer: ActWriter, *, stop: int | None = None, whole: StoreSpec | None = None) -> None:
    """Write what is missing and finish; with `stop`, leave it unfinished before that shard."""
    for k in range(writer.next_shard, writer.n_shards if stop is None else stop):
        writer.write_shard(shard_of(writer.spec, k, writer.rows_in(k), whole=whole))
    if stop is None:
        writer.finish()


def write_store(
    path: Path,
    spec: StoreSpec,
    *,
    n_rows: int,
    stop: int | None = None,
    whole: StoreSpec | None = None,
) -> Path:
    """Create, resume or extend a store; its sites may be some of a `whole`."""
    with ActWriter.create_or_resume(path, spec, n_rows=n_rows, threads=2) as writer:
        fill(writer, stop=stop, whole=whole)
    return path


def add_site(path: Path, name: str, *, whole: StoreSpec, stop: int | None = None) -> Path:
    """Give a store one more site of a `whole`."""
    with adding(path, {name: whole.width(name)}, threads=2) as writer:
        fill(writer, stop=stop, whole=whole)
    return path


def write_rows(path: Path, spec: StoreSpec, blocks: Iterable[np.ndarray], *, n_rows: int) -> Path:
    """A store of blocks of rows of its one site, in the order of contexts; every token is 0."""
    (site,) = spec.sites
    with ActWriter.create_or_resume(path, spec, n_rows=n_rows) as writer:
        for rows in blocks:
            acts = rows.reshape(-1, spec.ctx_len, site.width)
            writer.append({site.name: acts}, tokens=np.zeros(acts.shape[:2], np.int32))
        writer.finish()
    return path


def multiplied(path: Path, spec: StoreSpec, n: int) -> Path:
    """The one shard of a store `n` times over, as hard links, under a root that counts them."""
    root, old = path / GROUP, peek(path)
    for name in spec.arrays:
        for k in range(1, n):
            link = root / shard_key(name, k)
            link.parent.mkdir(exist_ok=True)
            link.hardlink_to(root / shard_key(name, 0))
    one = read_summary(root / "summary-1", spec)
    summary = replace(
        one,
        shard_rows=np.repeat(one.shard_rows, n),
        shard_bytes=np.repeat(one.shard_bytes, n, 0),
        shard_crc32c=np.repeat(one.shard_crc32c, n, 0),
    )
    write_summary(root / "summary-2", summary)
    Ledger(path=path, manifest=old, layout=spec.layout(n * old.n_rows)).publish(summary)
    return path


def column(store: ActStore, name: str) -> np.ndarray:
    """All of one array."""
    return np.concatenate([store.shard(name, k) for k in range(store.n_shards)])


def require_same_store(path: Path, wanted: Path) -> None:
    """Bytes of all shards, statistics, fingerprint; and nothing is left over."""
    got, old = ActStore.open(path), ActStore.open(wanted)
    assert got.manifest == replace(old.manifest, generation=got.manifest.generation)
    arrays, summary = set(got.spec.arrays), f"summary-{got.manifest.generation}"
    files = files_of(path)
    assert {name.split("/")[0] for name in files} == arrays | {summary, "zarr.json"}
    for name, data in files_of(wanted).items():
        assert name.split("/")[0] not in arrays or files[name] == data, name
    for site in old.sites:
        for of_site in (ActStore.mean, ActStore.var, ActStore.rounding):
            np.testing.assert_array_equal(of_site(got, site), of_site(old, site))
    assert verify(path) == []
    assert {p.name for p in path.iterdir()} == {"data.zarr", "journal.jsonl", "moments", "LOCK"}


def require_right_rows(store: ActStore) -> None:
    """Every row of the store is the one that was written, and none is missing."""
    spec = store.spec
    acts, tokens, documents = contexts(spec, 0, store.n_contexts)
    context_id, position = column(store, "context_id"), column(store, "position")
    numbers = context_id * spec.ctx_len + position
    np.testing.assert_array_equal(np.sort(numbers), np.arange(store.n_rows))
    for name, values in {**acts, "token_id": tokens, "document_id": documents}.items():
        np.testing.assert_array_equal(column(store, name), values[context_id, position], name)
    np.testing.assert_array_equal(column(store, "context_tokens"), tokens)


def files_of(path: Path) -> dict[str, bytes]:
    """Every file of the Zarr group."""
    root = path / GROUP
    found = sorted(p for p in root.rglob("*") if p.is_file())
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in found}


def shard_file(path: Path, name: str, shard: int) -> Path:
    """The file of a shard."""
    return path / GROUP / shard_key(name, shard)


def flip(file: Path, place: int, bit: int = 0) -> None:
    """Flip one bit of a file."""
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


def edit_json(file: Path, change) -> None:
    """Change a document in place."""
    document = json.loads(file.read_bytes())
    change(document)
    file.write_text(json.dumps(document))


def decoding() -> list[threading.Thread]:
    """Threads that decode batches just now."""
    return [t for t in threading.enumerate() if t.name.startswith("actstore-decode")]


def as_numbers(values: np.ndarray) -> np.ndarray:
    """Stored values as float64."""
    if values.dtype == np.uint16:
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)
