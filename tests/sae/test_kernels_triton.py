"""The kernels for a GPU against dense float64 formulas: there, or else in Triton's interpreter."""

import importlib
import importlib.util
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cuda" if torch.cuda.is_available() and not INTERPRETED else "cpu"

on_gpu = pytest.mark.skipif(DEVICE == "cpu", reason="torch sees no CUDA device")


@pytest.fixture
def kernels():
    if not HAS_TRITON:
        pytest.skip("triton is not installed: it comes with a torch for CUDA, on Linux")
    if DEVICE == "cpu" and not INTERPRETED:
        pytest.skip("no CUDA device: runs within test_all_of_this_holds_in_the_interpreter")
    return importlib.import_module("pipeline.sae.kernels_triton")


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_all_of_this_holds_in_the_interpreter():
    from triton import __version__ as version

    if int(version.split(".")[0]) == 3 and int(version.split(".")[1]) < 7:
        pytest.skip(f"the interpreter of triton {version} cannot count with numpy 2.4")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


class Case:
    """Random pairs with values, and the matrices they choose rows of."""

    def __init__(self, lengths, *, latents, d, dtype=torch.float32, seed=0):
        rng = np.random.default_rng(seed)
        self.z = torch.zeros(len(lengths), latents, dtype=torch.float64, device=DEVICE)
        rows = [torch.from_numpy(rng.permutation(latents)[:n]) for n in lengths]  # in any order
        self.crow = self.of([0, *np.cumsum(lengths)])
        self.col = self.of(torch.cat(rows))
        self.row = self.of(torch.repeat_interleave(torch.tensor(lengths)))
        self.values = torch.from_numpy(rng.standard_normal(len(self.col))).float().to(DEVICE)
        self.z[self.row, self.col] = self.values.double()
        self.W = torch.from_numpy(rng.standard_normal((latents, d))).to(DEVICE, dtype)
        self.r = torch.from_numpy(rng.standard_normal((len(lengths), d))).to(DEVICE, dtype)

        order = torch.argsort(self.col.long(), stable=True)
        self.crow_t = torch.zeros(latents + 1, dtype=torch.int32, device=DEVICE)
        self.crow_t[1:] = torch.bincount(self.col, minlength=latents).cumsum(0)
        self.row_t, self.values_t = self.row[order], self.values[order]

    @staticmethod
    def of(numbers):
        return torch.as_tensor(numbers).to(DEVICE, torch.int32)

    def decode(self, kernels):
        return kernels.decode(self.crow, self.col, self.values, self.W, len(self.r))

    def pull(self, kernels):
        return kernels.pull(self.crow, self.col, self.row, self.r, self.W)

    def outer(self, kernels):
        out = torch.full(self.W.shape, torch.nan, device=DEVICE)
        kernels.outer(self.crow_t, self.row_t, self.values_t, self.r, out)
        return out

    def sums(self, kernels):
        return self.decode(kernels), self.pull(kernels), self.outer(kernels)


def agree(case, kernels, *products):
    """Within what float32 may lose: some roundings of the sum of magnitudes."""
    formulas = {
        "decode": lambda z, W, r: z @ W,
        "pull": lambda z, W, r: (r[case.row] * W[case.col]).sum(1),
        "outer": lambda z, W, r: z.T @ r,
    }
    exact = [case.z, case.W.double(), case.r.double()]
    for name in products or formulas:
        got, want = getattr(case, name)(kernels), formulas[name](*exact)
        scale = formulas[name](*(x.abs() for x in exact))
        assert got.dtype == torch.float32
        assert got.shape == want.shape
        error = (got.double() - want).abs()
        assert (error <= 1e-6 * scale).all(), float((error / scale.clamp_min(1e-30)).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 24, 100, 512, 1100])
def test_sums_over_pairs_are_the_dense_ones_at_every_width(kernels, d, dtype):
    agree(Case([3, 0, 9, 8, 1], latents=13, d=d, dtype=dtype), kernels)


def test_rows_may_end_anywhere_in_a_window(kernels):
    assert kernels.WINDOW == 128
    lengths = [0, 1, 127, 128, 129, 0, 300, 84, 255, 257, 127, 0, 5]
    agree(Case(lengths, latents=300, d=3), kernels, "decode")


