import math

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from pipeline.config.architectures import (
    ARCHS,
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    ReluConfig,
    TopKConfig,
)
from pipeline.errors import ConfigError
from pipeline.sae.active_pairs import Dense, Scratch
from pipeline.sae.architecture import Parts, architecture_of, measure
from pipeline.sae.sae import SAE, TunedSAE
from pipeline.sae.stack import stacked, to_params, to_state
from tests.helpers.tiny import WIDTH, make_sae

D_IN, D_SAE, ROWS = 5, 12, 7
SMALL = {
    kind: config(**({"k": 3} if hasattr(config, "k") else {"l0": 3.0} if "jump" in kind else {}))
    for kind, config in ARCHS.items()
} | {"matryoshka": MatryoshkaConfig(k=3, prefixes=3)}
every_arch = pytest.mark.parametrize("arch", SMALL.values(), ids=lambda arch: arch.kind)


def make(arch, *, seed: int = 0):
    """A float64 sae with every parameter away from where it starts, and a batch."""
    sae = SAE(arch, d_in=D_IN, d_sae=D_SAE, seed=seed).double()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in sae.parameters():
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64).abs())
    return sae, torch.randn(ROWS, D_IN, generator=generator, dtype=torch.float64)


def activation(arch, **given):
    return architecture_of(arch, d_in=D_IN, d_sae=D_SAE, **given).activation()


@every_arch
def test_forward_is_decode_after_encode_after_pre(arch):
    sae, x = make(arch)
    assert torch.equal(sae.encode(x), sae.activation(sae.pre(x)))
    assert torch.equal(sae(x), sae.decode(sae.encode(x)))
    assert (sae.encode(x) >= 0).all()


@every_arch
def test_a_sae_survives_becoming_parameters_and_back(arch):
    sae, _ = make(arch)
    kind = architecture_of(arch, d_in=D_IN, d_sae=D_SAE)
    state = to_state(to_params(sae.state_dict(), kind))
    assert state.keys() == sae.state_dict().keys()
    for name, value in sae.state_dict().items():
        torch.testing.assert_close(state[name], value)
    assert set(stacked([sae], kind)) >= set(kind.trained)


def test_thresholds_and_gates_are_their_formulas():
    pre = torch.randn(50, D_SAE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    threshold = activation(JumpReluConfig(l0=3.0, threshold=0.5), rms=0.6).double()
    expected = [[v if v > 0.3 else 0.0 for v in row] for row in pre.tolist()]
    torch.testing.assert_close(threshold(pre).tolist(), expected)
    batch = activation(BatchTopKConfig(k=3)).double()
    assert torch.equal(batch(pre), pre.relu())
    with torch.no_grad():
        batch.threshold.fill_(1.1)
    assert torch.equal(batch(pre), torch.where(pre > 1.1, pre, 0.0))
    gated = activation(GatedConfig()).double()
    with torch.no_grad():
        gated.b_gate.fill_(-0.2)
        gated.r_mag.fill_(0.7)
        gated.b_mag.fill_(0.1)
    expected = [
        [max(math.exp(0.7) * v + 0.1, 0.0) if v - 0.2 > 0 else 0.0 for v in row]
        for row in pre.tolist()
    ]
    torch.testing.assert_close(gated(pre).tolist(), expected)


def test_a_row_codes_the_same_in_a_batch_of_contexts():
    sae, x = make(TopKConfig(k=3))
    contexts = torch.stack([x, x + 1])
    torch.testing.assert_close(sae(contexts)[1], sae(x + 1))
    assert sae.pre(contexts).shape == (2, ROWS, D_SAE)


@given(k=st.integers(1, D_SAE), seed=st.integers(0, 2**31 - 1))
def test_topk_keeps_the_largest_as_an_explicit_loop_does(k: int, seed: int):
    pre = torch.randn(4, D_SAE, generator=torch.Generator().manual_seed(seed))
    expected = torch.zeros_like(pre)
    for row, values in enumerate(pre.tolist()):
        for latent in sorted(range(D_SAE), key=lambda i: values[i], reverse=True)[:k]:
            expected[row, latent] = max(values[latent], 0.0)
    assert torch.equal(activation(TopKConfig(k=k))(pre), expected)


def test_the_start_is_random_unit_rows_with_the_transpose_as_encoder():
    sae = SAE(ReluConfig(), d_in=D_IN, d_sae=D_SAE)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
    assert torch.equal(sae.W_enc, sae.W_dec.T)
    assert not sae.b_enc.any() and not sae.b_dec.any()
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)
    april = SAE(ReluAprilConfig(), d_in=D_IN, d_sae=D_SAE)
    torch.testing.assert_close(april.W_dec.norm(dim=-1), torch.full((D_SAE,), 0.1))
    assert torch.equal(april.W_enc, april.W_dec.T)
    for competing in (TopKConfig(k=4), BatchTopKConfig(k=4), MatryoshkaConfig(k=4, prefixes=2)):
        sae = SAE(competing, d_in=D_IN, d_sae=D_SAE)
        torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.ones(D_SAE))
        torch.testing.assert_close(sae.W_enc, 0.2 * sae.W_dec.T)


