"""What narrow products leave open is decided by whole ones: nothing that is picked is different."""

import math
from unittest.mock import Mock, patch

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


def sums_at(a, w, base):
    """What looks closely at some latents of each row."""
    exact = exact_of(a, w, base).flatten(0, 1).float()
    return lambda latents: exact.gather(1, latents)


def left_open(rough, exact, k, *, more=0):
    """Rows left open where as many more are looked at, and the latents that are."""
    every = rough.values.flatten(0, 1)
    looked_at = every.float().topk(k + more, dim=1).indices
    values = exact.flatten(0, 1).float().gather(1, looked_at).topk(k, dim=1).values
    return narrow.left_open(rough, looked_at, values).tolist(), looked_at


@given(
    shape=SHAPES, d=st.integers(1, 80), seed=st.integers(0, 999), k=st.integers(1, 8),
    scale=st.sampled_from([1e-20, 1e-3, 1.0, 1e15]), shift=st.sampled_from([-3.0, 0.0, 3.0]),
)  # fmt: skip
def test_the_largest_are_those_of_whole_numbers(shape, d, seed, k, scale, shift):
    a, w, base, rough = make_product(shape, d=d, seed=seed, scale=scale, shift=shift * scale)
    exact = exact_of(a, w, base)
    values, u = rough.values.double(), narrow.CUT
    error = (1 + 4 * u) * rough.error.double()[..., None]
    assert ((values - exact).abs() <= error + 2 * u * (1 + 2 * u) * values.abs()).all()

    latents, values = narrow.largest(
        a, w, base=base, k=k, closely=sums_at(a, w, base), out=torch.empty_like(rough.values)
    )
    exact = exact.flatten(0, 1)
    expected = exact.topk(k, dim=1).values
    slack = 1e-5 * exact.abs().amax().item()
    at_those = exact.gather(1, latents)
    torch.testing.assert_close(values.double(), at_those, rtol=0, atol=slack)
    got = at_those.sort(dim=1, descending=True).values
    torch.testing.assert_close(got.relu(), expected.relu(), rtol=0, atol=slack)


@given(
    shape=SHAPES, d=st.integers(1, 80), seed=st.integers(0, 999), k=st.integers(1, 8),
    shift=st.sampled_from([-3.0, 0.0, 3.0]),
)  # fmt: skip
def test_of_a_row_that_is_not_left_open_no_other_is_larger(shape, d, seed, k, shift):
    a, w, base, rough = make_product(shape, d=d, seed=seed, shift=shift)
    exact = exact_of(a, w, base)
    open_rows, looked_at = left_open(rough, exact, k)
    exact = exact.flatten(0, 1)
    least = exact.gather(1, looked_at).amin(1)
    others = exact.scatter(1, looked_at, -torch.inf).amax(1)
    overlooked = (others > least) & (others > 0)
    assert set(overlooked.nonzero().flatten().tolist()) <= set(open_rows)


def test_few_rows_are_left_open():
    """Or narrow products would save nothing."""
    a, w, base, rough = make_product((1, 400, 2048), d=512, seed=0)
    more = math.ceil(narrow.MORE * 32)
    open_rows, _ = left_open(rough, exact_of(a, w, base), 32, more=more)
    assert len(open_rows) < 400 / 8


def cut_down(*, less):
    """Sums over 64 numbers of which 2^-8 of each is cut, less as many equal ones."""
    a, w = torch.ones(1, 1, 129), torch.zeros(1, 16, 129)
    w[0, 3, :64] = 1 + 2.0**-8 - 2.0**-12  # cut to 1
    w[0, 3, 64:128] = -less
    return a, w


def largest_of(a, w, *, at_once):
    """The one latent that is picked, where only as many are looked at."""
    base = torch.zeros(1, 16)
    out = rough_of(a, w, base).values
    with patch.object(narrow, "MORE", at_once - 1):
        latents, _ = narrow.largest(a, w, base=base, k=1, closely=sums_at(a, w, base), out=out)
    return latents.item()


@pytest.mark.parametrize("at_once", [1, 2])
def test_what_narrow_numbers_would_pick_wrongly_is_put_right(at_once):
    a, w = cut_down(less=0.9375)
    w[0, 9] = w[0, 3]
    w[0, 9, :64:2] = 1 + 2.0**-8 + 2.0**-12  # cut up to 1 + 2^-7
    w[0, 9, 1:64:2] = 1 - 2.0**-9 + 2.0**-12  # to 1
    rough = rough_of(a, w, torch.zeros(1, 16))
    exact = exact_of(a, w, torch.zeros(1, 16))
    assert (rough.values.argmax().item(), exact.argmax().item()) == (9, 3)
    assert largest_of(a, w, at_once=at_once) == 3


