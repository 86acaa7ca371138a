"""FORMAT.md is enough to read a store: a reader that shares no code with the package agrees."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from numcodecs import blosc

from actstore.reader import ActStore
from tests.helpers.independent_reader import (
    BYTES,
    CRC,
    PER_ROW,
    Refused,
    canonical,
    crc32c,
    node,
    read_store,
)
from tests.helpers.stores import TWO_SITES, column, edit_json, flip, shard_file

ARRAYS = [*PER_ROW, "context_tokens", *TWO_SITES]  # in the order of the summary


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """Where the store of most tests is kept, to be copied."""
    return tmp_path_factory.mktemp("original") / "acts.actstore"


@pytest.fixture
def store(make_store, original, tmp_path) -> Path:
    """Three whole shards and a short one, without compression: whole shards have one size."""
    if not original.exists():
        shutil.copytree(
            make_store(n_rows=200, widths=TWO_SITES, dtype="float16", codec="raw"), original
        )
    return shutil.copytree(original, tmp_path / "mine.actstore")


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
    return sha.hexdigest()


def name_as_bitround(path: Path, codec: str) -> None:
    """Turn a store of codec lz4, whose chain is the same, into one of rounded values."""
    summary = path / "data.zarr/summary-1"
    nodes = {}
    for site, width in TWO_SITES.items():
        folder = summary / f"rounding.{site}"
        meta = node("float64", [width], [width], [BYTES, CRC], [f"d_{width}"], {})
        (folder / "c").mkdir(parents=True)
        (folder / "zarr.json").write_text(json.dumps(meta))
        (folder / "c/0").write_bytes(sealed(np.arange(width, dtype="<f8").tobytes()))
        nodes[f"summary-1/{folder.name}"] = meta
    edit_json(
        path / "data.zarr/zarr.json",
        lambda root: root["consolidated_metadata"]["metadata"].update(nodes),
    )

    def rename(own):
        own["spec"]["codec"] = codec
        own["fingerprint"] = fingerprint(path, own["spec"])

    edit_root(path, rename)


def assert_same(mine, path: Path) -> None:
    """Whether the package reads the same from `path`."""
    package = ActStore.open(path)
    assert mine.fingerprint == package.fingerprint
    for name, values in mine.arrays.items():
        expected = column(package, name)
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected, err_msg=name)


@pytest.mark.parametrize("codec", ["lz4", "zstd", "raw"])
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
    assert mine.rounding == {}


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


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_store_of_rounded_values_tells_what_rounding_cost(make_store, dtype):
    exact = read_store(make_store(n_rows=200, widths=TWO_SITES, dtype=dtype))
    path = make_store(n_rows=200, widths=TWO_SITES, dtype=dtype, codec="bitround:3", name="rounded")

    mine = read_store(path)

    assert mine.spec["codec"] == "bitround:3"
    assert_same(mine, path)
    for site in TWO_SITES:
        before, after = (x.sites_as_float(site).astype("f8") for x in (exact, mine))
        lost = np.square(before - after).mean(0)
        assert lost.min() > 0
        np.testing.assert_allclose(mine.rounding[site], lost, rtol=1e-12)


@pytest.mark.parametrize("bits", ["7", "0", "06", "-1", ""])
def test_bits_that_the_dtype_has_not_to_spare_are_refused(make_store, bits):
    path = make_store(widths=TWO_SITES, dtype="bfloat16", codec="lz4")
    name_as_bitround(path, f"bitround:{bits}")
    with pytest.raises(Refused, match="no codec"):
        read_store(path)


# What a reader must refuse


@pytest.mark.parametrize(
    ("change", "told"),
    [
        *(({"format_version": version}, "format_version is") for version in (0, 2, "1", None)),
        ({"state": "writing"}, "state is 'writing'"),
        ({"n_rows": 199}, "sizes that do not divide"),
    ],
    ids=str,
)
def test_attributes_that_cannot_be_are_refused(store, change, told):
    edit_root(store, lambda own: own.update(change))
    with pytest.raises(Refused, match=told):
        read_store(store)


@pytest.mark.parametrize(
    "name",
    ["summary-2", "..", "a/b", "-a", ".a", pytest.param("é", id="e acute"), "", "token_id"],
)
def test_a_name_that_no_site_may_have_is_refused(store, name):
    edit_root(store, lambda own: own["spec"]["sites"][0].update(name=name))
    with pytest.raises(Refused, match="no site can be called"):
        read_store(store)


@pytest.mark.parametrize(
    "change",
    [
        {"n_rows": 192},
        {"generation": 2},
        {"source_exhausted": None},
        {"fingerprint": ""},
        {"spec": {}},
        {"more": 1},
    ],
    ids=lambda change: next(iter(change)),
)
def test_altered_attributes_are_refused(store, change):
    edit_root(store, lambda own: own.update(change), sealed=False)
    with pytest.raises(Refused, match="attributes do not match their crc32c"):
        read_store(store)


def test_a_spec_that_the_fingerprint_does_not_name_is_refused(store):
    edit_root(store, lambda own: own["spec"].update(seed=own["spec"]["seed"] + 1))
    with pytest.raises(Refused, match="the fingerprint does not fit"):
        read_store(store)


def test_a_summary_that_the_fingerprint_does_not_name_is_refused(store):
    file = store / "data.zarr/summary-1/shard_bytes/c/0/0"
    sizes = np.frombuffer(file.read_bytes()[:-4], "<i8") + 1
    file.write_bytes(sealed(sizes.tobytes()))
    with pytest.raises(Refused, match="the fingerprint does not fit"):
        read_store(store)


def test_a_summary_whose_shards_are_not_those_of_the_spec_is_refused(store):
    file = store / "data.zarr/summary-1/shard_rows/c/0"
    file.write_bytes(sealed(np.array([64, 64, 8, 64], "<i8").tobytes()))
    edit_root(store, lambda own: own.update(fingerprint=fingerprint(store, own["spec"])))
    with pytest.raises(Refused, match="shard_rows does not fit"):
        read_store(store)


@pytest.mark.parametrize("name", ["resid.0", "summary-1", "summary-1/var.resid.0", "position", ""])
def test_absent_or_altered_consolidated_metadata_are_refused(store, name):
    def alter(root):
        nodes = root["consolidated_metadata"]["metadata"]
        if not name:
            del root["consolidated_metadata"]
        elif name == "position":
            del nodes[name]
        else:
            nodes[name]["attributes"]["units"] = "m"

    edit_json(store / "data.zarr/zarr.json", alter)
    with pytest.raises(Refused, match="the root's zarr.json"):
        read_store(store)


@pytest.mark.parametrize(
    "change",
    [
        {"fill_value": 1},
        {"shape": [192, 24]},
        {"data_type": "uint16"},
        {"dimension_names": ["row", "d"]},
        {"attributes": {}},
        {"codecs": [{"name": "bytes", "configuration": {"endian": "big"}}]},
        {"chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_an_altered_description_of_an_array_is_refused(store, change):
    edit_json(store / "data.zarr/resid.0/zarr.json", lambda array: array.update(change))
    with pytest.raises(Refused, match=r"resid\.0/zarr\.json is not as prescribed"):
        read_store(store)


@pytest.mark.parametrize("name", [*ARRAYS, "summary-1", "summary-1/mean.resid.0"])
def test_any_altered_description_is_refused_even_if_the_root_repeats_it(store, name):
    def alter(content):
        content["attributes"]["units"] = "m"

    edit_json(store / f"data.zarr/{name}/zarr.json", alter)
    edit_json(
        store / "data.zarr/zarr.json",
        lambda root: alter(root["consolidated_metadata"]["metadata"][name]),
    )
    with pytest.raises(Refused, match=r"zarr\.json is not as prescribed"):
        read_store(store)


@pytest.mark.parametrize("name", ["zarr.json", "position/zarr.json", "summary-1/zarr.json"])
@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b"\xff"], ids=["absent", "empty", "list", "not UTF-8"]
)
def test_a_description_that_is_absent_or_no_object_is_refused(store, name, content):
    file = store / "data.zarr" / name
    file.unlink() if content is None else file.write_bytes(content)
    with pytest.raises(Refused):
        read_store(store)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("k", [0, 3])
def test_an_absent_shard_is_refused_and_never_reads_as_zeros(store, name, k):
    shard_file(store, name, k).unlink()
    with pytest.raises(Refused, match="is absent"):
        read_store(store)


@pytest.mark.parametrize("name", ARRAYS)
def test_a_shard_of_another_size_is_refused(store, name):
    file = shard_file(store, name, 1)
    whole = file.read_bytes()
    for data in (b"", whole[:-1], whole[1:], whole + b"\0"):
        file.write_bytes(data)
        with pytest.raises(Refused, match=rf"has {len(data)} bytes, not {len(whole)}$"):
            read_store(store)


def test_other_sizes_beside_the_next_summary_are_told_to_be_an_extension(store):
    (store / "data.zarr/summary-2").mkdir()
    (store / "data.zarr/summary-2/zarr.json").write_text("{}")
    read_store(store)
    shard_file(store, "resid.0", 3).write_bytes(b"longer")
    with pytest.raises(Refused, match="an extension is in its last steps"):
        read_store(store)


@pytest.mark.parametrize("name", ARRAYS)
@pytest.mark.parametrize("k", [0, 3])
@pytest.mark.parametrize(
    ("place", "what"), [(20, "chunk 0"), (-1, "the index"), (-20, "the index")]
)
def test_a_flipped_bit_is_refused(store, name, k, place, what):
    flip(shard_file(store, name, k), place)
    with pytest.raises(Refused, match=rf"{what} of .* does not match its crc32c"):
        read_store(store)


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_flipped_bit_in_any_byte_of_a_compressed_shard_is_refused(make_store, codec):
    path = make_store(n_rows=72, widths={"resid.0": 1}, dtype="bfloat16", codec=codec)
    file = shard_file(path, "resid.0", 1)
    whole = file.read_bytes()
    for place in range(len(whole)):
        flip(file, place)
        with pytest.raises(Refused, match="does not match its crc32c"):
            read_store(path)
        file.write_bytes(whole)


@pytest.mark.parametrize("name", ["shard_crc32c/c/0/0", "mean.resid.0/c/0", "var.mlp_out.1/c/0"])
def test_a_flipped_bit_of_the_summary_is_refused(store, name):
    flip(store / "data.zarr/summary-1" / name, 5)
    with pytest.raises(Refused, match=rf"{name} does not match its crc32c"):
        read_store(store)


def test_a_sound_shard_at_the_place_of_another_is_refused(store):
    shard_file(store, "resid.0", 0).write_bytes(shard_file(store, "resid.0", 1).read_bytes())
    with pytest.raises(Refused, match="is not the one that the summary names"):
        read_store(store)


@pytest.mark.parametrize(
    ("name", "shard", "slots", "change", "told"),
    [
        ("resid.0", 0, 8, lambda index: b"\xff" * len(index), "chunk 0 of .* is out of place"),
        ("token_id", 0, 1, lambda index: b"\xff" * len(index), "chunk 0 of .* is out of place"),
        ("resid.0", 0, 8, lambda i: i[16:32] + i[:16] + i[32:], "chunk 0 of .* is out of place"),
        ("resid.0", 3, 8, lambda index: index[:-16] + index[:16], "is beyond its rows"),
    ],
    ids=["none of 8", "none of 1", "two swapped", "beyond the rows"],
)
def test_an_index_that_names_other_chunks_is_refused(store, name, shard, slots, change, told):
    edit_index(shard_file(store, name, shard), slots=slots, change=change)
    with pytest.raises(Refused, match=told):
        read_store(store)


def test_a_gap_before_the_index_is_refused(store):
    file = shard_file(store, "token_id", 0)
    shorter = sealed(blosc.compress(np.zeros(64, np.int32), b"zstd", 5))
    index = np.array([0, len(shorter)], "<u8").tobytes()
    size = file.stat().st_size - len(sealed(index))
    file.write_bytes(shorter.ljust(size, b"\0") + sealed(index))
    with pytest.raises(Refused, match="has a gap before its index"):
        read_store(store)


def test_a_folder_without_a_store_is_refused(tmp_path):
    with pytest.raises(Refused, match=r"zarr\.json"):
        read_store(tmp_path)
