"""What only a CUDA device can show; skipped without one."""

import shutil
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import saepipe as sp
import torch

from actstore.reader import ActStore
from pipeline.config.architectures import TopKConfig
from pipeline.config.stages import EvalConfig, FinetuneConfig, HarvestConfig
from pipeline.config.training import TrainConfig
from pipeline.device import pick_precision
from pipeline.evaluate.evaluate import evaluate
from pipeline.evaluate.report import EvalReport
from pipeline.harvest.harvest import harvest
from pipeline.sae.active_pairs import Dense, Scratch
from pipeline.sae.select import Picked, above, batch_top_k, top_k
from pipeline.training.group import CHOOSE_EVERY, Group
from pipeline.training.train import train
from tests.helpers.tiny import CTX_LEN, make_model, make_sae, make_text, save_sae
from tests.helpers.training import (
    assert_alike,
    lines_of,
    make_training_store,
    result,
    settings_for,
    train_settings,
    unfinish,
)
from tests.helpers.tunings import finetune
from tests.sae.test_kernels_triton import HAS_TRITON, Case, agree

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


def test_a_harvest_in_bf16_is_that_on_the_cpu_within_its_rounding(config):
    narrow = replace(config, precision="bf16", dtype="bf16")
    on_cpu = replace(narrow, device="cpu", out=config.out.parent / "cpu" / "acts.actstore")
    harvest(narrow)
    harvest(on_cpu)
    gpu, cpu = ActStore.open(narrow.out), ActStore.open(on_cpu.out)
    for site in gpu.sites:
        x, y = ((s.shard(site, 0).astype(np.uint32) << 16).view(np.float32) for s in (gpu, cpu))
        assert np.linalg.norm(x - y) < 0.02 * np.linalg.norm(y), site


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


PAIRS = [
    ([5, 0, 31, 1], 33, 17), ([1], 1, 1), ([0, 0, 129, 0], 131, 513), ([257, 3] * 9, 1031, 700),
    ([2] * 1000, 3, 65), ([64] * 63, 65, 1023),
]  # fmt: skip


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("lengths", "latents", "d"), PAIRS)
def test_sums_over_pairs_are_those_in_float64_at_odd_shapes(lengths, latents, d, dtype):
    from pipeline.sae import kernels_triton

    agree(Case(lengths, latents=latents, d=d, dtype=dtype), kernels_triton)


