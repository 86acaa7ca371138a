import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from pipeline.config import ReluConfig, TopKConfig
from pipeline.errors import ConfigError
from pipeline.sae.activation import make_activation
from pipeline.sae.coder import SparseCoder, make_coder
from pipeline.sae.dead import SilentRows
from pipeline.sae.loss import code, measure

ARCHS = [ReluConfig(l1=0.3), TopKConfig(k=3)]
D_IN, D_SAE, ROWS = 5, 12, 7


def make(arch, *, seed: int = 0) -> tuple[SparseCoder, torch.Tensor]:
    """A float64 coder with every parameter away from zero, and a batch."""
    coder = make_coder(arch, d_in=D_IN, d_sae=D_SAE, seed=seed).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in coder.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return coder, torch.randn(ROWS, D_IN, generator=generator, dtype=torch.float64)


def loss_by_the_formula(params: dict[str, np.ndarray], x: np.ndarray, arch) -> float:
    """S0's loss, row by row and latent by latent."""
    total = 0.0
    for row in x:
        pre = (row - params["b_dec"]) @ params["W_enc"] + params["b_enc"]
        z = np.array([max(p, 0.0) for p in pre])
        if isinstance(arch, TopKConfig):
            kept = sorted(range(D_SAE), key=lambda i: -pre[i])[: arch.k]
            z = np.array([z[i] if i in kept else 0.0 for i in range(D_SAE)])
        x_hat = sum((z[i] * params["W_dec"][i] for i in range(D_SAE)), start=params["b_dec"])
        total += ((row - x_hat) ** 2).sum()
        if isinstance(arch, ReluConfig):
            total += arch.l1 * np.abs(z).sum()
    return total / len(x)


def as_numpy(coder: SparseCoder) -> dict[str, np.ndarray]:
    return {name: p.detach().numpy().copy() for name, p in coder.named_parameters()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: arch.kind)
def test_the_loss_is_the_formula(arch, seed):
    coder, x = make(arch, seed=seed)
    expected = loss_by_the_formula(as_numpy(coder), x.numpy(), arch)
    assert code(coder, x).losses.total.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: arch.kind)
def test_gradients_are_the_formulas_finite_differences(arch):
    coder, x = make(arch)
    code(coder, x).losses.total.backward()
    step = 1e-6
    for name, p in coder.named_parameters():
        assert p.grad is not None
        for i in np.ndindex(*p.shape):
            sides: list[float] = []
            for sign in (+1, -1):
                params = as_numpy(coder)
                params[name][i] += sign * step
                sides.append(loss_by_the_formula(params, x.numpy(), arch))
            slope = (sides[0] - sides[1]) / (2 * step)
            assert p.grad[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-7), (name, i)


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: arch.kind)
def test_forward_is_decode_after_encode_after_pre(arch):
    coder, x = make(arch)
    assert torch.equal(coder.encode(x), coder.activation(coder.pre(x)))
    assert torch.equal(coder(x), coder.decode(coder.encode(x)))
    assert torch.equal(code(coder, x).x_hat, coder(x))


def test_a_row_codes_the_same_in_a_batch_of_contexts():
    coder, x = make(TopKConfig(k=3))
    contexts = torch.stack([x, x + 1])
    torch.testing.assert_close(coder(contexts)[1], coder(x + 1))
    assert coder.pre(contexts).shape == (2, ROWS, D_SAE)


