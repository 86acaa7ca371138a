"""An SAE under the names that SAEBench asks for: it computes what the run does."""

import json
import sys
from pathlib import Path

import pytest
import torch

from pipeline.config.architectures import (
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluConfig,
    TiedConfig,
    TopKConfig,
)
from pipeline.config.stages import FinetuneConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.exchange.saebench import saebench
from pipeline.finetune.run import FinetunedRun
from pipeline.runs.sae_run import SAERun
from tests.helpers.refusals import refused
from tests.helpers.tiny import CTX_LEN, make_sae, make_text, save_sae
from tests.helpers.tunings import finetune


def saved(folder: Path, sae=None, **settings) -> Path:
    sae = sae or make_sae()
    return save_sae(folder / "run", sae, **{"model": "builtin", "arch": sae.arch} | settings)


ARCHS = (
    ReluConfig(), TiedConfig(), GatedConfig(), TopKConfig(k=6), BatchTopKConfig(k=6),
    MatryoshkaConfig(k=6, prefixes=3), JumpReluConfig(),
)  # fmt: skip
X = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: arch.kind)
def test_it_computes_what_the_run_does(tmp_path, arch):
    sae = make_sae(arch=arch)
    with torch.no_grad():
        for p in sae.activation.parameters():
            p.uniform_(0.1, 0.5, generator=torch.Generator().manual_seed(1))
    made = saebench(saved(tmp_path, sae), device="cpu")
    assert torch.equal(made.encode(X), sae.encode(X))
    assert torch.equal(made.decode(made.encode(X)), sae(X)) and torch.equal(made(X), sae(X))
    for name in ("W_enc", "b_enc", "W_dec", "b_dec"):
        assert torch.equal(getattr(made, name), getattr(sae, name))
    assert not made.training and "sae_bench" not in sys.modules


def test_of_a_gated_one_it_has_the_bias_that_saebench_looks_for(tmp_path):
    sae = make_sae(arch=GatedConfig())
    made = saebench(saved(tmp_path, sae))
    assert made.cfg.architecture == "gated"
    assert torch.equal(made.b_mag, sae.activation.b_mag)


def test_a_fine_tuned_one_is_folded(tmp_path, tiny_model):
    run = saved(tmp_path, model=tiny_model)
    text = make_text(tmp_path / "a.txt", n_contexts=40)
    finetune(
        FinetuneConfig(
            run=run, out=tmp_path / "tuned", text=text, batch_size=4, epochs=1, steps_per_epoch=5,
            ctx_len=CTX_LEN, heldout_contexts=4, lr=0.2, device="cpu",
        )
    )  # fmt: skip
    made, own = (
        saebench(tmp_path / "tuned", device="cpu"),
        FinetunedRun.open(tmp_path / "tuned").sae,
    )
    torch.testing.assert_close(made.encode(X), own.encode(X), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made.encode(X), saebench(run, device="cpu").encode(X))
    assert made.cfg.model_name == str(tiny_model)


def test_its_config_says_where_it_belongs(tmp_path):
    run = saved(tmp_path)
    made = saebench(run, device="cpu")
    cfg, source = made.cfg, SAERun.open(run).provenance
    assert (cfg.hook_name, cfg.hook_layer) == ("blocks.1.hook_mlp_out", 1)
    assert (cfg.d_in, cfg.d_sae, cfg.context_size) == (16, 64, source.ctx_len)
    assert (cfg.model_name, cfg.architecture, cfg.dtype) == (source.model, "relu", "float32")
    assert cfg.prepend_bos is False and cfg.normalize_activations == "none"
    assert saebench(run, model_name="pythia-70m").cfg.model_name == "pythia-70m"
    cfg.metadata = object()  # as SAEBench adds
    assert json.loads(json.dumps(cfg.to_dict()))["hook_layer"] == 1


def test_it_follows_to_another_dtype(tmp_path):
    made = saebench(saved(tmp_path), dtype=torch.bfloat16)
    assert (made.dtype, made.cfg.dtype) == (torch.bfloat16, "bfloat16")
    assert made.encode(X.bfloat16()).dtype == torch.bfloat16
    assert made.to(device="cpu", dtype=torch.float64) is made
    assert (made.dtype, made.cfg.dtype, str(made.device)) == (torch.float64, "float64", "cpu")
    assert made.encode(X.double()).dtype == torch.float64


def test_a_run_of_an_unknown_model_must_be_told_its_name(tmp_path):
    run = saved(tmp_path, model="")
    with refused(ConfigError, "name it with model_name"):
        saebench(run)
    assert saebench(run, model_name="gpt2").cfg.model_name == "gpt2"
    with refused(CheckpointError, "not a run"):
        saebench(tmp_path / "nowhere")
