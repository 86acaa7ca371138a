"""Products at pairs equal the dense formulas in float64, wherever the pairs lie."""

import subprocess
import sys
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings, strategies as st

from pipeline.sae import kernels_cpu
from pipeline.sae.active_pairs import Pairs
from pipeline.sae.kernels import kernels_for
from pipeline.sae.select import above, top_k

pytestmark = pytest.mark.skipif(
    kernels_for(torch.device("cpu")) is None, reason="torch has no MKL here"
)


def close(got, expected, *, terms=1.0):
    """Equal but for rounding of `got`'s own dtype, `terms` being the size of what was added up."""
    tolerance = 16 * torch.finfo(got.dtype).eps * max(1.0, terms)
    torch.testing.assert_close(got.double(), expected.double(), rtol=tolerance, atol=tolerance)


class Case:
    """A selection with its values, and all tensors that products need, in one dtype."""

    def __init__(self, M, B, F, d, *, pick, seed=0, dtype=torch.float32):
        self.g = torch.Generator().manual_seed(seed)
        self.shape = (M, B, F)
        self.dtype = dtype
        self.pre = self.random(M, B, F)
        self.picked = pick(self.pre)
        self.mask = self.picked.mask()
        self.pairs = Pairs(self.picked, self.picked.values(self.pre), kernels=kernels_cpu)
        self.W, self.x, self.b = self.random(M, F, d), self.random(M, B, d), self.random(M, F)

    def random(self, *shape):
        return torch.randn(shape, generator=self.g, dtype=torch.float64).to(self.dtype)

    def dense(self, values):
        """Values at pairs as a whole `[M, B, F]`, zero elsewhere."""
        whole = torch.zeros(self.shape, dtype=values.dtype)
        whole.view(-1)[self.picked.flat] = values
        return whole

    def check(self):
        z, terms = self.dense(self.pairs.pre).double(), sum(self.x.shape[1:])
        W, x = self.W.double(), self.x.double()
        v = self.pairs.pre
        close(self.pairs.decode(v, self.W), z @ W, terms=terms)
        out = torch.full_like(self.W, float("nan"))
        self.pairs.outer(v, self.x, out)
        close(out, z.mT @ x, terms=terms)
        close(self.pairs.by_latent(v), z.sum(1), terms=terms)
        base = self.b.double()[:, None]
        assert torch.equal(self.pairs.counts(v).double(), (z > 0).double().sum(1))
        assert torch.equal(self.dense(self.pairs.spread(self.b)).double(), self.mask * base)
        dots = x @ W.mT
        pulled = self.pairs.pull(self.x, self.W)
        close(self.dense(pulled), self.mask * dots, terms=terms)
        with_base = self.pairs.pull(self.x, self.W, base=self.b)
        close(self.dense(with_base), self.mask * (dots + base), terms=terms)


def first_rows_only(pre):
    """All latents of the first row, and no others: most rows and, transposed, none are empty."""
    bound = torch.full_like(pre[:, 0], -99.0)
    rest = pre.clone()
    rest[:, 1:] = -100.0
    return above(rest, bound)


PICKS = {
    "half": lambda pre: above(pre, 0.0),
    "few": lambda pre: above(pre, 1.5),
    "none": lambda pre: above(pre, 99.0),
    "all": lambda pre: above(pre, -99.0),
    "one of each row": lambda pre: top_k(pre, 1),
    "all of each row, in any order": lambda pre: top_k(pre, pre.shape[-1]),
    "one row": first_rows_only,
}


@settings(max_examples=60)
@given(
    M=st.integers(1, 3),
    B=st.integers(1, 9),
    F=st.integers(1, 20),
    d=st.integers(1, 9),
    pick=st.sampled_from(list(PICKS)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 1000),
)
@pytest.mark.parametrize("few", [0, 10**9], ids=["embedding_bag", "sparse matrix"])
def test_products_equal_the_dense_ones(few, M, B, F, d, pick, dtype, seed):
    with patch.object(kernels_cpu, "FEW", few):
        Case(M, B, F, d, pick=PICKS[pick], seed=seed, dtype=dtype).check()


