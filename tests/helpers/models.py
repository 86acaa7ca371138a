"""Small random models of every family, to hold what is read of them to transformers itself."""

from pathlib import Path

import torch
import transformers

from pipeline.lm.hooks import HookedModel
from pipeline.lm.sites import LayerSite, Site
from tests.helpers.slow import cases

CPU, FP32 = torch.device("cpu"), torch.float32
N_LAYERS = 3
TOKENS = torch.arange(24).reshape(2, 12) % 60
_SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": N_LAYERS, "num_attention_heads": 4,
    "intermediate_size": 96, "max_position_embeddings": 32,
}  # fmt: skip


def neox(*, parallel: bool = True) -> transformers.PreTrainedModel:
    config = transformers.GPTNeoXConfig(**_SIZES, use_parallel_residual=parallel)
    return transformers.GPTNeoXForCausalLM(config)


def gpt2(*, n_inner: int = 96) -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=N_LAYERS, n_head=4, n_inner=n_inner, n_positions=32
    )
    return transformers.GPT2LMHeadModel(config)


def llama(*, tied: bool = True) -> transformers.PreTrainedModel:
    """Heads that are narrower than their share of the stream, and its embeddings tied or not."""
    config = transformers.LlamaConfig(
        **_SIZES, num_key_value_heads=2, head_dim=6, tie_word_embeddings=tied
    )
    return transformers.LlamaForCausalLM(config)


def helium() -> transformers.PreTrainedModel:
    """Of a family that saepipe does not know by name."""
    config = transformers.HeliumConfig(**_SIZES, num_key_value_heads=2, head_dim=8)
    return transformers.HeliumForCausalLM(config)


MAKERS = {"pythia": neox, "neox-serial": lambda: neox(parallel=False), "gpt2": gpt2, "llama": llama}
EACH_FAMILY = cases({name: name for name in MAKERS}, fast={"pythia", "llama"})
"""Names of them, as the parameters of a test or a fixture."""


def save_random(model: transformers.PreTrainedModel, folder: Path) -> Path:
    """Save it with random weights: default biases of zero would hide one that was not loaded."""
    torch.manual_seed(0)
    for p in model.parameters():
        p.data.normal_(std=0.2)
    model.save_pretrained(folder)
    return folder


def reference(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=FP32).eval()


def sites_of(model: HookedModel) -> list[Site]:
    """All there are."""
    return [
        LayerSite(layer, kind)
        for layer in range(model.shape.n_layers)
        for kind in model.shape.kinds()
    ]


def hooks_on(model: HookedModel) -> int:
    modules = list(model.body.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)
