import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from actstore.errors import StoreError
from actstore.manifest import FORMAT_VERSION, Manifest, SiteSpec, StoreSpec
from actstore.reader import ActStore, peek
from actstore.removal import find_stores
from actstore.verify import verify
from actstore.writer import ActWriter
from tests.helpers.refusals import refused
from tests.helpers.stores import (
    TWO_SITES,
    column,
    edit_json,
    make_spec,
    multiplied,
    shard_file,
    shard_of,
    write_store,
)


def test_a_store_tells_what_it_holds(make_store):
    store = ActStore.open(make_store(widths=TWO_SITES, source={"a": [1]}))
    assert store.sites == ("mlp_out.1", "resid.0")
    assert (store.n_rows, store.n_shards, store.width("resid.0")) == (200, 4, 24)
    assert store.spec.source == {"a": [1]}
    assert store.manifest == peek(store.path)
    assert len(store.fingerprint) == 64


def test_chunks_and_shards_hold_the_same_rows(make_store):
    store = ActStore.open(make_store())
    chunks = []
    for chunk in range(store.layout.n_chunks):
        out = np.empty((min(8, 200 - 8 * chunk), 16), np.uint16)
        store.want_chunk("mlp_out.1", chunk)
        store.read_chunk_into("mlp_out.1", chunk, out)
        chunks.append(out)
    np.testing.assert_array_equal(np.concatenate(chunks), column(store, "mlp_out.1"))


def test_the_fingerprint_is_of_content(tmp_path):
    prints = [
        ActStore.open(write_store(tmp_path / str(i), make_spec(**spec), n_rows=n)).fingerprint
        for i, (spec, n) in enumerate(
            [({}, 200), ({}, 208), ({"seed": 1}, 200), ({"source": {"model": "x"}}, 200)]
        )
    ]
    again = ActStore.open(write_store(tmp_path / "again", make_spec(), n_rows=200))
    assert len(set(prints)) == 4 and again.fingerprint == prints[0]


def test_an_absent_or_unfinished_store_is_refused_with_how_to_go_on(tmp_path):
    with pytest.raises(StoreError, match="there is no activation store at .*nowhere"):
        ActStore.open(tmp_path / "nowhere")
    path = write_store(tmp_path / "s", make_spec(), n_rows=200, stop=4)
    with pytest.raises(StoreError, match="is not finished; go on with it: the same saepipe"):
        ActStore.open(path)


def test_another_format_version_is_refused(make_store):
    path = make_store()
    edit_json(
        path / "data.zarr" / "zarr.json",
        lambda d: d["attributes"]["actstore"].update(format_version=3),
    )
    for refuse in (ActStore.open, peek):
        with pytest.raises(StoreError, match="has format version 3; this version reads 2 and bef"):
            refuse(path)
    assert FORMAT_VERSION == 2