def test_what_the_cut_of_a_row_hides_is_put_right():
    a, w = torch.ones(1, 1, 129), torch.zeros(1, 16, 129)
    a[0, 0, :64] = 1 + 2.0**-8 - 2.0**-12  # cut to 1
    w[0, 3, :64] = w[0, 9, 48:112] = 1
    w[0, :, 128], w[0, 9, 128] = -63.75, -63.625
    rough = rough_of(a, w, torch.zeros(1, 16))
    assert (rough.values.argmax().item(), exact_of(a, w, torch.zeros(1, 16)).argmax()) == (9, 3)
    assert largest_of(a, w, at_once=1) == 3


@pytest.mark.parametrize("best", range(16))
def test_what_rounding_of_sums_hides_is_put_right(best):
    a, w = torch.ones(1, 1, 2), torch.full((1, 16, 2), 256.0)
    w[0, :, 1] = 0.125
    w[0, best, 1] = 0.75
    assert rough_of(a, w, torch.zeros(1, 16)).values.unique().tolist() == [256]
    assert largest_of(a, w, at_once=1) == best


def test_a_sum_may_be_rounded_before_its_base_is_added():
    """As by a torch whose product does not add it to what is not rounded."""
    a, w, base = torch.ones(1, 1, 2), torch.tensor([[[256.0, 0.75]]]), torch.tensor([[-256.0]])
    assert torch.tensor(256.75).bfloat16() + base.bfloat16() == 0
    assert rough_of(a, w, base).error.item() >= 0.75


def test_what_is_above_zero_though_its_narrow_numbers_are_not_is_found():
    a, w = cut_down(less=1.0)
    w[0, :, 128] = -0.125
    w[0, 9, 128] = -0.0625
    rough = rough_of(a, w, torch.zeros(1, 16))
    exact = exact_of(a, w, torch.zeros(1, 16))
    assert rough.values.max() < 0 < exact.max()
    assert (rough.values.argmax().item(), exact.argmax().item()) == (9, 3)
    assert largest_of(a, w, at_once=1) == 3


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_where_numbers_are_not_finite_nothing_is_ruled_out(bad):
    a, w, base, _ = make_product((1, 4, 64), d=16, seed=0)
    a[0, 2, 5] = bad
    assert 2 in left_open(rough_of(a, w, base), exact_of(a, w, base), 3)[0]
    w[0, 7, 5] = bad
    assert left_open(rough_of(a, w, base), exact_of(a, w, base), 3)[0] == [0, 1, 2, 3]


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
@pytest.mark.parametrize("more", [0, 0.5, 100], ids=["rows are open", "few are", "none is"])
def test_a_step_learns_the_same(odd, more, monkeypatch):
    x = torch.randn(300, 24, generator=torch.Generator().manual_seed(0))
    x[5] = 0
    dead = torch.zeros(2, 256, dtype=torch.bool)
    dead[1, 3:9] = True
    monkeypatch.setattr(narrow, "MORE", more)
    wide = learned(x, dead=dead, monkeypatch=monkeypatch, fast=False, odd=odd)
    asked = Mock(side_effect=narrow.product)
    monkeypatch.setattr(narrow, "product", asked)
    got = learned(x, dead=dead, monkeypatch=monkeypatch, fast=True, odd=odd)
    assert asked.called
    assert torch.equal(got["counts"], wide["counts"])
    for name, expected in wide.items():
        torch.testing.assert_close(got[name], expected, rtol=1e-4, atol=1e-6, msg=name)


@needs_kernels
@pytest.mark.parametrize(("k", "narrowly"), [(8, True), (9, False)])
def test_of_many_latents_nothing_is_looked_at_closely(k, narrowly, monkeypatch):
    """Pairs that are computed alone would cost more than the whole product."""
    asked = Mock(side_effect=narrow.product)
    monkeypatch.setattr(narrow, "product", asked)
    learned(torch.ones(3, 24), dead=None, monkeypatch=monkeypatch, fast=True, k=k)
    assert asked.called == narrowly