def test_the_seed_is_the_whole_randomness_of_the_start():
    torch.manual_seed(1)
    first = SAE(ReluConfig(), d_in=D_IN, d_sae=D_SAE, seed=3)
    state = torch.get_rng_state()
    again = SAE(ReluConfig(), d_in=D_IN, d_sae=D_SAE, seed=3)
    other = SAE(ReluConfig(), d_in=D_IN, d_sae=D_SAE, seed=4)
    assert torch.equal(first.W_dec, again.W_dec) and not torch.equal(first.W_dec, other.W_dec)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        (TopKConfig(k=13), r"k = 13 is above the number of latents, 12 .*--k"),
        (BatchTopKConfig(k=13), r"k = 13 is above"),
        (JumpReluConfig(l0=13.0), r"l0 = 13 is above the number of latents, 12 .*--set arch.l0"),
        (
            MatryoshkaConfig(k=3, prefixes=5),
            r"2\^4 for the prefixes is above .*, 12 .*arch.prefixes",
        ),
    ],
)
def test_more_latents_than_there_are_is_refused(arch, message):
    with pytest.raises(ConfigError, match=message):
        SAE(arch, d_in=D_IN, d_sae=D_SAE)


def make_parts(z: torch.Tensor, x_hat: torch.Tensor, x: torch.Tensor) -> Parts:
    zero = torch.zeros(1, dtype=x.dtype)
    residual = (x_hat - x)[None]
    return Parts(
        recon=residual.square().sum((1, 2)) / len(x),
        sparsity=zero + 2,
        aux=zero + 1,
        l1=z.sum()[None] / len(x),
        counts=(z > 0).sum(0, keepdim=True).to(x.dtype),
        residual=residual,
    )


def test_measures_are_their_definitions():
    sae, x = make(TopKConfig(k=3))
    with torch.no_grad():
        z, x_hat = sae.encode(x), sae(x)
    measured = {name: value.item() for name, value in measure(x, make_parts(z, x_hat, x)).items()}
    rows = x.numpy()
    left = sum(((a - b) ** 2).sum() for a, b in zip(rows, x_hat.numpy(), strict=True))
    spread = sum(((a - rows.mean(0)) ** 2).sum() for a in rows)
    assert measured == pytest.approx(
        {
            "loss": left / ROWS + 3,
            "recon": left / ROWS,
            "sparsity": 2.0,
            "aux": 1.0,
            "l0": sum(np.count_nonzero(row) for row in z.numpy()) / ROWS,
            "l1": np.abs(z.numpy()).sum() / ROWS,
            "explained_variance": 1 - left / spread,
        }
    )