def test_another_zarr_group_is_refused(tmp_path):
    root = tmp_path / "s" / "data.zarr"
    root.mkdir(parents=True)
    (root / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    with pytest.raises(StoreError, match="it is not an activation store"):
        ActStore.open(tmp_path / "s")
    (root / "zarr.json").write_text("[]")
    with pytest.raises(StoreError, match="is damaged"):
        ActStore.open(tmp_path / "s")


def test_a_store_in_the_last_steps_of_an_extension_says_so(make_store):
    path = make_store()
    root = path / "data.zarr"
    shutil.copytree(root / "summary-1", root / "summary-2")
    shard_file(path, "mlp_out.1", 3).write_bytes(b"longer")
    with pytest.raises(StoreError, match="is just being extended; try again in a moment"):
        ActStore.open(path)


def test_a_copy_of_the_group_alone_is_a_whole_store(make_store, tmp_path):
    path = make_store()
    copy = tmp_path / "copy with späces"
    shutil.copytree(path / "data.zarr", copy / "data.zarr")
    assert ActStore.open(copy).fingerprint == ActStore.open(path).fingerprint
    assert verify(copy) == []


def test_stores_below_a_folder_are_found(tmp_path):
    write_store(tmp_path / "b.actstore", make_spec(), n_rows=64)
    write_store(tmp_path / "deep" / "er" / "a.actstore", make_spec(), n_rows=64, stop=0)
    (tmp_path / "c.actstore" / "data.zarr").mkdir(parents=True)
    (tmp_path / "c.actstore" / "data.zarr" / "zarr.json").write_text("?")
    (tmp_path / "not a store").mkdir()
    found = find_stores(tmp_path)
    assert [path.name for path, _ in found] == ["b.actstore", "c.actstore", "a.actstore"]
    (_, whole), (_, damaged), (_, unfinished) = found
    assert isinstance(whole, Manifest) and whole.state == "complete"
    assert isinstance(unfinished, Manifest) and unfinished.state == "writing"
    assert "is damaged: it is not JSON" in damaged
    (tmp_path / "link.actstore").symlink_to("b.actstore")
    (tmp_path / "deep" / "circle").symlink_to("..")
    names = [path.name for path, _ in find_stores(tmp_path)]
    assert names == ["b.actstore", "c.actstore", "link.actstore", "a.actstore"]
    with pytest.raises(StoreError, match="is not a folder"):
        find_stores(tmp_path / "b.actstore" / "LOCK")


def test_names_that_cannot_be_folders_are_refused():
    for name in (
        "", "a/b", "..", "token_id", "context_tokens", "summary-1", "é", "a\nb", "x\x1b", "x" * 201,
        "zarr.json", ".partial", "x.partial", "Zarr.JSON", "Token_id", "Summary-1", "x.Partial",
    ):  # fmt: skip
        with refused(StoreError, "cannot name a site"):
            SiteSpec(name=name, width=4)
        with refused(StoreError, "cannot name a site"):
            StoreSpec.of(widths={name: 4}, ctx_len=8, dtype="float32")
    with pytest.raises(StoreError, match="width must be positive, got 0"):
        SiteSpec(name="x", width=0)


def test_impossible_specs_are_refused():
    site = SiteSpec(name="x", width=4)
    good = {"sites": (site,), "ctx_len": 8, "dtype": "float32", "chunk_rows": 8, "shard_rows": 64}
    StoreSpec(**good)
    for change, told in [
        ({"sites": ()}, "a store needs sites"),
        ({"sites": (site, site)}, "each once"),
        ({"sites": (site, SiteSpec(name="X", width=4))}, "'x' and 'X' differ in case alone"),
        ({"dtype": "int8"}, "unknown dtype 'int8'; known are bfloat16, float16, float32"),
        ({"codec": "gzip"}, "unknown codec 'gzip' of float32; known are lz4, zstd, raw and, lossy"),
        ({"ctx_len": 0}, "ctx_len must be positive"),
        ({"ctx_len": 7}, "shard_rows 64 is not a multiple of ctx_len 7"),
        ({"chunk_rows": 24}, "shard_rows 64 is not a multiple of chunk_rows 24"),
        ({"seed": -1}, "seed must not be negative"),
    ]:
        with pytest.raises(StoreError, match=told):
            StoreSpec(**{**good, **change})
    with pytest.raises(StoreError, match="a store needs sites"):
        StoreSpec.of(widths={}, ctx_len=8, dtype="float32")
    assert StoreSpec.of(widths={"ctx_len": 4}, ctx_len=8, dtype="float32").names == ("ctx_len",)


def test_a_file_of_a_store_is_one_look_when_the_store_is_opened(tmp_path):
    """In calls, which no load of the machine changes: 10,000 shards open in 0.4 s of CPU."""
    spec = make_spec(shard_rows=8)
    few, many = (
        multiplied(write_store(tmp_path / str(n), spec, n_rows=8), spec, n) for n in (10, 1000)
    )
    with _calls() as calls_few:
        ActStore.open(few)
    with _calls() as calls_many:
        store = ActStore.open(many)
    n_files = (1000 - 10) * len(spec.arrays)
    assert (calls_many[0] - calls_few[0]) / n_files < 6
    assert store.n_shards == 1000
    np.testing.assert_array_equal(store.shard("mlp_out.1", 999), store.shard("mlp_out.1", 0))


@contextmanager
def _calls():
    """How many functions our code called inside, or was called; what checks types is not ours."""
    n, before = [0], sys.getprofile()

    def count(frame, event, argument):
        n[0] += event in ("call", "c_call") and "/actstore/" in frame.f_code.co_filename

    sys.setprofile(count)
    try:
        yield n
    finally:
        sys.setprofile(before)


def test_reading_needs_neither_torch_nor_zarr():
    code = "import actstore.batches, sys; sys.exit('torch' in sys.modules or 'zarr' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_fingerprint_tells_rows_of_equal_size_apart(tmp_path):
    """Raw shards are all of one size: only what they hold differs."""
    spec = make_spec(codec="raw")
    prints: list[str] = []
    for change in (0, 1):
        with ActWriter.create_or_resume(tmp_path / str(change), spec, n_rows=64) as writer:
            shard = shard_of(spec, 0, 64)
            shard = replace(shard, acts={"mlp_out.1": shard.acts["mlp_out.1"] ^ np.uint16(change)})
            writer.write_shard(shard)
            prints.append(writer.finish().fingerprint)
    assert prints[0] != prints[1]
