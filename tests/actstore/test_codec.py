import numpy as np
import pytest
from hypothesis import given, strategies as st

from actstore.codec import CODECS, STORAGE, checksum, decode, encode
from actstore.errors import StoreError
from actstore.moments import BLOCK, Moments
from tests.helpers.stores import as_numbers


def chunk(dtype: np.dtype, rows: int = 64, width: int = 32) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, width), np.float32)
    return (x.view(np.uint32) >> 16).astype(dtype) if dtype == np.uint16 else x.astype(dtype)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", STORAGE.values(), ids=list(STORAGE))
def test_a_chunk_comes_back_bit_for_bit(codec, dtype):
    values = chunk(dtype)
    payload, crc = encode(values, codec)
    out = np.empty_like(values)
    decode(memoryview(bytes(payload) + crc), codec, out)
    assert out.tobytes() == values.tobytes()


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_activations_become_smaller(codec):
    values = chunk(np.dtype("<u2"), rows=512, width=256)
    assert len(encode(values, codec)[0]) < values.nbytes / 1.2


@pytest.mark.parametrize("codec", CODECS)
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(codec, where, bit):
    values = chunk(np.dtype("<u2"), rows=16, width=8)
    data = bytearray(b"".join(map(bytes, encode(values, codec))))
    data[int(where * len(data))] ^= 1 << bit
    with pytest.raises(StoreError, match="do not match their checksum"):
        decode(memoryview(data), codec, np.empty_like(values))


@pytest.mark.parametrize("codec", CODECS)
def test_a_chunk_of_another_size_is_refused(codec):
    values = chunk(np.dtype("<u2"))
    data = b"".join(map(bytes, encode(values, codec)))
    for rows in (63, 65):
        with pytest.raises(StoreError, match="it holds 4096 bytes, not"):
            decode(memoryview(data), codec, np.empty((rows, 32), np.uint16))


def test_the_checksum_is_crc32c():
    assert checksum(b"123456789") == 0xE3069283  # the check value of its definition


@given(cuts=st.lists(st.integers(0, 200), max_size=5), dtype=st.sampled_from(sorted(STORAGE)))
def test_moments_of_parts_are_those_of_the_whole(cuts, dtype):
    rows = chunk(STORAGE[dtype], rows=200)
    parts = [p for p in np.split(rows, sorted(cuts)) if len(p)]
    got = sum(map(Moments.of, parts), Moments.empty(32))
    assert got.count == 200
    np.testing.assert_allclose(got.mean, as_numbers(rows).mean(0), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(got.var, as_numbers(rows).var(0), rtol=1e-12)
    back = Moments.from_bytes(got.to_bytes(), width=32)
    assert (back.count, back.to_bytes()) == (200, got.to_bytes())


def test_variance_of_a_large_mean_keeps_its_digits():
    rows = (chunk(np.dtype("<f4"), rows=4096) + np.float32(1000)).astype("<f4")
    np.testing.assert_allclose(Moments.of(rows).var, as_numbers(rows).var(0), rtol=1e-8)


def test_moments_of_more_rows_than_are_looked_at_together():
    rows = chunk(np.dtype("<f4"), rows=40_000)
    rows += np.linspace(0, 3, len(rows), dtype=np.float32)[:, None]  # blocks differ in their mean
    got = Moments.of(rows)
    assert rows.size > 2 * BLOCK
    np.testing.assert_allclose(got.mean, as_numbers(rows).mean(0), rtol=1e-12)
    np.testing.assert_allclose(got.var, as_numbers(rows).var(0), rtol=1e-12)


def test_huge_but_finite_values_are_finite():
    rows = np.full((8, 4), 3e38, np.float32)
    assert Moments.of(rows).finite
    rows[3, 2] = np.inf
    assert not Moments.of(rows).finite
