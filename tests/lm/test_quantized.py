"""Layers of a model in few bits, in every family."""

import torch

from pipeline.lm.model import load_model
from pipeline.lm.quantized import QuantizedLinear, plain_weights
from tests.helpers.models import CPU, FP32


def test_matrices_of_layers_are_quantised_and_no_others(folder):
    lm = load_model(str(folder), device=CPU, dtype=FP32, quantize="4bit")
    layers = lm.body.get_submodule(lm.shape.family.layers)
    assert not [name for name, p in layers.named_parameters() if p.ndim > 1]
    few = [part for part in lm.module.modules() if isinstance(part, QuantizedLinear)]
    whole = load_model(str(folder), device=CPU, dtype=FP32)
    ones = whole.body.get_submodule(lm.shape.family.layers).parameters()
    assert len(few) == sum(p.ndim > 1 for p in ones)
    embeddings = (one.body.get_input_embeddings().weight for one in (lm, whole))
    assert torch.equal(*embeddings)
    tokens = torch.arange(24).view(2, 12)
    with torch.no_grad():
        near, exact = lm.hidden(tokens), whole.hidden(tokens)
        with plain_weights(lm.module):
            same = lm.hidden(tokens)
    assert few == [part for part in lm.module.modules() if isinstance(part, QuantizedLinear)]
    assert torch.equal(near, same)
    assert not torch.equal(near, exact)
    assert (near - exact).norm() < 0.5 * exact.norm()