@given(k=st.integers(1, D_SAE), seed=st.integers(0, 2**31 - 1))
def test_topk_keeps_the_largest_as_an_explicit_loop_does(k: int, seed: int):
    pre = torch.randn(4, D_SAE, generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros_like(pre)
    for row, values in enumerate(pre.tolist()):
        for latent in sorted(range(D_SAE), key=lambda i: values[i], reverse=True)[:k]:
            expected[row, latent] = max(values[latent], 0.0)
    assert torch.equal(make_activation(TopKConfig(k=k))(pre), expected)


def test_total_is_the_sum_of_its_parts_and_topk_has_no_penalty():
    coder, x = make(ReluConfig(l1=0.3))
    losses = code(coder, x).losses
    assert losses.sparsity > 0
    torch.testing.assert_close(losses.total, torch.stack(list(vars(losses).values())).sum())
    coder, x = make(TopKConfig(k=3))
    assert code(coder, x).losses.sparsity == 0


def test_the_start_is_random_unit_rows_with_the_transpose_as_encoder():
    coder = make_coder(ReluConfig(), d_in=D_IN, d_sae=D_SAE)
    torch.testing.assert_close(coder.W_dec.norm(dim=-1), torch.ones(D_SAE))
    assert torch.equal(coder.W_enc, coder.W_dec.T)
    assert not coder.b_enc.any() and not coder.b_dec.any()
    assert (coder.d_in, coder.d_sae) == (D_IN, D_SAE)


def test_the_seed_is_the_whole_randomness_of_the_start():
    torch.manual_seed(1)
    first = make_coder(ReluConfig(), d_in=D_IN, d_sae=D_SAE, seed=3)
    state = torch.get_rng_state()
    again = make_coder(ReluConfig(), d_in=D_IN, d_sae=D_SAE, seed=3)
    other = make_coder(ReluConfig(), d_in=D_IN, d_sae=D_SAE, seed=4)
    assert torch.equal(first.W_dec, again.W_dec) and not torch.equal(first.W_dec, other.W_dec)
    assert torch.equal(torch.get_rng_state(), state)


def test_renormalising_keeps_directions_and_brings_rows_to_unit_norm():
    coder = make_coder(ReluConfig(), d_in=D_IN, d_sae=D_SAE)
    before = coder.W_dec.detach().clone()
    with torch.no_grad():
        coder.W_dec.mul_(torch.linspace(0.1, 9, D_SAE)[:, None])
        coder.W_dec[3] = 0
    coder.renormalise()
    before[3] = 0
    torch.testing.assert_close(coder.W_dec.detach(), before)


def test_k_above_the_number_of_latents_is_refused():
    with pytest.raises(ConfigError, match=r"k = 13 is above the number of latents, 12 .*--k"):
        make_coder(TopKConfig(k=13), d_in=D_IN, d_sae=D_SAE)


def test_measures_are_their_definitions():
    coder, x = make(TopKConfig(k=3))
    with torch.no_grad():
        coded = code(coder, x)
    measured = {name: value.item() for name, value in measure(coded).items()}
    rows, z, x_hat = x.numpy(), coded.z.numpy(), coded.x_hat.numpy()
    left = sum(((a - b) ** 2).sum() for a, b in zip(rows, x_hat, strict=True))
    spread = sum(((a - rows.mean(0)) ** 2).sum() for a in rows)
    assert measured == pytest.approx(
        {
            "loss": left / ROWS,
            "recon": left / ROWS,
            "sparsity": 0.0,
            "l0": sum(np.count_nonzero(row) for row in z) / ROWS,
            "l1": np.abs(z).sum() / ROWS,
            "explained_variance": 1 - left / spread,
        }
    )


def test_a_batch_of_equal_rows_still_gives_finite_measures():
    coder = make_coder(ReluConfig(), d_in=D_IN, d_sae=D_SAE)
    for x in (torch.ones(4, D_IN), torch.zeros(4, D_IN)):
        assert all(math.isfinite(value) for value in measure(code(coder, x)).values())


@given(seed=st.integers(0, 2**31 - 1), window=st.integers(1, 40))
def test_dead_latents_are_those_a_brute_force_count_finds(seed: int, window: int):
    rng = np.random.default_rng(seed)
    counter = SilentRows(6)
    history: list[np.ndarray] = []
    for _ in range(8):
        z = rng.random((rng.integers(1, 6), 6)) * (rng.random(6) < 0.3)
        counter.update(torch.from_numpy(z.astype(np.float32)))
        history.append(z)
        dead = 0
        for latent in range(6):
            silent = 0
            for batch in reversed(history):
                if (batch[:, latent] > 0).any():
                    break
                silent += len(batch)
            dead += silent >= window
        assert counter.n_dead(window) == dead


def test_a_wrong_shape_is_caught():
    coder, _ = make(TopKConfig(k=3))
    with pytest.raises(Exception, match="Type-check error"):
        code(coder, torch.randn(D_IN, dtype=torch.float64))
