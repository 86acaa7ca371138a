import pytest
import torch

from pipeline.config.architectures import ReluConfig, TopKConfig
from pipeline.sae.sae import TunedSAE
from tests.helpers.tiny import WIDTH, make_sae

ARCHS = [ReluConfig(), TopKConfig(k=5)]


def moved(tuned: TunedSAE) -> TunedSAE:
    """The same with every scale and bias somewhere else, some scales below zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        tuned.c.normal_(mean=0.8, std=0.6, generator=generator)
        tuned.d.normal_(std=0.5, generator=generator)
    return tuned


@pytest.fixture(params=ARCHS, ids=lambda arch: arch.kind)
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
