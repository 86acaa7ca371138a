"""What only a CUDA device can show; skipped without one."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from actstore.reader import ActStore
from pipeline.config.architectures import TopKConfig
from pipeline.config.stages import HarvestConfig
from pipeline.config.training import TrainConfig
from pipeline.device import pick_precision
from pipeline.harvest.harvest import harvest
from pipeline.training.train import train
from tests.helpers.tiny import CTX_LEN, make_model, make_text
from tests.helpers.training import (
    assert_alike,
    lines_of,
    make_training_store,
    result,
    settings_for,
    train_settings,
    unfinish,
)

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
    on_cpu = replace(config, device="cpu", out=config.out.parent / "cpu" / "acts.actstore")
    harvest(config)
    assert not harvest(on_cpu).reused
    gpu, cpu = ActStore.open(config.out), ActStore.open(on_cpu.out)
    for shard in range(gpu.n_shards):
        np.testing.assert_array_equal(gpu.shard("token_id", shard), cpu.shard("token_id", shard))
        for site in gpu.sites:
            x, y = gpu.shard(site, shard), cpu.shard(site, shard)
            np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-3)


def test_training_on_the_gpu_learns(config, tmp_path):
    harvest(config)
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


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return make_training_store(tmp_path_factory.mktemp("stores") / "a.actstore")


KINDS: dict[str, dict[str, object]] = {
    "relu": {"l1": 0.1}, "relu-april": {"l1": 0.1}, "tied": {"l1": 0.1}, "gated": {"l1": 0.1},
    "topk": {"k": 2}, "batchtopk": {"k": 2}, "matryoshka": {"k": 2, "prefixes": 3},
    "jumprelu": {"l0": 3.0},
}  # fmt: skip


def settings_of(store: Path, kind: str, **changes: object) -> dict[str, Any]:
    """Ten steps in float32, in which dead latents are revived."""
    settings = settings_for(
        store, steps=10, arch={"kind": kind} | KINDS[kind], device="cuda", precision="fp32",
        dead_window="2 steps", ema=0.9, clip=1.0, log_every=1,
    )  # fmt: skip
    return settings | changes


@pytest.mark.parametrize("sparse", ["on", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_on_the_gpu_is_the_one_on_the_cpu_to_rounding(store, tmp_path, kind, sparse):
    for device in ("cuda", "cpu"):
        settings = settings_of(store, kind, sparse=sparse, device=device)
        train_settings(settings, tmp_path / device)
    assert_alike(tmp_path / "cuda", tmp_path / "cpu")


@pytest.mark.parametrize("sparse", ["on", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_members_stacked_on_the_gpu_are_those_trained_alone(store, tmp_path, kind, sparse):
    settings = settings_of(store, kind, sparse=sparse, stack="on", resample="random",
                           resample_every="4 steps", resample_window="2 steps")  # fmt: skip
    train_settings(settings | {"seed": [0, 1, 2]}, tmp_path / "sweep")
    for seed in range(3):
        train_settings(settings | {"seed": seed}, tmp_path / str(seed))
        assert_alike(tmp_path / "sweep" / f"seed={seed}", tmp_path / str(seed))


@pytest.fixture
def deterministic(monkeypatch):
    """Sums in one order; cuBLAS reads its variable when it is first used in a process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("kind", ["relu", "batchtopk", "jumprelu"])
def test_with_deterministic_kernels_a_resumed_run_has_the_same_bits(
    store, tmp_path, deterministic, kind
):
    settings = settings_of(store, kind)
    train_settings(settings, tmp_path / "whole")
    out = shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    unfinish(out, up_to=5)
    train_settings(settings, out)
    assert result(out) == result(tmp_path / "whole")


def test_bf16_on_the_gpu_learns_almost_as_float32_does(store, tmp_path):
    for kind in KINDS:
        for precision in ("fp32", "bf16"):
            settings = settings_of(store, kind, precision=precision, dead_window="1M")
            train_settings(settings, tmp_path / precision / kind)
        wide, narrow = (lines_of(tmp_path / name / kind) for name in ("fp32", "bf16"))
        recons = [sum(line["recon"] for line in lines) for lines in (wide, narrow)]
        assert recons[0] == pytest.approx(recons[1], rel=0.02), kind
