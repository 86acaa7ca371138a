"""What narrow products leave open is decided by whole ones: nothing that is picked is different."""

from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, strategies as st

from pipeline.config.architectures import TopKConfig
from pipeline.sae import narrow
from pipeline.sae.architecture import architecture_of
from pipeline.sae.kernels import kernels_for
from pipeline.sae.sae import SAE
from pipeline.sae.stack import Stack, stacked

needs_kernels = pytest.mark.skipif(
    kernels_for(torch.device("cpu")) is None, reason="this torch has no sparse kernels for a CPU"
)
SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 6), st.sampled_from([8, 24, 96, 256, 640]))


def make_product(shape, *, d, seed, scale=1.0, shift=0.0):
    """Rows, weights and biases, and what a narrow product makes of them."""
    M, B, F = shape
    generator = torch.Generator().manual_seed(seed)
    a, w, base = (
        scale * torch.randn(*size, generator=generator) for size in ((M, B, d), (M, F, d), (M, F))
    )
    a, base = a + shift, base + shift
    return a, w, base, rough_of(a, w, base)


def rough_of(a, w, base):
    out = torch.empty(*a.shape[:2], w.shape[1], dtype=torch.bfloat16)
    return narrow.product(a, w, base=base, out=out)


def exact_of(a, w, base):
    return a.double() @ w.double().mT + base.double()[:, None]


def found_in(rough, k):
    found = torch.zeros(rough.values.numel(), dtype=torch.bool)
    found[narrow.within_reach(rough, k)] = True
    return found.view(rough.values.shape)


def largest(exact, k):
    """Where a value above zero is among the k largest of its row, or ties with them."""
    return (exact >= exact.topk(k, dim=-1).values[..., -1:]) & (exact > 0)


@given(
    shape=SHAPES, d=st.integers(1, 80), seed=st.integers(0, 999), k=st.integers(1, 8),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e15]), shift=st.sampled_from([-3.0, 0.0, 3.0]),
)  # fmt: skip
def test_whatever_is_among_the_largest_is_within_reach(shape, d, seed, k, scale, shift):
    a, w, base, rough = make_product(shape, d=d, seed=seed, scale=scale, shift=shift * scale)
    exact = exact_of(a, w, base)
    off = (rough.values.double() - exact).abs()
    rounding = 2 * narrow.CUT * (exact.abs() + rough.error.double()[..., None])
    assert (off <= rough.error.double()[..., None] + rounding).all()
    assert found_in(rough, k)[largest(exact, k)].all()


def test_few_others_are():
    """Or the second look would cost more than the first."""
    *_, rough = make_product((1, 200, 2048), d=512, seed=0)
    assert 32 <= found_in(rough, 32).sum().item() / 200 < 64


def cut_down(*, less):
    """Sums over 64 numbers of which 2^-8 of each is cut, less as many equal ones."""
    a, w = torch.ones(1, 1, 129), torch.zeros(1, 16, 129)
    w[0, 3, :64] = 1 + 2.0**-8 - 2.0**-12  # cut to 1
    w[0, 3, 64:128] = -less
    return a, w


def test_what_narrow_numbers_would_pick_wrongly_is_put_right():
    a, w = cut_down(less=0.9375)
    w[0, 9] = w[0, 3]
    w[0, 9, :64:2] = 1 + 2.0**-8 + 2.0**-12  # cut up to 1 + 2^-7
    w[0, 9, 1:64:2] = 1 - 2.0**-9 + 2.0**-12  # to 1
    rough = rough_of(a, w, torch.zeros(1, 16))
    exact = exact_of(a, w, torch.zeros(1, 16))
    assert (rough.values.argmax().item(), exact.argmax().item()) == (9, 3)
    assert found_in(rough, 1)[0, 0].nonzero().flatten().tolist() == [3, 9]


