"""Rows of others become a store: every format, stopped anywhere, and what is refused."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import safetensors.numpy

from actstore.errors import StoreError
from actstore.moments import as_float
from actstore.reader import ActStore, peek
from actstore.verify import verify
from pipeline.config.rows import ImportConfig
from pipeline.errors import ConfigError, DataError, ModelError
from pipeline.exchange.rows import values
from pipeline.exchange.rows.formats import natural
from pipeline.exchange.rows.importing import import_rows
from pipeline.exchange.rows.plan import ImportPlan
from pipeline.exchange.rows.values import as_stored
from tests.helpers.crashing import files_up_to, tree_of
from tests.helpers.refusals import refused
from tests.helpers.rows import (
    CTX_LEN,
    N_CONTEXTS,
    N_ROWS,
    WIDTH,
    bits_of,
    made_rows,
    made_tokens,
    save_dataset,
    save_saev,
)

SITE = "mlp_out.1"


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    """Parts of a few rows, so that a shard is read in several, none at a file's end."""
    monkeypatch.setattr(values, "BLOCK_BYTES", 11 * WIDTH * 4)


@pytest.fixture
def imported(tmp_path):
    """Import, in small shards; gives the store and what was said of it."""

    def run(source, *, out="acts", **settings):
        config = {"sites": (SITE,), "shard_rows": 64} | settings
        path = tmp_path / f"{out}.actstore"
        summary = import_rows(ImportConfig(source=source, out=path, **config))
        assert verify(path) == []
        return ActStore.open(path), summary

    return run


def rows_in_order(store, site=SITE):
    """As stored, by context and position."""
    rows = np.empty((store.n_contexts, store.spec.ctx_len, store.width(site)), store.spec.storage)
    for shard in range(store.n_shards):
        context, position = (store.shard(n, shard) for n in ("context_id", "position"))
        rows[context, position] = store.shard(site, shard)
    return rows.reshape(store.n_rows, -1)


def tokens_in_order(store):
    return store.tokens(np.arange(store.n_contexts))


# --- formats -------------------------------------------------------------------------------------


def npy(folder, x, name="a.npy"):
    folder.mkdir(exist_ok=True)
    np.save(folder / name, x)
    return folder / name


def npy_folder(folder, x, t):
    folder.mkdir()
    for i, start in enumerate(range(0, N_ROWS, 24)):  # part-10 comes after part-9
        np.save(folder / f"part-{i}.npy", x[start : start + 24])
    return folder


def tensors(folder, x, t):
    folder.mkdir()
    held = {"blocks.1.hook_mlp_out": x, "token_ids": t, "scale": np.float32([1])}
    safetensors.numpy.save_file(held, folder / "a.safetensors")
    return folder / "a.safetensors"


def table(folder, x, t, *, fixed=True, groups=50):
    folder.mkdir()
    kind = pa.list_(pa.from_numpy_dtype(x.dtype), *([x.shape[1]] if fixed else []))
    acts = pa.array(list(x), kind)
    beside = {"text": ["a"] * len(x), "loss": np.zeros(len(x))}
    made = pa.table({**beside, SITE: acts, "token_id": t.reshape(-1)})
    parquet.write_table(made, folder / "a.parquet", row_group_size=groups)
    return folder / "a.parquet"


def feather(folder, x, t):
    folder.mkdir()
    kind = pa.list_(pa.list_(pa.from_numpy_dtype(x.dtype), x.shape[1]), CTX_LEN)
    acts = pa.array(x.reshape(-1, CTX_LEN, x.shape[1]).tolist(), kind)
    made = pa.table({SITE: acts, "tokens": pa.array(t.tolist(), pa.list_(pa.int64()))})
    with pa.ipc.new_file(folder / "a.arrow", made.schema) as file:
        for start in range(0, N_CONTEXTS, 7):
            file.write_table(made.slice(start, 7))
    return folder / "a.arrow"


def raw(folder, x, t):
    folder.mkdir()
    (folder / "acts.bin").write_bytes(x.tobytes())
    return folder / "acts.bin"


