"""The group is plain Zarr: three independent readers see the values that our own sees."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from actstore.codec import encode
from actstore.manifest import ROW_ARRAYS
from actstore.reader import ActStore
from actstore.repair import repairing
from actstore.verify import verify
from tests.golden.make_store import GOLDEN, N_ROWS, OLD, SPEC
from tests.helpers.independent_reader import read_store
from tests.helpers.stores import TWO_SITES, column, files_of, make_spec, write_store

CASES = ("bfloat16-lz4", "bfloat16-raw", "float16-zstd", "float32-lz4")


@pytest.fixture(params=CASES)
def store(request, tmp_path: Path) -> ActStore:
    dtype, codec = request.param.split("-")
    spec = make_spec(widths=TWO_SITES, dtype=dtype, codec=codec)
    path = write_store(tmp_path / "s", spec, n_rows=128)
    return ActStore.open(write_store(path, spec, n_rows=200))  # extended: the harder case


@pytest.mark.parametrize("consolidated", [True, False])
def test_zarr_reads_the_same(store, consolidated):
    group = zarr.open_group(store.path / "data.zarr", mode="r", use_consolidated=consolidated)
    for name in store.spec.arrays:
        np.testing.assert_array_equal(group[name][:], column(store, name))
    for site in store.sites:
        np.testing.assert_array_equal(group[f"summary-2/mean.{site}"][:], store.mean(site))
        np.testing.assert_array_equal(group[f"summary-2/var.{site}"][:], store.var(site))
    assert group["summary-2/shard_rows"][:].tolist() == [64, 64, 64, 8]
    assert set(group.array_keys()) == set(store.spec.arrays)
    assert set(group.group_keys()) == {"summary-2"}
    bits = {"torch_dtype": "bfloat16", "encoding": "bits"}
    expected = bits if store.spec.dtype == "bfloat16" else {}
    assert expected.items() <= dict(group["resid.0"].attrs).items()


def test_xarray_reads_the_same(store):
    xarray = pytest.importorskip("xarray")
    with xarray.open_zarr(store.path / "data.zarr") as dataset:
        widths = {"d_16": 16, "d_24": 24}
        assert dict(dataset.sizes) == {"row": 200, "context": 25, "position_in_context": 8} | widths
        assert set(dataset["resid.0"].coords) == set(ROW_ARRAYS)
        for name in store.spec.arrays:
            np.testing.assert_array_equal(dataset[name].values, column(store, name))


def test_tensorstore_reads_the_same(store):
    tensorstore = pytest.importorskip("tensorstore")
    for name in store.spec.arrays:
        where = {"driver": "file", "path": str(store.path / "data.zarr" / name)}
        array = tensorstore.open({"driver": "zarr3", "kvstore": where}).result()
        np.testing.assert_array_equal(array.read().result(), column(store, name))
    assert array.domain.labels == ("row", "d_24")


def test_a_store_begun_by_zarr_metadata_is_open_while_it_is_written(tmp_path):
    path = write_store(tmp_path / "s", make_spec(), n_rows=200, stop=2)
    group = zarr.open_group(path / "data.zarr", mode="r")
    assert group["mlp_out.1"].shape == (200, 16)


@pytest.mark.parametrize("golden", [OLD, GOLDEN], ids=["version 1", "version 2"])
def test_golden_stores_still_read(golden):
    """Stores that people have must stay readable: each was written once, and is never again."""
    assert golden.is_dir(), f"{golden} is missing: restore it, do not write it anew"
    store = ActStore.open(golden)
    expected = json.loads(golden.with_suffix(".json").read_text())
    assert store.fingerprint == expected["fingerprint"] == read_store(golden).fingerprint
    for name in store.spec.arrays:
        assert column(store, name).astype(np.int64).tolist() == expected["arrays"][name], name
    for site in store.sites:
        assert store.mean(site).tolist() == expected["mean"][site]
        assert store.var(site).tolist() == expected["var"][site]


@pytest.mark.parametrize("kind", ["mean", "var"])
def test_statistics_that_a_fingerprint_of_version_1_left_out_are_held_to_the_rows(tmp_path, kind):
    path = Path(shutil.copytree(OLD, tmp_path / "s"))
    file = path / f"data.zarr/summary-1/{kind}.mlp_out.1/c/0"
    values = np.frombuffer(file.read_bytes()[:-4], "<f8").copy()
    values[3] *= 1 + 1e-6
    payload, crc = encode(values, "raw")
    file.write_bytes(bytes(payload) + crc)
    assert ActStore.open(path).n_rows == N_ROWS  # nothing that is cheap tells
    (found,) = verify(path)
    assert found.path == path / "data.zarr/summary-1"
    assert found.what == "mean and variance of mlp_out.1 are not those of its rows"
    with repairing(path, [found]) as repair:
        assert repair.files == (found.path,)
    assert not verify(path)


def test_the_writer_still_writes_the_golden_store(tmp_path):
    """Decoded content only: a compressor may learn to make smaller chunks, and the statistics that
    a fingerprint covers have their last digit from the processor."""
    new = ActStore.open(write_store(tmp_path / "s", SPEC, n_rows=N_ROWS))
    old = ActStore.open(GOLDEN)
    for name in SPEC.arrays:
        np.testing.assert_array_equal(column(new, name), column(old, name))
    assert replace(new.manifest, fingerprint="") == replace(old.manifest, fingerprint="")
    documents = [name for name in files_of(GOLDEN) if name.endswith("/zarr.json")]
    assert documents
    for name in documents:
        assert files_of(new.path)[name] == files_of(GOLDEN)[name], name


@pytest.mark.parametrize("golden", [OLD, GOLDEN], ids=["version 1", "version 2"])
def test_golden_stores_can_be_extended(tmp_path, golden):
    path = Path(shutil.copytree(golden, tmp_path / "s"))
    assert not verify(path)
    longer = ActStore.open(write_store(path, SPEC, n_rows=N_ROWS + 64))
    assert longer.n_rows == N_ROWS + 64
    assert longer.manifest.format_version == 2
    assert not verify(path)