def assert_same_pairs(gpu: Picked, cpu: Picked) -> None:
    """In any order within a row."""
    assert torch.equal(gpu.crow.cpu(), cpu.crow)
    assert torch.equal(gpu.mask().cpu(), cpu.mask())
    flip, flipped = gpu.transposed, cpu.transposed
    assert torch.equal(flip.crow.cpu(), flipped.crow)
    assert torch.equal(flip.row.cpu(), flipped.row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("hint", [0.0, 0.4, 9.0])
def test_pairs_picked_on_the_gpu_are_those_picked_on_the_cpu(dtype, levels, hint):
    generator = torch.Generator().manual_seed(levels)
    pre = torch.randint(-levels, levels, (2, 37, 264), generator=generator).to(dtype) / levels
    hints = torch.full((2,), hint)
    (picked, smallest), (theirs, same) = (
        batch_top_k(pre.to(device), 301, hint=hints.to(device)) for device in ("cuda", "cpu")
    )
    assert torch.equal(smallest.cpu(), same)
    assert_same_pairs(picked, theirs)
    assert_same_pairs(above(pre.cuda(), 0.25), above(pre, 0.25))
    if levels > 3:  # of equal values, any
        distinct = torch.randn(2, 37, 264, generator=generator)
        assert_same_pairs(top_k(distinct.cuda(), 7), top_k(distinct, 7))


def test_latents_of_many_rows_are_counted_exactly_in_bf16():
    z = torch.ones(1, 3001, 8, dtype=torch.bfloat16, device="cuda")
    assert Dense(z, scratch=Scratch()).counts(z).tolist() == [[3001.0] * 8]


@pytest.fixture
def deterministic(monkeypatch):
    """Sums in one order; cuBLAS reads its variable when it is first used in a process."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("sparse", ["on", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_with_deterministic_kernels_a_resumed_run_has_the_same_bits(
    store, tmp_path, deterministic, kind, sparse
):
    settings = settings_of(store, kind, sparse=sparse)
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


@contextmanager
def silent_between(monkeypatch, mode: str, *, after: int) -> Generator[list[int], None, None]:
    """Steps that neither report nor save are made under a mode of torch's check on waiting.

    Yields:
        The steps that were.
    """
    checked, advance = list[int](), Group.advance

    def guarded(self: Group, x: torch.Tensor) -> object:
        step = self.step + 1
        if step <= after or self.members[0].reports_next or step % CHOOSE_EVERY == 0:
            return advance(self, x)
        checked.append(step)
        torch.cuda.set_sync_debug_mode(mode)
        try:
            return advance(self, x)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    with monkeypatch.context() as patch:
        patch.setattr(Group, "advance", guarded)
        yield checked


NEVER_WAITS = [
    ("topk", "off"), ("topk", "on"), ("relu", "off"), ("relu-april", "off"), ("tied", "off"),
    ("gated", "off"), ("jumprelu", "off"),
]  # fmt: skip


PROTOTYPE = pytest.mark.filterwarnings("ignore:Synchronization debug mode")


@PROTOTYPE
@pytest.mark.parametrize(("kind", "sparse"), NEVER_WAITS)
def test_steps_that_neither_report_nor_save_never_wait_for_the_gpu(
    store, tmp_path, monkeypatch, kind, sparse
):
    settings = settings_of(store, kind, sparse=sparse, log_every=100, checkpoint_every=100,
                           dead_window="1M", revive_after="1M", revive=1.0)  # fmt: skip
    with silent_between(monkeypatch, "error", after=2) as checked:
        train_settings(settings, tmp_path / "run")
    assert checked == [3, 4, 5, 6, 7, 8, 9]


WAITS = {"relu": 1, "tied": 1, "gated": 1, "jumprelu": 1, "batchtopk": 3, "matryoshka": 6}
"""A step, at most: for how many pairs there are, three times where those were guessed badly;
Matryoshka for each of its three prefixes too."""


@PROTOTYPE
@pytest.mark.parametrize("kind", WAITS)
def test_only_pairs_whose_number_is_not_known_are_waited_for(store, tmp_path, monkeypatch, kind):
    settings = settings_of(store, kind, sparse="on", log_every=100, checkpoint_every=100,
                           dead_window="1M", revive_after="1M")  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with silent_between(monkeypatch, "warn", after=4) as checked:
            train_settings(settings, tmp_path / "run")
    waits = [w for w in caught if "called a synchronizing" in str(w.message)]
    assert len(waits) <= WAITS[kind] * len(checked), [str(w.message) for w in waits]


@pytest.mark.parametrize("sparse", ["on", "off"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_kernel_of_a_step_is_one_that_torch_calls_not_deterministic(
    store, tmp_path, monkeypatch, kind, sparse
):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            train_settings(settings_of(store, kind, sparse=sparse), tmp_path / "run")
        finally:
            torch.use_deterministic_algorithms(False)
    named = {str(w.message).split(" does not have")[0] for w in caught}
    assert not {name for name in named if "_" in name and " " not in name}


def evaluated_on(device: str, run: Path, text: str) -> EvalReport:
    config = EvalConfig(runs=(run,), text=text, tokens=14 * CTX_LEN, device=device,
                        precision="fp32", n_bootstrap=30)  # fmt: skip
    (report,) = evaluate(config)
    return report


def test_an_evaluation_on_the_gpu_is_the_one_on_the_cpu_to_rounding(tmp_path):
    model, text = make_model(tmp_path / "model"), make_text(tmp_path / "text.txt", n_contexts=20)
    run = save_sae(tmp_path / "run", make_sae(), model=model)
    gpu, cpu = (evaluated_on(device, run, text).metrics for device in ("cuda", "cpu"))
    assert gpu.keys() == cpu.keys()
    for name, value in cpu.items():
        assert gpu[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name


def test_every_stage_of_a_small_demo_runs_on_the_gpu(config, tmp_path):
    harvest(config)
    run = tmp_path / "run"
    train(TrainConfig(store=config.out, out=run, site="mlp_out.1", arch=TopKConfig(k=4),
                      tokens=20_000, batch_size=256, device="cuda"))  # fmt: skip
    assert evaluated_on("cuda", run, config.text).ce_clean > 0
    tuned = finetune(FinetuneConfig(
        run=run, out=tmp_path / "tuned", text=config.text, batch_size=4, epochs=2,
        steps_per_epoch=5, ctx_len=CTX_LEN, heldout_contexts=8, device="cuda",
    ))  # fmt: skip
    assert tuned.n_steps == 10
    found = sp.features(run, store=config.out, device="cuda")
    assert found.top(3)
