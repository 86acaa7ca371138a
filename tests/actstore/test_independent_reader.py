"""FORMAT.md is enough to read a store: a reader that shares no code with the package agrees."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
from numcodecs import blosc

from actstore.errors import StoreError
from actstore.reader import ActStore
from tests.helpers.independent_reader import (
    PER_ROW,
    Refused,
    canonical,
    crc32c,
    read_store,
)
from tests.helpers.stores import TWO_SITES, column, edit_json, flip, shard_file

ARRAYS = [*PER_ROW, "context_tokens", *TWO_SITES]  # in the order of the summary


@pytest.fixture
def store(make_store) -> Path:
    """Three whole shards and a short one, without compression: whole shards have one size."""
    return make_store(n_rows=200, widths=TWO_SITES, dtype="float16", codec="raw")


def edit_root(store: Path, change, *, sealed: bool = True) -> None:
    """Change the attributes, and make their crc32c fit again if the change is `sealed`."""

    def edit(root):
        own = root["attributes"]["actstore"]
        change(own)
        if sealed:
            own.pop("crc32c")
            own["crc32c"] = crc32c(canonical(own))

    edit_json(store / "data.zarr/zarr.json", edit)


def sealed(data: bytes) -> bytes:
    return data + crc32c(data).to_bytes(4, "little")


def edit_index(file: Path, *, slots: int, change) -> None:
    """Change the index of a shard, and make its crc32c fit again."""
    data = file.read_bytes()
    chunks, index = data[: -(16 * slots + 4)], data[-(16 * slots + 4) : -4]
    file.write_bytes(chunks + sealed(change(index)))


def fingerprint(store: Path, spec) -> str:
    summary = store / "data.zarr/summary-1"
    sha = hashlib.sha256(canonical(spec))
    sha.update((summary / "shard_rows/c/0").read_bytes()[:-4])
    sha.update((summary / "shard_bytes/c/0/0").read_bytes()[:-4])
    crcs = np.frombuffer((summary / "shard_crc32c/c/0/0").read_bytes()[:-4], "<u4")
    sha.update(crcs.astype("<i8").tobytes())
    for kind in ("mean", "var", "rounding"):
        for site in spec["sites"]:
            file = summary / f"{kind}.{site['name']}/c/0"
            sha.update(file.read_bytes()[:-4] if file.exists() else b"")
    return sha.hexdigest()


def assert_same(mine, path: Path) -> None:
    """Whether the package reads the same from `path`."""
    package = ActStore.open(path)
    assert mine.fingerprint == package.fingerprint
    for name, values in mine.arrays.items():
        expected = column(package, name)
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected, err_msg=name)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "raw", "bitround:3"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_every_array_reads_as_the_package_reads_it(make_store, dtype, codec):
    path = make_store(n_rows=200, widths=TWO_SITES, dtype=dtype, codec=codec)

    mine = read_store(path)

    assert list(mine.arrays) == ARRAYS
    assert (mine.n_rows, mine.spec["shard_rows"]) == (200, 64)
    assert (mine.spec["dtype"], mine.spec["codec"]) == (dtype, codec)
    assert {len(mine.arrays[name]) for name in (*PER_ROW, *TWO_SITES)} == {200}
    assert mine.arrays["context_tokens"].shape == (25, 8)
    assert_same(mine, path)
    for site in TWO_SITES:
        rows = mine.sites_as_float(site).astype(np.float64)
        np.testing.assert_allclose(mine.mean[site], rows.mean(0), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(mine.var[site], rows.var(0), rtol=1e-10)
        np.testing.assert_array_equal(mine.rounding.get(site), ActStore.open(path).rounding(site))
    assert (mine.rounding == {}) == (codec != "bitround:3")


def test_the_order_of_rows_is_the_permutation_of_the_document(store):
    mine = read_store(store)
    seed, ctx, size = (mine.spec[key] for key in ("seed", "ctx_len", "shard_rows"))
    rows = []
    for k, start in enumerate(range(0, mine.n_rows, size)):
        n = min(size, mine.n_rows - start)
        outputs = np.random.Philox(np.random.SeedSequence((0, seed, k))).random_raw(n)
        low = np.uint64((1 << (n - 1).bit_length()) - 1)
        rows.append(start + np.argsort(outputs & ~low | np.arange(n, dtype=np.uint64)))
    order = np.concatenate(rows)

    assert not np.array_equal(order, np.arange(mine.n_rows))
    np.testing.assert_array_equal(mine.arrays["context_id"], order // ctx)
    np.testing.assert_array_equal(mine.arrays["position"], order % ctx)


def test_the_golden_store_reads_as_the_package_reads_it():
    path = Path(__file__).parents[1] / "golden/v1"
    mine = read_store(path)
    assert mine.n_rows % mine.spec["shard_rows"] and mine.n_rows > mine.spec["shard_rows"]
    assert_same(mine, path)


# What a reader must refuse: both of them do, even where what was altered has its checksum again.


def assert_refused(store: Path, told: str) -> None:
    with pytest.raises(Refused, match=told):
        read_store(store)
    with pytest.raises(StoreError):
        package = ActStore.open(store)
        for name in ARRAYS:
            column(package, name)


@pytest.mark.parametrize("bits", ["7", "0", "06", "-1", ""])
def test_bits_that_the_dtype_has_not_to_spare_are_refused(make_store, bits):
    path = make_store(widths=TWO_SITES, dtype="bfloat16", codec="bitround:3")

    def rename(own):
        own["spec"]["codec"] = f"bitround:{bits}"
        own["fingerprint"] = fingerprint(path, own["spec"])

    edit_root(path, rename)
    assert_refused(path, "no codec")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        *(({"format_version": version}, "format_version is") for version in (0, 3, "1", None)),
        ({"state": "writing"}, "state is 'writing'"),
        ({"n_rows": 199}, "sizes that do not divide"),
    ],
    ids=str,
)
def test_attributes_that_cannot_be_are_refused(store, change, told):
    edit_root(store, lambda own: own.update(change))
    assert_refused(store, told)


@pytest.mark.parametrize(
    "name",
    ["summary-2", "..", "a/b", "-a", ".a", pytest.param("é", id="e acute"), "", "token_id"],
)
def test_a_name_that_no_site_may_have_is_refused(store, name):
    edit_root(store, lambda own: own["spec"]["sites"][0].update(name=name))
    assert_refused(store, "no site can be called")


@pytest.mark.parametrize("change", [{"n_rows": 192}, {"generation": 2}, {"more": 1}], ids=str)
def test_altered_attributes_are_refused(store, change):
    edit_root(store, lambda own: own.update(change), sealed=False)
    assert_refused(store, "attributes do not match their crc32c")


def test_what_the_fingerprint_does_not_name_is_refused(store):
    file = store / "data.zarr/summary-1/shard_crc32c/c/0/0"
    whole = file.read_bytes()
    file.write_bytes(sealed(bytes(len(whole) - 4)))
    assert_refused(store, "the fingerprint does not fit")
    file.write_bytes(whole)
    mean, var = (store / f"data.zarr/summary-1/{kind}.resid.0/c/0" for kind in ("mean", "var"))
    whole = mean.read_bytes()
    mean.write_bytes(var.read_bytes())
    assert_refused(store, "the fingerprint does not fit")
    mean.write_bytes(whole)
    edit_root(store, lambda own: own["spec"].update(seed=own["spec"]["seed"] + 1))
    assert_refused(store, "the fingerprint does not fit")


@pytest.mark.parametrize(
    "name",
    ["resid.0", "summary-1", "summary-1/var.resid.0", "position", "kind", "zarr_format", ""],
)
def test_an_altered_root_is_refused(store, name):
    def alter(root):
        consolidated = root["consolidated_metadata"]
        if not name:
            del root["consolidated_metadata"]
        elif name == "position":
            del consolidated["metadata"][name]
        elif name in ("kind", "zarr_format"):
            (consolidated if name == "kind" else root)[name] = 2
        else:
            consolidated["metadata"][name]["attributes"]["units"] = "m"

    edit_json(store / "data.zarr/zarr.json", alter)
    assert_refused(store, "the root's zarr.json")


@pytest.mark.parametrize("name", [*ARRAYS, "summary-1", "summary-1/mean.resid.0"])
def test_any_altered_description_is_refused_even_if_the_root_repeats_it(store, name):
    def alter(content):
        content["attributes"]["units"] = "m"

    edit_json(store / f"data.zarr/{name}/zarr.json", alter)
    edit_json(
        store / "data.zarr/zarr.json",
        lambda root: alter(root["consolidated_metadata"]["metadata"][name]),
    )
    assert_refused(store, r"zarr\.json is not as prescribed")


@pytest.mark.parametrize("name", ["zarr.json", "position/zarr.json", "summary-1/zarr.json"])
def test_a_description_that_is_absent_or_no_object_is_refused(store, name):
    file = store / "data.zarr" / name
    for content in (b"", b"[]", b"\xff"):
        file.write_bytes(content)
        assert_refused(store, re.escape(f"{store}: "))
    file.unlink()
    assert_refused(store, "No such file")


def test_other_sizes_beside_the_next_summary_are_told_to_be_an_extension(store):
    (store / "data.zarr/summary-2").mkdir()
    (store / "data.zarr/summary-2/zarr.json").write_text("{}")
    read_store(store)
    shard_file(store, "resid.0", 3).write_bytes(b"longer")
    assert_refused(store, "an extension is in its last steps")


@pytest.mark.parametrize("name", ["summary-1/mean.resid.0/c/0", *(f"{a}/c" for a in ARRAYS)])
def test_every_bit_is_watched(store, name):
    """And every end; an absent file never reads as zeros."""
    for file in filter(
        Path.is_file, [store / "data.zarr" / name, *(store / "data.zarr" / name).rglob("*")]
    ):
        whole = file.read_bytes()
        for place in (5, -1, -20):
            flip(file, place)
            assert_refused(store, "does not match its crc32c")
            file.write_bytes(whole)
        for data in (b"", whole[1:], whole + b"\0"):
            file.write_bytes(data)
            assert_refused(store, rf"has {len(data)} bytes, not {len(whole)}$|its crc32c")
        file.unlink()
        assert_refused(store, "is absent|No such file")
        file.write_bytes(whole)


@pytest.mark.parametrize(
    ("name", "shard", "slots", "change", "told"),
    [
        ("resid.0", 0, 8, lambda index: b"\xff" * len(index), "chunk 0 of .* is out of place"),
        ("token_id", 0, 1, lambda index: b"\xff" * len(index), "chunk 0 of .* is out of place"),
        ("resid.0", 0, 8, lambda i: i[16:32] + i[:16] + i[32:], "chunk 0 of .* is out of place"),
    ],
    ids=["none of 8", "none of 1", "two swapped"],
)
def test_an_index_that_names_other_chunks_is_refused(store, name, shard, slots, change, told):
    edit_index(shard_file(store, name, shard), slots=slots, change=change)
    assert_refused(store, told)


def test_a_gap_before_the_index_is_refused(store):
    file = shard_file(store, "token_id", 0)
    shorter = sealed(blosc.compress(np.zeros(64, np.int32), b"zstd", 5))
    index = np.array([0, len(shorter)], "<u8").tobytes()
    size = file.stat().st_size - len(sealed(index))
    file.write_bytes(shorter.ljust(size, b"\0") + sealed(index))
    assert_refused(store, "has a gap before its index")