@pytest.mark.parametrize("M", [1, 3])
@pytest.mark.parametrize("k", [1, 8, 64])
def test_products_of_larger_shapes_equal_the_dense_ones(M, k):
    Case(M, 96, 128, 72, pick=lambda pre: top_k(pre, k)).check()


def test_a_gradient_larger_than_a_piece_is_whole(monkeypatch):
    monkeypatch.setattr(kernels_cpu, "PIECE", 5 * 16 * 4)  # five latents, of 16 numbers
    for M, F in ((1, 5), (1, 6), (2, 32)):
        Case(M, 64, F, 16, pick=lambda pre: above(pre, -0.5)).check()


@pytest.mark.parametrize("few", [0, 10**9], ids=["embedding_bag", "sparse matrix"])
@pytest.mark.parametrize("width", [1, 7, 16, 99])
def test_products_of_few_columns_at_a_time_equal_the_dense_ones(few, width, monkeypatch):
    for name, value in {"FEW": few, "CACHE": 1, "LEAST_WIDTH": width, "REUSED": 0}.items():
        monkeypatch.setattr(kernels_cpu, name, value)
    for dtype in (torch.float32, torch.float64):
        Case(2, 40, 24, 16, pick=lambda pre: above(pre, 0.3), dtype=dtype).check()
        Case(1, 40, 24, 16, pick=lambda pre: above(pre, 99.0), dtype=dtype).check()


@pytest.mark.parametrize("M", [1, 2])
def test_columns_multiply_with_a_slice_of_the_dictionary(M):
    case = Case(M, 40, 24, 8, pick=lambda pre: above(pre, 0.3))
    whole = torch.full_like(case.W, float("nan"))
    decoded = torch.zeros(M, 40, 8)
    z = case.dense(case.pairs.pre).double()
    for start, stop in ((0, 5), (5, 6), (6, 24)):
        part = case.pairs.columns(start, stop)
        decoded += part.decode(part.pre, case.W[:, start:stop])
        part.outer(part.pre, case.x, whole[:, start:stop])
        dots = part.pull(case.x, case.W[:, start:stop], base=case.b[:, start:stop])
        expected = case.pairs.pull(case.x, case.W, base=case.b)[case.picked.columns(start, stop)[1]]
        close(dots, expected, terms=48)
        close(part.by_latent(part.pre), z[..., start:stop].sum(1), terms=48)
    close(decoded, z @ case.W.double(), terms=48)
    close(whole, z.mT @ case.x.double(), terms=48)


def test_the_same_arguments_give_the_same_bits():
    def results():
        case = Case(2, 300, 256, 64, pick=lambda pre: top_k(pre, 24))
        pairs, z, out = case.pairs, case.pairs.pre, torch.empty_like(case.W)
        pairs.outer(z, case.x, out)
        return out, pairs.decode(z, case.W), pairs.pull(case.x, case.W), pairs.by_latent(z)

    first = results()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, results(), strict=True))


def test_what_pull_gives_is_the_callers_to_change():
    case = Case(1, 12, 8, 4, pick=PICKS["half"])
    first = case.pairs.pull(case.x, case.W)
    kept = first.clone()
    first.zero_()
    assert torch.equal(case.pairs.pull(case.x, case.W), kept)


def test_torch_warns_of_nothing_and_other_warnings_pass():
    code = """
import warnings, torch
from pipeline.sae import kernels_cpu
crow, col = torch.tensor([0, 1], dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
with warnings.catch_warnings():
    warnings.simplefilter("error")
    kernels_cpu.pull(crow, col, col, torch.ones(1, 3), torch.ones(1, 3))
    kernels_cpu.outer(crow, col, torch.ones(1), torch.ones(1, 3), torch.ones(1, 3))
    try:
        warnings.warn("mine")
    except UserWarning:
        print("heard")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("heard\n", "")


def test_a_device_without_kernels_has_none():
    assert kernels_for(torch.device("meta")) is None
    assert kernels_for(torch.device("cpu")) is kernels_cpu
