import numpy as np
import pytest
from hypothesis import given, strategies as st

from actstore.codec import STORAGE, rounded
from actstore.errors import NonFiniteError, StoreError
from actstore.manifest import StoreSpec
from actstore.reader import ActStore
from actstore.verify import verify
from actstore.writer import ActWriter
from tests.helpers.stores import as_numbers, column, make_spec, shard_of, write_store


def every_bfloat16() -> np.ndarray:
    bits = np.arange(2**16, dtype=np.uint16)
    return bits[bits & 0x7F80 != 0x7F80]


def some(dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return every_bfloat16()
    words = np.random.default_rng(0).integers(0, 2 ** (16 if dtype == "float16" else 32), 50_000)
    values = words.astype(f"u{STORAGE[dtype].itemsize}").view(STORAGE[dtype])
    return values[np.isfinite(values)]


@pytest.mark.parametrize(("dtype", "keep"), [("bfloat16", k) for k in range(1, 7)] + [
    ("float16", 1), ("float16", 5), ("float16", 9), ("float32", 2), ("float32", 12), ("float32", 22)
])  # fmt: skip
def test_the_nearest_value_of_fewer_bits_is_taken_and_the_even_one_of_two(dtype, keep):
    """By arithmetic on real numbers: a normal value is f * 2^e with 1/2 <= f < 1."""
    values = some(dtype)
    x, got = as_numbers(values), as_numbers(rounded(values, keep=keep))
    tiny = {"bfloat16": 2.0**-126, "float16": 2.0**-14, "float32": 2.0**-126}[dtype]
    _, exponent = np.frexp(x)
    step = np.ldexp(1.0, np.where(np.abs(x) >= tiny, exponent, np.frexp(tiny)[1]) - keep - 1)
    wanted = np.rint(x / step) * step
    kept = np.abs(wanted) < (2.0**16 if dtype == "float16" else 2.0**128)
    np.testing.assert_array_equal(got[kept], wanted[kept])
    top = (2 - 2.0**-keep) * (2.0**15 if dtype == "float16" else 2.0**127)
    assert set(np.abs(got[~kept])) <= {top}
    np.testing.assert_array_equal(np.signbit(got), np.signbit(x))


@given(keep=st.integers(1, 6))
def test_rounding_again_changes_nothing(keep):
    once = rounded(every_bfloat16(), keep=keep)
    np.testing.assert_array_equal(rounded(once, keep=keep), once)


@pytest.mark.parametrize("dtype", STORAGE)
def test_a_lossy_store_holds_rounded_rows_and_says_what_was_lost(tmp_path, dtype):
    exact = ActStore.open(write_store(tmp_path / "e", make_spec(dtype=dtype), n_rows=200))
    spec = make_spec(dtype=dtype, codec="bitround:3")
    write_store(tmp_path / "l", spec, n_rows=200, stop=2)  # and interrupted
    lossy = ActStore.open(write_store(tmp_path / "l", spec, n_rows=200))
    before, after = column(exact, "mlp_out.1"), column(lossy, "mlp_out.1")
    np.testing.assert_array_equal(after, rounded(before, keep=3))
    x, y = as_numbers(before), as_numbers(after)
    np.testing.assert_allclose(lossy.rounding("mlp_out.1"), np.square(x - y).mean(0), rtol=1e-12)
    np.testing.assert_allclose(lossy.var("mlp_out.1"), y.var(0), rtol=1e-12)
    assert exact.rounding("mlp_out.1") is None
    assert lossy.n_bytes < exact.n_bytes
    assert verify(lossy.path) == []


@pytest.mark.parametrize("value", [0x7F80, 0xFF80, 0x7FC0, 0x7FFF, 0xFFFF])
def test_rounding_hides_no_infinity_and_no_nan(tmp_path, value):
    shard = shard_of(spec := make_spec(codec="bitround:2"), 0, 64)
    shard.acts["mlp_out.1"][17, 3] = value
    with (
        pytest.raises(NonFiniteError, match="mlp_out.1 is not finite in context"),
        ActWriter.create_or_resume(tmp_path / "s", spec, n_rows=64) as writer,
    ):
        writer.write_shard(shard)
        writer.finish()


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [("bitround:7", "bfloat16"), ("bitround:10", "float16"), ("bitround:23", "float32"),
     ("bitround:0", "bfloat16"), ("bitround:03", "bfloat16"), ("bitround", "bfloat16")],
)  # fmt: skip
def test_as_many_bits_as_there_are_is_not_lossy_and_refused(codec, dtype):
    with pytest.raises(StoreError, match=f"unknown codec '{codec}' of {dtype}; known are lz4"):
        StoreSpec.of(widths={"x": 4}, ctx_len=8, dtype=dtype, codec=codec)
