import numpy as np
import pytest
from hypothesis import given, strategies as st

from actstore.errors import StoreError
from actstore.moments import as_float
from actstore.reader import ActStore
from actstore.shardfile import ShardReader
from tests.helpers.refusals import refused
from tests.helpers.stores import (
    CTX_LEN,
    TWO_SITES,
    as_numbers,
    column,
    contexts,
    flip,
    make_spec,
    shard_file,
    write_store,
)

SPEC = make_spec(widths=TWO_SITES)
N_ROWS = 200  # the last of 4 shards is short


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ActStore.open(write_store(tmp_path_factory.mktemp("s") / "s", SPEC, n_rows=N_ROWS))


@pytest.fixture(scope="module")
def columns(store):
    names = ("mlp_out.1", "resid.0", "token_id", "document_id")
    return {name: column(store, name) for name in names}


@pytest.fixture(scope="module")
def written():
    """Activations, tokens and documents of all contexts."""
    return contexts(SPEC, 0, N_ROWS // CTX_LEN)


@given(indices=st.lists(st.integers(0, N_ROWS - 1), max_size=40))
def test_rows_come_in_the_order_asked_for(store, columns, indices):
    wanted = np.array(indices, np.int64)
    for name, values in columns.items():
        np.testing.assert_array_equal(store.rows(name, wanted), values[wanted])


@given(ids=st.lists(st.integers(0, N_ROWS // CTX_LEN - 1), max_size=10))
def test_contexts_come_as_they_were_written(store, written, ids):
    acts, tokens, documents = written
    for i, got in zip(ids, store.contexts(np.array(ids, np.int64)), strict=True):
        np.testing.assert_array_equal(got.tokens, tokens[i])
        np.testing.assert_array_equal(got.document_id, documents[i])
        assert list(got.acts) == ["mlp_out.1", "resid.0"]
        for site, rows in got.acts.items():
            np.testing.assert_array_equal(rows, as_float(acts[site][i]))
            assert rows.dtype == np.float32
    (some,) = store.contexts(np.array([24]), sites=["resid.0"])
    np.testing.assert_array_equal(some.acts["resid.0"], as_float(acts["resid.0"][24]))
    assert list(some.acts) == ["resid.0"]
    np.testing.assert_array_equal(store.context(24).tokens, tokens[24])


KEYS = st.one_of(
    st.slices(N_ROWS),
    st.integers(-N_ROWS, N_ROWS - 1),
    st.lists(st.integers(-N_ROWS, N_ROWS - 1), max_size=9),
    st.integers(1, 99).map(lambda n: np.arange(N_ROWS) % n == 0),
    st.integers(-N_ROWS, N_ROWS - 1).map(np.int64),
)


@given(key=KEYS)
def test_a_site_is_read_like_an_array_of_float32(store, key):
    for name in ("mlp_out.1", "resid.0", "token_id"):
        rows, whole = store[name], column(store, name)
        if name in store.sites:
            whole = as_numbers(whole).astype(np.float32)
        assert (len(rows), rows.shape, rows.dtype) == (N_ROWS, whole.shape, whole.dtype)
        got = rows[key]
        assert got.dtype == whole.dtype
        np.testing.assert_array_equal(got, whole[key])


@given(key=KEYS, columns=st.one_of(st.slices(16), st.integers(-16, 15)))
def test_some_columns_of_some_rows(store, key, columns):
    whole = as_numbers(column(store, "mlp_out.1")).astype(np.float32)
    np.testing.assert_array_equal(store["mlp_out.1"][key, columns], whole[key, columns])


@pytest.mark.parametrize(
    "key", [1.5, ..., (1, 2, 3), ([1, 2], [3, 4]), [[1, 2]]],
    ids=["a half", "all", "three", "pairs", "two axes"],
)  # fmt: skip
def test_what_is_no_row_is_one_line(store, key):
    with refused(StoreError, "mlp_out.1"):
        store["mlp_out.1"][key]


def test_a_site_can_be_walked_and_made_an_array(store):
    rows = store["mlp_out.1"]
    for whole in (np.stack(list(rows)), np.asarray(rows), np.array(rows, np.float64)):
        np.testing.assert_array_equal(whole, as_numbers(column(store, "mlp_out.1")))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_are_float32_whatever_they_are_stored_as(make_store, dtype):
    store = ActStore.open(str(make_store(dtype=dtype)))
    first = store["mlp_out.1"][:5]
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, column(store, "mlp_out.1")[:5].astype(np.float32))


def test_a_store_and_its_sites_say_what_they_are(store):
    assert repr(store).startswith(
        f"ActStore({store.path}: 200 rows of mlp_out.1 [16], resid.0 [24]"
    )
    assert repr(store["mlp_out.1"]) == f"mlp_out.1 of {store.path}: 200 x 16, float32"
    assert list(store) == ["mlp_out.1", "resid.0"] and "resid.0" in store


def test_a_chunk_is_decoded_once_however_many_of_its_rows_are_asked_for(store, monkeypatch):
    read: list[tuple[int, int]] = []
    real = ShardReader.read_chunk

    def counting(self, shard, chunk, out, *, skip=0):
        read.append((shard, chunk))
        return real(self, shard, chunk, out, skip=skip)

    monkeypatch.setattr(ShardReader, "read_chunk", counting)
    store.rows("mlp_out.1", np.array([70, 3, 71, 2, 3, 199, 70]))
    assert sorted(read) == [(0, 0), (1, 0), (3, 0)]


def test_what_the_store_does_not_have_is_refused(store):
    for ask, told in [
        (lambda: store.rows("mlp_out.1", np.array([0, 200])), "has rows 0 to 199, got 0 to 200"),
        (lambda: store.rows("mlp_out.1", np.array([-1])), "got -1 to -1"),
        (lambda: store.rows("nothing", np.array([0])), "has no 'nothing'; it has token_id"),
        (lambda: store.context(25), "has contexts 0 to 24, got 25 to 25"),
        (lambda: store.contexts(np.array([0]), sites=["x"]), "has no site 'x'"),
        (lambda: store["x"], "has no site 'x'; it has mlp_out.1, resid.0"),
        (lambda: store["mlp_out.1"][200], "has rows 0 to 199, got 200 to 200"),
        (lambda: store["mlp_out.1"][np.ones(3, bool)], "by a mask of 200, got 3 of bool"),
        (lambda: store["mlp_out.1"][np.array([0.5])], "are asked for by number, .* of float64"),
        (lambda: store.tokens(np.array([25])), "has contexts 0 to 24"),
        (lambda: store.mean("mlp_out.9"), "has no site 'mlp_out.9'; it has mlp_out.1"),
        (lambda: store.shard("nothing", 0), "has no 'nothing'; it has token_id, "),
        (lambda: store.shard("mlp_out.1", 4), "has no shard 4; it has 4"),
        (lambda: store.shard("mlp_out.1", -1), "has no shard -1"),
    ]:
        with pytest.raises(StoreError, match=told):
            ask()


def test_a_damaged_row_is_refused_by_name(make_store):
    store = ActStore.open(make_store())
    flip(shard_file(store.path, "mlp_out.1", 1), 3)
    store.rows("mlp_out.1", np.arange(64))
    with pytest.raises(StoreError, match=r"mlp_out.1, shard 1: .* is damaged in chunk 0"):
        store.rows("mlp_out.1", np.arange(70))