SOURCES = {  # how it is written; what must be said of it; whether it holds tokens
    "npy": (lambda f, x, t: npy(f, x), {"ctx_len": CTX_LEN}, False),
    "npy of contexts": (lambda f, x, t: npy(f, x.reshape(-1, CTX_LEN, WIDTH)), {}, False),
    "big-endian npy": (
        lambda f, x, t: npy(f, x.astype(x.dtype.newbyteorder(">"))), {"ctx_len": CTX_LEN}, False,
    ),
    "folder of npy": (npy_folder, {"ctx_len": CTX_LEN}, False),
    "safetensors": (tensors, {"sites": ()}, True),
    "parquet": (table, {"sites": (), "ctx_len": CTX_LEN}, True),
    "parquet of lists": (lambda f, x, t: table(f, x, t, fixed=False, groups=7),
                         {"ctx_len": CTX_LEN}, True),
    "dataset": (save_dataset, {"sites": ()}, True),
    "arrow file": (feather, {"sites": ()}, True),
    "raw": (raw, {"shape": WIDTH, "ctx_len": CTX_LEN}, False),
    "raw of contexts": (raw, {"shape": (N_CONTEXTS, CTX_LEN, WIDTH)}, False),
}  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("source", SOURCES)
def test_rows_and_tokens_come_in_to_the_bit(source, dtype, imported, tmp_path):
    write, said, has_tokens = SOURCES[source]
    x, t = made_rows(dtype=dtype), made_tokens()
    path = write(tmp_path / "source", x, t)
    if "shape" in said:
        said = said | {"dtype": dtype}
    store, summary = imported(path, **said)
    assert (store.spec.dtype, store.spec.ctx_len, store.sites) == (dtype, CTX_LEN, (SITE,))
    assert store.n_shards == 4
    np.testing.assert_array_equal(rows_in_order(store), x)
    expected = t if has_tokens else np.full_like(t, -1)
    np.testing.assert_array_equal(tokens_in_order(store), expected)
    assert any("no token ids" in note for note in summary.notes) != has_tokens


def test_tokens_may_be_in_a_file_of_their_own(imported, tmp_path):
    x, t = made_rows(), made_tokens()
    source = npy(tmp_path / "x", x)
    for name, ids in {"two": t, "one": t.reshape(-1).astype(np.uint16)}.items():
        tokens_file = npy(tmp_path / "t", ids, f"{name}.npy")
        ctx_len = CTX_LEN if name == "one" else None
        store, summary = imported(source, out=name, tokens_file=tokens_file, ctx_len=ctx_len)
        np.testing.assert_array_equal(tokens_in_order(store), t)
        assert summary.notes == ()