def test_a_batch_of_equal_rows_still_gives_finite_measures():
    sae, _ = make(ReluConfig())
    for x in (torch.ones(4, D_IN).double(), torch.zeros(4, D_IN).double()):
        with torch.no_grad():
            parts = make_parts(sae.encode(x), sae(x), x)
        assert all(math.isfinite(value) for value in measure(x, parts).values())


def test_memory_taken_again_is_the_same_and_grows_when_it_must():
    scratch, where = Scratch(), torch.device("cpu")
    first = scratch.take("a", (2, 3), dtype=torch.float32, device=where)
    assert scratch.take("a", (3,), dtype=torch.float32, device=where).data_ptr() == first.data_ptr()
    assert scratch.take("b", (3,), dtype=torch.float32, device=where).data_ptr() != first.data_ptr()
    assert scratch.take("a", (4, 5), dtype=torch.float32, device=where).shape == (4, 5)
    assert scratch.take("a", (2,), dtype=torch.bfloat16, device=where).dtype == torch.bfloat16


def test_counts_are_exact_in_bfloat16_however_many_rows():
    z = torch.zeros(1, 3000, 2, dtype=torch.bfloat16)
    z[0, :2999, 0] = 1e-3
    z[0, ::3, 1] = 5.0
    dense = Dense(z, scratch=Scratch())
    assert dense.counts(z).tolist() == [[2999.0, 1000.0]]


def test_a_wrong_shape_is_caught():
    sae, _ = make(TopKConfig(k=3))
    with pytest.raises(Exception, match="Type-check error"):
        sae.pre(torch.randn(3, D_IN).tolist())


# --- an SAE seen through a scale and a bias per latent ---------------------------------------


def moved(tuned: TunedSAE) -> TunedSAE:
    """The same with every scale and bias somewhere else, some scales below zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        tuned.c.normal_(mean=0.8, std=0.6, generator=generator)
        tuned.d.normal_(std=0.5, generator=generator)
    return tuned


@pytest.fixture(params=[ReluConfig(), TopKConfig(k=5)], ids=lambda arch: arch.kind)
def sae(request):
    return make_sae(arch=request.param)


@pytest.fixture
def x():
    return torch.randn(3, 50, WIDTH, generator=torch.Generator().manual_seed(1))


def test_it_starts_as_the_sae_itself_bit_for_bit(sae, x):
    tuned = TunedSAE(sae)
    assert torch.equal(tuned(x), sae(x))
    assert torch.equal(tuned.encode(x), sae.encode(x))


def test_scale_and_bias_act_just_before_the_activation(x):
    sae = make_sae()
    tuned = moved(TunedSAE(sae))
    pre = (x.double() - sae.b_dec) @ sae.W_enc.double() + sae.b_enc
    z = (tuned.c * pre + tuned.d).clamp_min(0)
    expected = z @ sae.W_dec.double() + sae.b_dec
    torch.testing.assert_close(tuned(x).double(), expected, rtol=1e-4, atol=1e-4)


def test_folding_gives_a_plain_sae_that_computes_the_same(sae, x):
    tuned = moved(TunedSAE(sae))
    plain, x = tuned.fold().double(), x.double()
    torch.testing.assert_close(plain.encode(x), tuned.double().encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain(x), tuned(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(plain.W_dec, sae.W_dec)
    assert torch.equal(plain.b_dec, sae.b_dec)
    assert not torch.equal(plain.W_enc, sae.W_enc)


def test_folding_leaves_the_frozen_sae_as_it_is(sae):
    before = {name: value.clone() for name, value in sae.state_dict().items()}
    moved(TunedSAE(sae)).fold()
    for name, value in sae.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_only_scales_and_biases_can_learn(sae, x):
    tuned = TunedSAE(sae)
    tuned(x).square().sum().backward()
    learning = {name for name, p in tuned.named_parameters() if p.requires_grad}
    assert learning == {"c", "d"}
    for name, p in tuned.named_parameters():
        assert (p.grad is not None and p.grad.any()) == (name in learning), name