def test_what_is_above_zero_though_its_narrow_numbers_are_not_is_within_reach():
    a, w = cut_down(less=1.0)
    w[0, :, 128] = -0.125
    w[0, 4:, 128] = -2.0
    rough = rough_of(a, w, torch.zeros(1, 16))
    exact = exact_of(a, w, torch.zeros(1, 16))
    assert rough.values.max() < 0 < exact.max()
    assert found_in(rough, 1)[0, 0, 3]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_where_numbers_are_not_finite_nothing_is_ruled_out(bad):
    a, w, base, _ = make_product((1, 4, 64), d=16, seed=0)
    a[0, 2, 5] = bad
    assert found_in(rough_of(a, w, base), 3)[0, 2].all()
    w[0, 7, 5] = bad
    assert found_in(rough_of(a, w, base), 3).all()


@given(data=st.data(), k=st.integers(1, 5), seed=st.integers(0, 999))
def test_the_largest_of_ragged_rows_the_first_of_equal_ones(data, k, seed):
    counts = data.draw(st.lists(st.integers(k, 3 * narrow.WIDE * k), max_size=6))
    crow = torch.tensor([0, *counts]).cumsum(0).int()
    x = torch.randn(int(crow[-1]), generator=torch.Generator().manual_seed(seed))
    if data.draw(st.booleans()):
        x = x.round()  # ties
    x[x > 2] = float("nan")  # counts as the largest, as for torch
    kept = narrow.largest_of_rows(x, crow, k).tolist()
    expected = list[int]()
    for start, stop in zip(crow.tolist(), crow[1:].tolist(), strict=False):
        order = torch.sort(x[start:stop], descending=True, stable=True).indices[:k]
        expected += sorted((start + order).tolist())
    assert kept == expected


def test_what_is_no_number_is_the_largest():
    x = torch.tensor([1.0, 2.0, 2.0, float("nan")])
    assert narrow.largest_of_rows(x, torch.tensor([0, 4]).int(), 2).tolist() == [1, 3]


def learned(x, *, dead, monkeypatch, fast, odd=False, k=4):
    """Loss and gradients of two members, by narrow products or not."""
    monkeypatch.setattr(narrow, "fast", lambda: fast)
    config = TopKConfig(k=k)
    arch = architecture_of(config, d_in=x.shape[1], d_sae=256)
    saes = [SAE(config, d_in=x.shape[1], d_sae=256, seed=seed) for seed in (0, 1)]
    stack = Stack(stacked(saes, arch), arch)
    if odd:
        stack.params["b_enc"].sub_(100)  # nothing is above zero
    parts = stack.learn(x, coefficient=torch.zeros(2), dead=dead, sparse=True)
    return {"counts": parts.counts, "recon": parts.recon, "aux": parts.aux, **stack.grads}


@needs_kernels
@pytest.mark.parametrize("odd", [False, True], ids=["as ever", "nothing active"])
def test_a_step_learns_the_same(odd, monkeypatch):
    x = torch.randn(300, 24, generator=torch.Generator().manual_seed(0))
    x[5] = 0
    dead = torch.zeros(2, 256, dtype=torch.bool)
    dead[1, 3:9] = True
    wide = learned(x, dead=dead, monkeypatch=monkeypatch, fast=False, odd=odd)
    asked = Mock(side_effect=narrow.product)
    monkeypatch.setattr(narrow, "product", asked)
    got = learned(x, dead=dead, monkeypatch=monkeypatch, fast=True, odd=odd)
    assert asked.called
    assert torch.equal(got["counts"], wide["counts"])
    for name, expected in wide.items():
        torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-6, msg=name)


@needs_kernels
@pytest.mark.parametrize(("k", "narrowly"), [(4, True), (5, False)])
def test_of_many_latents_nothing_is_looked_at_closely(k, narrowly, monkeypatch):
    """Pairs that are computed alone would cost more than the whole product."""
    asked = Mock(side_effect=narrow.product)
    monkeypatch.setattr(narrow, "product", asked)
    learned(torch.ones(3, 24), dead=None, monkeypatch=monkeypatch, fast=True, k=k)
    assert asked.called == narrowly
