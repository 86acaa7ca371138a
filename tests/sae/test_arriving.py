import pytest
import torch

from pipeline.config.architectures import ARCHS
from pipeline.sae.architecture import architecture_of
from pipeline.sae.sae import SAE
from pipeline.sae.stack import Stack, stacked

KINDS = ("relu", "relu-april", "tied", "gated", "topk", "batchtopk", "jumprelu")


@pytest.mark.parametrize("kind", KINDS)
def test_the_share_that_is_active_is_sent_where_someone_asks_for_it(kind):
    config = ARCHS[kind](**{ARCHS[kind].l0_as: 3})
    saes = [SAE(config, d_in=6, d_sae=24, seed=seed) for seed in range(2)]
    arch = architecture_of(config, d_in=6, d_sae=24)
    stack = Stack(stacked(saes, arch), arch)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        told = stack.learn(x, coefficient=torch.ones(2), watched=True)
        assert stack.learn(x, coefficient=torch.ones(2)).density is None
    assert told.density.tolist() == (told.counts.sum(-1) / (50 * 24)).tolist()
    assert all(0 < share < 1 for share in told.density.tolist())