def test_a_row_of_more_windows_than_are_loaded_at_once_is_summed_whole(kernels):
    agree(Case([40, 1500, 7], latents=1500, d=2), kernels, "decode")


def test_latents_that_fire_on_most_rows_are_summed_whole(kernels):
    agree(Case([2] * 450, latents=2, d=5), kernels, "outer")


def test_windows_that_grow_give_the_same_sums(kernels, monkeypatch):
    monkeypatch.setattr(kernels, "MAX_WINDOWS", 2)
    agree(Case([600, 100, 601], latents=700, d=3), kernels, "decode")


def test_windows_never_need_memory_for_more_than_their_number(kernels):
    for n in (0, 1, 127, 128, 524_287, 524_288, 524_289, 10_000_000, 2**31 - 1):
        assert n // kernels._window_of(n) <= kernels.MAX_WINDOWS
    assert kernels._window_of(524_288) == kernels.WINDOW


def test_without_any_pairs_all_sums_are_zero(kernels):
    case = Case([0, 0, 0], latents=4, d=6)
    assert torch.equal(case.decode(kernels).cpu(), torch.zeros(3, 6))
    assert case.pull(kernels).shape == (0,)
    assert torch.equal(case.outer(kernels).cpu(), torch.zeros(4, 6))


def test_what_no_pair_chose_is_never_read(kernels):
    case = Case([0, 3, 2], latents=9, d=7, seed=1)
    unused = torch.bincount(case.col, minlength=9) == 0
    assert unused[0]  # where pairs that fill up a tile would look
    want = case.sums(kernels)
    case.W[unused] = torch.nan
    case.r[0] = torch.inf
    got = case.sums(kernels)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_arguments_need_not_lie_in_one_piece_and_nothing_around_them_is_written(kernels):
    case = Case([3, 7, 9], latents=13, d=20)
    plain = case.sums(kernels)
    case.W = case.W.T.contiguous().T
    case.r = torch.cat([case.r, case.r], dim=1)[:, 20:]
    for name in ("crow", "col", "row", "values", "crow_t", "row_t", "values_t"):
        setattr(case, name, torch.stack([getattr(case, name)] * 2, dim=1)[:, 0])
    around = torch.full((15, 24), torch.nan, device=DEVICE)
    out = around[1:14, 2:22]
    kernels.outer(case.crow_t, case.row_t, case.values_t, case.r, out)
    assert torch.equal(case.decode(kernels), plain[0])
    assert torch.equal(out, plain[2])
    assert int(around.isfinite().sum()) == 13 * 20
    torch.testing.assert_close(case.pull(kernels), plain[1])


@pytest.mark.gpu
@on_gpu
@pytest.mark.parametrize("d", [512, 2048])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_of_training_size_agrees_with_dense(kernels, d, dtype):
    agree(Case([32] * 4095 + [8192], latents=8192, d=d, dtype=dtype), kernels)


@pytest.mark.gpu
@on_gpu
def test_the_same_arguments_give_the_same_bits(kernels):
    case = Case([32] * 2047 + [4096], latents=4096, d=1000)
    first = case.sums(kernels)
    for _ in range(20):
        again = case.sums(kernels)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.gpu
@on_gpu
def test_matrices_may_have_more_than_two_to_the_31_numbers(kernels):
    d, rows = 4096, 2**19 + 2
    if torch.cuda.mem_get_info()[0] < 3 * d * rows * 4:
        pytest.skip("needs 26 GB of memory on the device")
    W, out = torch.zeros(rows, d, device=DEVICE), torch.empty(rows, d, device=DEVICE)
    W[-1] = 1.0
    values, zero = torch.ones(1, device=DEVICE), Case.of([0])
    last, crow = Case.of([rows - 1]), Case.of([0, 1])
    assert (kernels.decode(crow, last, values, W, 1) == 1).all()
    assert (kernels.pull(crow, last, zero, W[-1:], W) == d).all()
    crow_t = torch.zeros(rows + 1, dtype=torch.int32, device=DEVICE)
    crow_t[-1] = 1
    kernels.outer(crow_t, zero, values, W[-1:], out)
    assert torch.equal(out, W)
