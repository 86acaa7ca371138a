"""What only a CUDA device can show; skipped without one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from actstore.reader import ActStore
from pipeline.archs import TopKConfig
from pipeline.config import HarvestConfig, TrainConfig
from pipeline.device import pick_precision
from pipeline.harvest import harvest
from pipeline.plan import make_plan
from pipeline.train import train
from tests.tiny import CTX_LEN, make_model, make_text

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]


@pytest.fixture
def config(tmp_path) -> HarvestConfig:
    return HarvestConfig(
        out=tmp_path / "gpu.actstore", model=str(make_model(tmp_path / "model")),
        text=make_text(tmp_path / "text.txt", n_contexts=200), sites=("mlp_out.1", "resid_pre.2"),
        tokens=190 * CTX_LEN, ctx_len=CTX_LEN, device="cuda", precision="fp32", dtype="fp32",
        shard_rows=32 * CTX_LEN,
    )  # fmt: skip


def test_a_harvest_on_the_gpu_stores_what_one_on_the_cpu_stores(config):
    on_cpu = replace(config, device="cpu", out=config.out.with_name("cpu.actstore"))
    harvest(make_plan(config))
    harvest(make_plan(on_cpu))
    gpu, cpu = ActStore.open(config.out), ActStore.open(on_cpu.out)
    for shard in range(gpu.n_shards):
        np.testing.assert_array_equal(gpu.shard("token_id", shard), cpu.shard("token_id", shard))
        for site in gpu.sites:
            x, y = gpu.shard(site, shard), cpu.shard(site, shard)
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)


def test_training_on_the_gpu_learns(config, tmp_path):
    harvest(make_plan(config))
    report = train(
        TrainConfig(
            store=config.out,
            out=tmp_path / "run",
            site="mlp_out.1",
            arch=TopKConfig(k=4),
            lr=3e-3,
            tokens=200_000,
            batch_size=256,
            device="cuda",
        )
    )
    assert report.explained_variance > 0.5


def test_auto_precision_is_bf16_on_a_gpu_that_has_it():
    wanted = "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    assert pick_precision("auto", device=torch.device("cuda")) == wanted
