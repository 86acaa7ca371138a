from copy import deepcopy

import pytest
import torch

from pipeline.config.architectures import (
    BatchTopKConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    ReluConfig,
    TopKConfig,
)
from pipeline.errors import ConfigError
from pipeline.sae.active_pairs import Dense, Scratch
from pipeline.sae.sae import SAE, TunedSAE
from tests.helpers.refusals import refused
from tests.helpers.tiny import WIDTH, make_sae

D_IN, D_SAE = 5, 12


@pytest.mark.parametrize(
    ("arch", "decoder", "encoder"),
    [
        (ReluConfig(), 1, 1),
        (ReluAprilConfig(), 0.1, 0.1),
        (TopKConfig(k=4), 1, 0.2),
        (BatchTopKConfig(k=4), 1, 0.2),
        (MatryoshkaConfig(k=4, prefixes=2), 1, 0.2),
    ],
)
def test_the_start_is_random_rows_with_the_transpose_as_encoder(arch, decoder, encoder):
    sae = SAE(arch, d_in=D_IN, d_sae=D_SAE)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), torch.full((D_SAE,), float(decoder)))
    assert torch.equal(sae.W_enc, encoder / decoder * sae.W_dec.T)
    assert not sae.b_enc.any() and not sae.b_dec.any()
    assert (sae.d_in, sae.d_sae) == (D_IN, D_SAE)


def test_thresholds_start_in_units_of_the_rows():
    sae = SAE(JumpReluConfig(l0=3.0, threshold=0.5), d_in=D_IN, d_sae=D_SAE, rms=0.6)
    torch.testing.assert_close(sae.activation.threshold, torch.full((D_SAE,), 0.3))


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
        (JumpReluConfig(l0=13.0), r"l0 = 13 is above the number of latents, 12 .*--l0"),
        (
            MatryoshkaConfig(k=3, prefixes=5),
            r"2\^4 for the prefixes is above .*, 12 .*arch.prefixes",
        ),
    ],
)
def test_more_latents_than_there_are_is_refused(arch, message):
    with pytest.raises(ConfigError, match=message):
        SAE(arch, d_in=D_IN, d_sae=D_SAE)


def test_memory_taken_again_is_the_same_and_grows_when_it_must():
    scratch, where = Scratch(), torch.device("cpu")
    first = scratch.take("a", (2, 3), dtype=torch.float32, device=where)
    assert scratch.take("a", (3,), dtype=torch.float32, device=where).data_ptr() == first.data_ptr()
    assert scratch.take("b", (3,), dtype=torch.float32, device=where).data_ptr() != first.data_ptr()
    assert scratch.take("a", (4, 5), dtype=torch.float32, device=where).shape == (4, 5)
    assert scratch.take("a", (2,), dtype=torch.bfloat16, device=where).dtype == torch.bfloat16


def test_rows_are_tensors_or_numpy_s_arrays_of_the_right_width(request):
    sae = make_sae()
    x = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sae.encode(x.double().numpy()), sae.encode(x))
    with refused(ConfigError, rf"encode takes \[\.\.\., {WIDTH}\] .*, got \[3, 99\]"):
        sae.encode(torch.zeros(3, 99))
    with refused(ConfigError, rf"decode takes \[\.\.\., {sae.d_sae}\] .*, got \[{WIDTH}\]"):
        sae.decode(torch.zeros(WIDTH))
    if not request.config.getoption("--jaxtyping-packages"):  # which refuses it before
        with refused(ConfigError, "got list"):
            sae.encode([1.0] * WIDTH)


def test_counts_are_exact_in_bfloat16_however_many_rows():
    z = torch.zeros(1, 3000, 2, dtype=torch.bfloat16)
    z[0, :2999, 0] = 1e-3
    z[0, ::3, 1] = 5.0
    dense = Dense(z, scratch=Scratch())
    assert dense.counts(z).tolist() == [[2999.0, 1000.0]]


def test_a_wrong_shape_is_caught(request):
    if not request.config.getoption("--jaxtyping-packages"):
        pytest.skip("no shape is checked: tests/elsewhere.sh gives --jaxtyping-packages")
    with pytest.raises(Exception, match="Type-check error"):
        make_sae().pre([[0.0] * WIDTH])


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
    before = deepcopy(sae.state_dict())
    tuned = moved(TunedSAE(sae))
    plain, x = tuned.fold().double(), x.double()
    torch.testing.assert_close(sae.state_dict(), before, rtol=0, atol=0)
    torch.testing.assert_close(plain.encode(x), tuned.double().encode(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(plain(x), tuned(x), rtol=1e-5, atol=1e-5)
    assert torch.equal(plain.W_dec, sae.W_dec)
    assert torch.equal(plain.b_dec, sae.b_dec)
    assert not torch.equal(plain.W_enc, sae.W_enc)