def test_bfloat16_comes_in_as_it_is(imported, tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    x = torch.from_numpy(made_rows()).bfloat16()
    save_file({SITE: x.unflatten(0, (-1, CTX_LEN))}, tmp_path / "a.safetensors")
    store, _ = imported(tmp_path / "a.safetensors", sites=())
    assert store.spec.dtype == "bfloat16"
    np.testing.assert_array_equal(rows_in_order(store), x.view(torch.uint16).numpy())
    source = npy(tmp_path / "bits", x.view(torch.uint16).numpy())
    again, summary = imported(source, out="bits", ctx_len=CTX_LEN, dtype="bf16")
    np.testing.assert_array_equal(rows_in_order(again), rows_in_order(store))
    assert not any("rounded" in note for note in summary.notes)


@pytest.mark.parametrize(
    ("given", "asked", "stored", "said"),
    [
        ("float64", None, "float32", "float64 is rounded to float32, the most"),
        ("float64", "fp16", "float16", "float64 is rounded to float16"),
        ("float32", "bf16", "bfloat16", "float32 is rounded to bfloat16"),
        ("float16", "bf16", "bfloat16", "float16 is rounded to bfloat16"),
        ("float16", "float32", "float32", ""),
        ("float32", "fp32", "float32", ""),
    ],
)
def test_it_is_said_where_bits_are_lost(given, asked, stored, said, imported, tmp_path):
    torch = pytest.importorskip("torch")
    x = made_rows(dtype=given)
    store, summary = imported(npy(tmp_path / "x", x), dtype=asked)
    assert store.spec.dtype == stored
    notes = [note for note in summary.notes if "rounded" in note]
    assert [note.startswith(said) for note in notes] == ([True] if said else [])
    expected = torch.from_numpy(x).to(getattr(torch, stored))
    np.testing.assert_array_equal(as_float(rows_in_order(store)), expected.float().numpy())


def test_rounding_to_bfloat16_is_torchs_for_every_kind_of_number():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
    x = np.append(x, np.float32([0, -0.0, np.inf, -np.inf, np.nan, 3.4e38, 1e-45, 1.00390625]))
    with np.errstate(invalid="ignore"):
        ours, theirs = as_float(as_stored(x, "bfloat16")), torch.from_numpy(x).bfloat16().float()
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_shards_of_saev_come_in_layer_by_layer(imported, tmp_path):
    acts = np.random.default_rng(0).standard_normal((10, 2, 5, 6)).astype(np.float32)
    source = save_saev(tmp_path / "hash", acts, per_shard=4)
    store, _ = imported(source, sites=(), shard_rows=20)
    assert store.sites == ("resid_post.3", "resid_post.4")
    assert (store.spec.ctx_len, store.n_rows) == (5, 50)
    for layer, site in enumerate(store.sites):
        np.testing.assert_array_equal(rows_in_order(store, site), acts[:, layer].reshape(50, 6))
    assert store.spec.source["model"] == "hf-hub:org/vit"
    one, _ = imported(source, out="one", sites="resid_post.4", shard_rows=20)
    np.testing.assert_array_equal(rows_in_order(one, "resid_post.4"), acts[:, 1].reshape(50, 6))


def test_columns_are_sites_by_their_names_or_by_those_that_are_given(imported, tmp_path):
    x, y = made_rows(), made_rows(width=24, seed=5)
    held = {"blocks.1.hook_mlp_out": x, "resid_pre.2": y}
    source = tmp_path / "a.safetensors"
    safetensors.numpy.save_file(held, source)
    both, _ = imported(source, sites=())
    assert {site: both.width(site) for site in both.sites} == {SITE: 16, "resid_pre.2": 24}
    chosen, _ = imported(source, out="chosen", columns="resid_pre.2", sites="image")
    np.testing.assert_array_equal(rows_in_order(chosen, "image"), y)
    by_site, _ = imported(source, out="by_site", sites="resid_pre.2")
    np.testing.assert_array_equal(rows_in_order(by_site, "resid_pre.2"), y)


def test_files_follow_in_natural_order(tmp_path):
    names = ["a-1.npy", "a-2.npy", "a-10.npy", "b.npy"]
    assert sorted((tmp_path / name for name in sorted(names)), key=natural) == [
        tmp_path / name for name in names
    ]


# --- stopped and gone on with --------------------------------------------------------------------


@pytest.mark.parametrize("source", ["npy", "parquet", "dataset"])
def test_a_stopped_import_goes_on_to_the_same_bytes(source, tmp_path):
    write, said, _ = SOURCES[source]
    path = write(tmp_path / "source", made_rows(), made_tokens())
    config = {"source": path, "sites": (SITE,), "shard_rows": 64} | said
    whole = tmp_path / "whole.actstore"
    fingerprint = import_rows(ImportConfig(out=whole, **config)).fingerprint
    for row in range(40, N_ROWS, 50):
        out = tmp_path / f"stopped-{row}.actstore"

        def stop(progress, row=row):
            if progress.done > row:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            import_rows(ImportConfig(out=out, **config), on_progress=stop)
        if row < 64:
            assert not out.exists()
        seen = []
        summary = import_rows(ImportConfig(out=out, **config), on_progress=seen.append)
        assert summary.fingerprint == fingerprint
        assert summary.rows_written == N_ROWS - row // 64 * 64
        assert min(progress.done for progress in seen) > row // 64 * 64
        kept = {name: data for name, data in tree_of(out).items() if name.startswith("data.zarr")}
        assert kept == {n: d for n, d in tree_of(whole).items() if n.startswith("data.zarr")}
    again = import_rows(ImportConfig(out=whole, **config))
    assert (again.reused, again.rows_written) == (True, 0)


def test_another_source_is_not_gone_on_with(imported, tmp_path):
    source = npy(tmp_path / "x", made_rows())
    imported(source)
    np.save(source, made_rows(seed=9))
    with pytest.raises(StoreError, match="holds another store .*imported_fingerprint"):
        imported(source)


def test_a_full_disk_is_one_line_and_what_was_committed_stays(saepipe, succeeds, tmp_path):
    source = npy(tmp_path / "x", made_rows(n=40_000, width=64))
    typed = ("store", "import", source, "--site", SITE, "--out", tmp_path / "a.actstore")
    with files_up_to(100_000):
        code, _, err = saepipe(*typed)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error")]
    assert "could not be written" in line and "the same command goes on" in line
    succeeds(*typed)
    np.testing.assert_array_equal(
        rows_in_order(ActStore.open(tmp_path / "a.actstore")), made_rows(n=40_000, width=64)
    )


def test_a_file_that_grows_while_it_is_read_is_told(tmp_path):
    source = npy(tmp_path / "x", made_rows())
    config = ImportConfig(source=source, out=tmp_path / "a.actstore", sites=SITE, shard_rows=64)

    def grow(progress):
        if progress.done > 100:
            with source.open("ab") as file:
                file.write(b"more")

    with pytest.raises(DataError, match="a.npy changed while it was read"):
        import_rows(config, on_progress=grow)


@pytest.mark.parametrize("worst", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_refused_with_their_place(worst, tmp_path):
    x = made_rows()
    x[133, 3] = worst
    source = npy(tmp_path / "x", x)
    config = {"source": source, "sites": SITE, "ctx_len": CTX_LEN}
    out = tmp_path / "a.actstore"
    with pytest.raises(DataError, match=r"row 133 of .*a.npy \(position 5 of context 16\)"):
        import_rows(ImportConfig(out=out, **config))
    assert not out.exists()
    with pytest.raises(DataError, match="row 133"):
        import_rows(ImportConfig(out=out, shard_rows=64, **config))
    assert peek(out).state == "writing"  # two shards are whole


def test_what_overflows_a_dtype_is_not_stored_as_infinity(imported, tmp_path):
    x = made_rows()
    x[0, 0] = 1e6
    with pytest.raises(DataError, match="row 0 .*more than float16 can"):
        imported(npy(tmp_path / "x", x), dtype="fp16")


# --- refused -------------------------------------------------------------------------------------


def cut(path, n):
    path.write_bytes(path.read_bytes()[:-n])
    return path


def header_of(folder, shape, *, descr="<f4", fortran=False):
    folder.mkdir(exist_ok=True)
    with (folder / "a.npy").open("wb") as file:
        told = {"descr": descr, "fortran_order": fortran, "shape": shape}
        np.lib.format.write_array_header_1_0(file, told)
        file.write(bytes(64))
    return folder / "a.npy"


def tensor_header(folder, header, data=b""):
    folder.mkdir()
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    (folder / "a.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    return folder / "a.safetensors"


def of(dtype, shape, offsets):
    return {SITE: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


class Evil:
    def __reduce__(self):
        return exec, ("open('written', 'w').close()",)


def folder_of(folder, **arrays):
    folder.mkdir()
    for name, x in arrays.items():
        np.save(folder / f"{name}.npy", x)
    return folder


def ragged(folder):
    folder.mkdir()
    x = [row[: 15 if i == 100 else 16] for i, row in enumerate(made_rows().tolist())]
    parquet.write_table(pa.table({SITE: pa.array(x, pa.list_(pa.float32()))}), folder / "a.parquet")
    return folder / "a.parquet"


def with_nulls(folder):
    folder.mkdir()
    x = [None if i == 100 else row for i, row in enumerate(made_rows().tolist())]
    kind = pa.list_(pa.float32())  # pyarrow 21 writes none of a fixed size with nulls
    parquet.write_table(pa.table({SITE: pa.array(x, kind)}), folder / "a.parquet")
    return folder / "a.parquet"


def cut_dataset(folder, n):
    path = save_dataset(folder, made_rows())
    cut(path / "data-00001-of-00002.arrow", n)
    return path


def torn_header(folder, was, now):
    path = npy(folder, np.zeros(4, np.float32))
    path.write_bytes(path.read_bytes().replace(was, now))
    return path


def stream(folder):
    held = parquet.read_table(table(folder, made_rows(), made_tokens()))
    with pa.ipc.new_stream(folder / "a.arrow", held.schema) as writer:
        writer.write_table(held)
    return folder / "a.arrow"


def misnamed(path):
    """A column's name is no UTF-8."""
    path.write_bytes(path.read_bytes().replace(b"token_id", b"\xff\xfeken_id"))
    return path


def saev(folder, change):
    acts = np.zeros((3, 1, 2, 4), np.float32)
    path = save_saev(folder, acts, per_shard=4)
    change(path)
    return path


def edit(path, **told):
    there = json.loads(path.read_text())
    path.write_text(json.dumps(there | told))


REFUSED = {
    "absent": (lambda f: f / "none.npy", {}, "none.npy is not there"),
    "pickle": (lambda f: npy(f, np.array([Evil()], object)), {}, "holds objects of Python"),
    "text": (lambda f: npy(f, np.array(["a"])), {}, "is of str32"),
    "no npy": (lambda f: cut(npy(f, made_rows()), N_ROWS * WIDTH * 4 + 120), {}, "a.npy cannot be"),
    "torn npy": (lambda f: torn_header(f, b"'shape': (4,)", b"'shape': (4, "), {}, "a.npy cannot"),
    "cut npy": (lambda f: cut(npy(f, made_rows()), 1), {}, "it is cut short"),
    "absurd": (lambda f: header_of(f, (2**40, 2**40)), {}, "which no disk holds"),
    "large": (lambda f: header_of(f, (2**30, 16)), {}, "it is cut short"),
    "negative": (lambda f: header_of(f, (-4, -4)), {}, "holds no rows"),
    "no rows": (lambda f: npy(f, made_rows()[:0]), {}, "holds no rows: it is 0 x 16"),
    "flat": (lambda f: npy(f, made_rows()[0]), {}, "expected rows x width"),
    "two bytes": (
        lambda f: npy(f, bits_of(made_rows()).view("V2")), {}, "as bfloat16 is saved: type --dtype"
    ),
    "Fortran": (lambda f: npy(f, np.asfortranarray(made_rows())), {}, "is in Fortran order"),
    "integers": (lambda f: npy(f, made_tokens()), {}, "holds no rows of activations"),
    "widths": (
        lambda f: folder_of(f, a=made_rows(), b=made_rows(width=8)), {},
        "rows of 8 float32, and .*a.npy has rows of 16",
    ),
    "dtypes": (
        lambda f: folder_of(f, a=made_rows(), b=made_rows(dtype="float16")), {}, "float16, and"
    ),
    "kinds": (
        lambda f: (npy(f, made_rows()), (f / "b.parquet").touch())[0].parent, {}, "several kinds"
    ),
    "nothing": (lambda f: (f / "inner").mkdir(parents=True) or f, {}, "name one of its folders"),
    "another kind": (lambda f: npy(f, made_rows()).rename(f / "a.pt"), {}, "save its rows with"),
    "unknown": (lambda f: npy(f, made_rows()).rename(f / "a.dat"), {}, "say --shape WIDTH"),
    "raw size": (lambda f: raw(f, made_rows(), None), {"shape": 17, "dtype": "fp32"}, "no rows of"),
    "raw shape": (
        lambda f: raw(f, made_rows(), None), {"shape": (7, 16), "dtype": "fp32"}, "7 x 16 float32"
    ),
    "raw dtype": (lambda f: raw(f, made_rows(), None), {"shape": 16}, "type --dtype"),
    "shape of npy": (lambda f: npy(f, made_rows()), {"shape": 16}, "says its own shape"),
    "no site": (lambda f: npy(f, made_rows()), {"sites": ()}, "name the site, as in --site"),
    "two sites": (lambda f: npy(f, made_rows()), {"sites": ("a", "b")}, "name a --site for each"),
    "column": (lambda f: table(f, made_rows(), made_tokens()), {"columns": "x"}, "no column 'x'"),
    "contexts": (lambda f: npy(f, made_rows()), {"ctx_len": 7}, "no whole contexts of 7"),
    "other contexts": (
        lambda f: npy(f, made_rows().reshape(-1, 8, 16)), {"ctx_len": 4}, "of contexts of 8 rows"
    ),
    "ragged": (ragged, {}, "lists of 15 and of 16"),
    "nulls": (with_nulls, {}, "places without a value"),
    "cut parquet": (lambda f: cut(table(f, made_rows(), made_tokens()), 9), {}, "a.parquet cannot"),
    "name of parquet": (
        lambda f: misnamed(table(f, made_rows(), made_tokens())), {}, "a.parquet cannot be read"
    ),
    "name of arrow": (lambda f: misnamed(stream(f)), {}, "a.arrow cannot be read"),
    "cut arrow": (lambda f: cut_dataset(f, 1000), {}, "ends otherwise"),
    "cut arrow between": (lambda f: cut_dataset(f, 8), {}, "ends otherwise"),
    "no arrow": (lambda f: npy(f, made_rows()).rename(f / "a.arrow"), {}, "ends otherwise"),
    "splits": (
        lambda f: f.mkdir() or ((f / "dataset_dict.json").write_text("{}") and f), {}, "splits"
    ),
    "latents": (
        lambda f: tensor_header(f, {
            "locations": {"dtype": "I64", "shape": [1, 3], "data_offsets": [0, 24]},
            "activations": {"dtype": "F32", "shape": [1], "data_offsets": [24, 28]},
        }, bytes(28)), {}, "latents of an SAE, as delphi keeps them",
    ),
    "no header": (lambda f: tensor_header(f, b"[" * 9), {}, "none of safetensors"),
    "deep header": (lambda f: tensor_header(f, b"[" * 10**5), {}, "none of safetensors"),
    "list header": (lambda f: tensor_header(f, []), {}, "none of safetensors"),
    "absurd tensor": (
        lambda f: tensor_header(f, of("F32", [2**40, 2**40], [0, 4])), {}, "no disk holds"
    ),
    "long tensor": (lambda f: tensor_header(f, of("F32", [4, 4], [0, 64])), {}, "cut short"),
    "other tensor": (
        lambda f: tensor_header(f, of("F32", [4, 4], [0, 60]), bytes(60)), {}, "of its shape"
    ),
    "strange sizes": (lambda f: tensor_header(f, of("F32", [4, 4], [-4, 60])), {}, "sizes that"),
    "saev cut": (lambda f: saev(f, lambda p: cut(p / "acts000000.bin", 60)), {}, "is cut short"),
    "saev above": (
        lambda f: saev(f, lambda p: (p / "shards.json").write_text(
            '[{"name": "../a.bin", "n_examples": 1}]'
        )), {}, "no name of a shard",
    ),
    "saev width": (
        lambda f: saev(f, lambda p: edit(p / "metadata.json", d_model=2**60)), {}, "is cut short"
    ),
    "saev lacks": (
        lambda f: saev(f, lambda p: edit(p / "metadata.json", layers=None)), {}, "none of saev's"
    ),
    "codec": (lambda f: npy(f, made_rows()), {"codec": "gzip"}, "unknown codec"),
    "model": (lambda f: npy(f, made_rows()), {"model": "builtin"}, "rows of .* are 16 wide"),
    "layer": (
        lambda f: npy(f, made_rows()), {"model": "builtin", "sites": "mlp_out.99"}, "has layers 0"
    ),
    "ids beside": (
        lambda f: npy(f, made_tokens(), "b.npy").parent if npy(f, made_rows()) else f, {},
        "name .*a.npy, with --tokens-file .*b.npy",
    ),
    "wider beside": (
        lambda f: npy(f, made_rows()[:, 1:], "b.npy").parent if npy(f, made_rows()) else f, {},
        "import one kind of rows at a time",
    ),
    "no model": (
        lambda f: npy(f, made_rows()), {"model": "./absent"}, "'./absent' is neither a folder"
    ),
    "name": (lambda f: npy(f, made_rows()), {"out": "a"}, "type --out .*a.actstore"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_one_line_before_anything_is_written(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make, settings, said = REFUSED[what]
    source, out = make(tmp_path / "source"), tmp_path / settings.get("out", "a.actstore")
    config = {"sites": SITE} | settings | {"out": out}
    with pytest.raises((ConfigError, DataError, ModelError, StoreError), match=said) as error:
        import_rows(ImportConfig(source=source, **config))
    assert "\n" not in str(error.value)
    assert not out.exists()
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize(
    ("codec", "dtype"), [("raw", "fp32"), ("lz4", "bf16"), ("zstd", "fp32"), ("bitround:2", "bf16")]
)
def test_a_plan_tells_within_a_tenth_what_its_rows_take(codec, dtype, tmp_path, monkeypatch):
    monkeypatch.setattr(values, "BLOCK_BYTES", 2**18)
    rows = np.random.default_rng(0).standard_normal((4096, 64)).astype(np.float32)
    rows[:, ::3] = 0  # as of a site that is often silent, which compresses well
    source, told = npy(tmp_path / "x", rows), []
    config = ImportConfig(
        source=source, out=tmp_path / "a.actstore", sites=SITE, codec=codec, dtype=dtype
    )
    import_rows(config, on_plan=told.append)
    written = sum(
        file.stat().st_size
        for file in (config.out / "data.zarr" / SITE).rglob("*")
        if file.is_file()
    )
    assert told[0].bytes_on_disk == pytest.approx(written, rel=0.1)


def test_what_the_disk_has_no_room_for_is_refused_before_a_row_is_written(tmp_path, monkeypatch):
    rows = np.zeros((4096, 64), np.float32)  # as they are they do not fit, compressed they do
    rows[:, 0] = 1
    config = {"source": npy(tmp_path / "x", rows), "sites": SITE, "shard_rows": 2048}
    monkeypatch.setattr(ImportPlan, "bytes_free", rows.nbytes // 2)
    fits = ImportConfig(out=tmp_path / "fits.actstore", **config)
    assert import_rows(fits).n_rows == 4096
    wide = ImportConfig(out=tmp_path / "a.actstore", codec="raw", **config)
    with refused(ConfigError, r"needs about 1\.05MB, 524kB more than the 524kB that its disk has"):
        import_rows(wide)
    assert not wide.out.exists()

    def stop(progress):
        if progress.done > 2048:
            raise KeyboardInterrupt

    monkeypatch.setattr(ImportPlan, "bytes_free", rows.nbytes)
    with pytest.raises(KeyboardInterrupt):
        import_rows(wide, on_progress=stop)
    monkeypatch.setattr(ImportPlan, "bytes_free", rows.nbytes // 2)  # for the rows still to come
    assert not import_rows(wide).reused


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        (made_tokens()[:-1], "240 rows|holds 232 rows"),
        (made_tokens() - 600, "holds -5.*: ids are from 0"),
        (made_tokens().astype(np.int64) + 2**31, "ids are from 0"),
        (made_tokens().reshape(-1, 4), "contexts are of 4 and of 8"),
        (made_rows(), "holds 0 columns of integers"),
    ],
    ids=["fewer", "negative", "large", "other contexts", "no ids"],
)
def test_tokens_that_do_not_fit_are_refused(ids, said, imported, tmp_path):
    source = npy(tmp_path / "x", made_rows().reshape(-1, CTX_LEN, WIDTH))
    with pytest.raises(DataError, match=said):
        imported(source, tokens_file=npy(tmp_path / "t", ids))
    assert not (tmp_path / "acts.actstore").exists()


# --- memory --------------------------------------------------------------------------------------

MEASURED = """
import resource, sys
from pathlib import Path
from pipeline.config.rows import ImportConfig
from pipeline.exchange.rows import importing

source, out, *shape = sys.argv[1:]
given = {"shape": (int(shape[0]),), "dtype": "fp32"} if shape else {}
before = []
config = ImportConfig(source=source, out=out, sites="mlp_out.1", shard_rows=8192, **given)
def told(progress):
    before.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
importing.import_rows(config, on_progress=told)
print(max(before) - before[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sizes of memory are in other units")
def test_memory_does_not_grow_with_the_source(tmp_path):
    width, n_bytes = 1024, 2**29
    source = tmp_path / "a.bin"
    with source.open("wb") as file:
        file.truncate(n_bytes)  # takes no room on the disk
    command = [sys.executable, "-c", MEASURED, source, tmp_path / "a.actstore", str(width)]
    done = subprocess.run([*map(str, command)], check=True, stdout=-1, text=True)
    grown = int(done.stdout) * 1024
    assert grown < n_bytes / 2, f"{grown / 2**20:.0f} MiB"
    assert ActStore.open(tmp_path / "a.actstore").n_rows == n_bytes // (4 * width)
