"""A sweep in one pass gives each member what training it alone gives."""

import json
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from actstore.errors import StoreError
from actstore.reader import ActStore
from pipeline.config.grid import expand
from pipeline.errors import ConfigError, DataError
from pipeline.runs.curves import TrainReport
from pipeline.training.sweep import complete, named_as_there, train_sweep
from pipeline.training.train import train, train_all
from tests.helpers.refusals import refused
from tests.helpers.slow import cases, slow
from tests.helpers.stores import flip
from tests.helpers.training import (
    assert_alike,
    config_of,
    killed,
    make_rows,
    make_training_store,
    plain_arch,
    read_table,
    result,
    settings_for,
    steps_kept,
    syncs_of,
    train_settings,
    train_until,
    write_rows,
)

STEPS = 11


def alone(settings, out: Path, tmp_path: Path) -> dict[str, Path]:
    """Each point of a sweep in `out`, trained alone, by its name."""
    runs: dict[str, Path] = {}
    for number, point in enumerate(expand(settings, out=out)):
        runs[point.name] = run = tmp_path / "alone" / str(number)
        torch.set_num_threads(1)
        train(replace(point.config, out=run, stack="auto"))
    return runs


GRIDS: dict[str, dict[str, object]] = {
    "sites, archs and their knobs": {
        "site": ["resid_post.0", "mlp_out.0"],
        "arch": {"kind": ["relu", "topk"], "l1": [0.1, 1.0], "k": 3, "target": 0.2},
        "hold": "2 steps", "exclude_positions": [[], [0, 5]], "dead_window": "3 steps",
    },
    "seeds, widths and paces": {
        "seed": [0, 1], "expansion": [2, 4], "lr": [1e-3, 1e-2], "ema": 0.8,
        "arch": {"kind": "batchtopk", "k": 2}, "clip": 0.5, "dead_window": "3 steps",
    },
    "units, precisions and paths": {
        "normalize": ["none", "rms"], "precision": ["fp32", "bf16"], "sparse": ["on", "off"],
        "arch": {"kind": "jumprelu", "l0": 3.0}, "resample": "worst",
        "resample_every": "4 steps", "resample_window": "2 steps",
    },
}  # fmt: skip


@pytest.mark.parametrize("grid", cases(GRIDS, fast={"seeds, widths and paces"}))
def test_unstacked_members_are_those_trained_alone_to_the_bit(store, tmp_path, grid):
    settings = settings_for(store, steps=STEPS, stack="off", **grid)
    out = tmp_path / "sweep"
    train_settings(settings, out)
    for name, run in alone(settings, out, tmp_path).items():
        assert result(out / name) == result(run), name


STACKS: dict[str, dict[str, object]] = {
    "relu": {"arch": {"kind": "relu", "l1": [0.1, 1.0]}, "seed": [0, 1], "project": True},
    "relu-april": {"arch": {"kind": "relu-april", "l1": [0.1, 1.0]}, "lr": [1e-3, 2e-3]},
    "tied": {"arch": {"kind": "tied", "l1": [0.1, 1.0]}, "ema": 0.8},
    "gated": {
        "arch": {"kind": "gated", "l1": [0.01, 5.0], "target": [0.1, 0.2]}, "hold": "2 steps",
        "lr": 0.01,
    },
    "topk": {
        "arch": {"kind": "topk", "k": 1}, "seed": [0, 1, 2], "dead_window": "2 steps",
        "batch_size": 16, "resample": "random", "resample_every": "4 steps",
        "resample_window": "3 steps",
    },
    "batchtopk": {
        "arch": {"kind": "batchtopk", "k": 1}, "seed": [3, 4], "lr_warmup": "5 steps",
        "batch_size": 16, "resample": "worst", "resample_every": "4 steps",
        "resample_window": "2 steps",
    },
    "matryoshka": {
        "arch": {"kind": "matryoshka", "k": 2, "prefixes": 3}, "lr": [1e-3, 2e-3], "clip": 0.5,
    },
    "jumprelu": {
        "arch": {"kind": "jumprelu", "l0": 3.0}, "seed": [0, 1], "normalize": "rms",
        "l1_warmup": "5 steps",
    },
}  # fmt: skip


SPARSE = {"relu", "relu-april", "topk", "matryoshka"}
"""Kinds whose sparse path is taken each time; of the others, the dense one."""


@pytest.mark.parametrize(
    ("kind", "sparse"),
    [
        (kind, sparse) if (kind in SPARSE) == (sparse == "on") else slow(kind, sparse)
        for kind in STACKS
        for sparse in ("on", "off")
    ],
)
def test_stacked_members_are_those_trained_alone_to_rounding(store, tmp_path, kind, sparse):
    settings = settings_for(
        store, steps=STEPS, stack="on", sparse=sparse, checkpoint_every=STEPS, **STACKS[kind]
    )
    out = tmp_path / "sweep"
    train_settings(settings, out)
    for name, run in alone(settings, out, tmp_path).items():
        (state,) = (out / name / "checkpoints").glob(f"*{STEPS}/optimizer.safetensors")
        assert load_file(state)["stacked"]
        assert_alike(out / name, run)


def test_each_chunk_is_decoded_once_for_all_members(store, tmp_path, monkeypatch):
    read = ActStore.read_chunk_into
    counts: Counter[tuple[str, int]] = Counter()

    def counting(self, site, chunk, out, *, skip=0):
        counts[site, chunk] += 1
        return read(self, site, chunk, out, skip=skip)

    monkeypatch.setattr(ActStore, "read_chunk_into", counting)
    epoch = ActStore.open(store).n_rows // 64
    grid = {"seed": [0, 1], "arch": {"kind": ["relu", "topk"], "l1": 1e-3, "k": 2}}
    settings = settings_for(
        store, steps=epoch, site=["mlp_out.0", "resid_post.0"], checkpoint_every=epoch, **grid
    )
    train_settings(settings, tmp_path / "sweep")
    by_sweep = counts.copy()
    counts.clear()
    train_settings(settings_for(store, steps=epoch), tmp_path / "alone")
    chunks = {chunk for _, chunk in counts}
    assert {site for site, _ in by_sweep} == {"mlp_out.0", "resid_post.0"}
    assert {chunk for _, chunk in by_sweep} == chunks
    # Beside the epoch itself, a window or two of the next one were being read when it ended.
    assert set(by_sweep.values()) <= {1, 2} and len(by_sweep) == 2 * len(chunks)
    assert sum(by_sweep.values()) < 2 * len(by_sweep)


DIVERGES = 1e25  # a learning rate


@pytest.mark.parametrize(
    ("kind", "stack", "sparse"),
    [
        ("relu", "on", "on"),
        ("relu", "off", "off"),
        slow("tied", "on", "off"),
        slow("tied", "off", "on"),
        slow("batchtopk", "on", "on"),
    ],
)
def test_a_member_that_diverges_stops_alone_and_for_good(store, tmp_path, kind, stack, sparse):
    settings = settings_for(
        store, steps=STEPS, arch=plain_arch(kind, **({"k": 2} if kind == "batchtopk" else {})),
        lr=[1e-3, DIVERGES, 2e-3], stack=stack, sparse=sparse, checkpoint_every=1, log_every=3,
        ema=0.9, dead_window="2 steps", clip=0.0,
    )  # fmt: skip
    out = tmp_path / "sweep"
    bad = out / "lr=1e25"
    outcomes = train_settings(settings, out)
    assert [type(outcome) for outcome in outcomes] == [TrainReport, DataError, TrainReport]
    said = str(outcomes[1])
    assert f"of {bad} with lr 1e+25" in said and "\n" not in said
    step = int(said.split(" at step ")[1].split()[0])
    assert ("the loss is nan" in said or "a weight is not finite" in said) and 1 < step < 5
    assert steps_kept(bad) == list(range(1, step))
    assert f"checkpoints up to step {step - 1} are kept" in said
    assert not (bad / "sae.safetensors").exists()

    table = read_table(out)
    assert [line["state"] for line in table] == ["complete", f"diverged: {said}", "complete"]
    assert [line["last_step"] for line in table[::2]] == [str(STEPS)] * 2
    for name, run in alone(settings | {"lr": [1e-3, 2e-3]}, out, tmp_path).items():
        assert_alike(out / name, run)
        assert stack == "on" or result(out / name) == result(run)

    files = {path: path.stat().st_mtime_ns for path in bad.rglob("*")}
    again = train_settings(settings, out)
    assert str(again[1]) == said
    assert [outcome.reused for outcome in complete(again)] == [True, True]
    assert {path: path.stat().st_mtime_ns for path in bad.rglob("*")} == files
    assert table == read_table(out)


def test_a_step_whose_loss_overflowed_leaves_no_checkpoint_though_weights_are_finite(tmp_path):
    x = 3e18 * make_rows(512, width=8)
    store = write_rows(tmp_path / "s.actstore", x.astype(np.float32))
    settings = settings_for(
        store, steps=4, arch={"kind": "topk", "k": 2}, seed=[0, 1], b_dec_start="zero",
        checkpoint_every=1, log_every=1,
    )  # fmt: skip
    outcomes = train_settings(settings, tmp_path / "a")
    for seed, outcome in enumerate(outcomes):
        assert "the loss is inf at step 1 of" in str(outcome)
        assert "there was no checkpoint yet" in str(outcome)
        assert steps_kept(tmp_path / "a" / f"seed={seed}") == []
    with pytest.raises(DataError, match="at step 1 of .*/seed=0 with"):
        complete(outcomes)


def test_a_member_that_diverges_last_leaves_the_others_their_end(store, tmp_path):
    """It is found out in the very step that ends the run."""
    settings = settings_for(
        store, steps=2, lr=[1e-3, DIVERGES], stack="on", log_every=10, checkpoint_every=10
    )
    outcomes = train_settings(settings, tmp_path / "a")
    assert [type(outcome) for outcome in outcomes] == [TrainReport, DataError]
    assert (tmp_path / "a" / "lr=0.001" / "sae.safetensors").exists()


def test_a_sweep_of_before_whose_names_had_commas_is_gone_on_with(store, tmp_path):
    settings = settings_for(
        store, steps=STEPS, seed=[0, 1], lr_warmup=["0", "50%"], exclude_positions=[[], [0, 5]]
    )
    out, whole = tmp_path / "a", tmp_path / "whole"
    train_settings(settings, whole)
    assert train_until(settings, out, step=8)
    document = json.loads((out / "sweep.json").read_text())
    names = [point.name for point in expand(settings, out=out)]
    once = [name.replace("+", ",").replace("0_5", "0+5").replace("50pct", "50%") for name in names]
    for name, before in zip(names, once, strict=True):
        (out / name).rename(out / before)
    (out / "sweep.json").write_text(json.dumps(document | {"members": once}))
    points = named_as_there(expand(settings, out=out))
    assert [point.name for point in points] == once
    train_sweep(points, out=out)
    for name, before in zip(names, once, strict=True):
        assert result(out / before) == result(whole / name)


KILLED: dict[str, dict[str, object]] = {
    "stacked": {"arch": {"kind": "topk", "k": 2}, "seed": [0, 1, 2], "stack": "on"},
    "in turn": {"arch": {"kind": ["relu", "gated"], "l1": [0.1, 1.0]}, "stack": "off"},
    "with one that diverges": {"lr": [1e-3, 1e25, 2e-3], "stack": "off"},
    "of several sites and lengths": {
        "site": ["mlp_out.0", "resid_post.0"], "tokens": [64 * 8, 64 * STEPS],
        "arch": {"kind": "batchtopk", "k": 2}, "lr": [1e-3, 1e-2], "stack": "on",
    },
}  # fmt: skip


@pytest.mark.parametrize("grid", cases(KILLED, fast={"of several sites and lengths"}))
def test_a_sweep_killed_anywhere_again_and_again_is_the_same_to_the_bit(
    store, tmp_path, monkeypatch, grid
):
    settings = settings_for(store, steps=STEPS, log_every=1, **grid)
    whole = tmp_path / "whole"
    n_syncs = syncs_of(monkeypatch, settings, whole)
    for seed in range(2):
        rng = random.Random(seed)
        out = tmp_path / str(seed)
        killed(settings, out, at_sync=rng.randrange(1, n_syncs))
        killed(settings, out, at_sync=rng.randrange(1, 9))
        train_settings(settings, out)
        for line, other in zip(without_speed(out), without_speed(whole), strict=True):
            one, wanted = out / line["folder"], whole / other["folder"]
            if line["state"] == "complete":
                assert result(one) == result(wanted), (seed, one)
                assert steps_kept(one) == steps_kept(wanted)
                assert line == other
            assert line["state"][:8] == other["state"][:8]


@pytest.mark.parametrize("faster", [True, False])
def test_what_was_measured_before_a_stop_is_not_measured_again(
    store, tmp_path, monkeypatch, faster
):
    settings = settings_for(store, steps=STEPS, seed=[0, 1], sparse="on")
    monkeypatch.setattr("pipeline.training.assemble.stack_is_faster", lambda *_, **__: faster)
    assert train_until(settings, tmp_path / "auto", step=8)
    monkeypatch.setattr("pipeline.training.assemble.stack_is_faster", lambda *_, **__: not faster)
    train_settings(settings, tmp_path / "auto")
    train_settings(settings | {"stack": "on" if faster else "off"}, tmp_path / "told")
    for name in ("seed=0", "seed=1"):
        assert result(tmp_path / "auto" / name)[0] == result(tmp_path / "told" / name)[0]


def test_members_are_timed_both_ways_and_learn_the_same_in_either(
    store, tmp_path, caplog, monkeypatch
):
    caplog.set_level("INFO", logger="pipeline.training.assemble")
    monkeypatch.setattr("pipeline.training.assemble.SHARE", 1.0)
    settings = settings_for(store, steps=STEPS, seed=[0, 1, 2], arch={"kind": "batchtopk", "k": 2})
    train_settings(settings, tmp_path / "sweep")
    assert "3 members at once take" in caplog.text
    for name, run in alone(settings, tmp_path / "sweep", tmp_path).items():
        assert_alike(tmp_path / "sweep" / name, run)


def test_a_run_that_would_be_over_before_the_timing_is_trained_in_turn(store, tmp_path, caplog):
    caplog.set_level("INFO", logger="pipeline.training.assemble")
    train_settings(settings_for(store, steps=3, seed=[0, 1]), tmp_path / "sweep")
    assert not caplog.text


def test_a_checkpoint_that_only_some_members_have_is_dropped_with_its_word_of_the_curves(
    store, tmp_path
):
    """Curves written anew need not have the same length: the speed in them differs."""
    settings = settings_for(store, steps=STEPS, arch=plain_arch("relu"), seed=[0, 1], stack="on")
    out = tmp_path / "sweep"
    assert train_until(settings, out, step=8)
    ahead, behind = out / "seed=0", out / "seed=1"
    assert steps_kept(ahead) == steps_kept(behind) == [5, 8]
    shutil.rmtree(behind / "checkpoints" / "step-000000008")
    (ahead / "checkpoints" / "step-000000008" / "mark").touch()
    assert train_until(settings, out, step=1)  # the first line there is, of step 8 again
    assert steps_kept(ahead) == steps_kept(behind) == [5, 8]
    assert not (ahead / "checkpoints" / "step-000000008" / "mark").exists()
    for run in (ahead, behind):
        state = json.loads((run / "checkpoints" / "step-000000008" / "state.json").read_bytes())
        assert state["metrics_bytes"] == (run / "metrics.jsonl").stat().st_size


@pytest.mark.parametrize("stack", ["on", "off"])
def test_ctrl_c_saves_every_member_and_the_sweep_goes_on_to_the_same_bits(store, tmp_path, stack):
    settings = settings_for(
        store, steps=STEPS, site=["mlp_out.0", "resid_post.0"], seed=[0, 1], stack=stack
    )
    assert train_until(settings, tmp_path / "a", step=8)
    names = [point.name for point in expand(settings, out=tmp_path)]
    at = [max(steps_kept(tmp_path / "a" / name)) for name in names]
    assert set(at) <= {7, 8} and at[0] == 8
    table = read_table(tmp_path / "a")
    assert [line["state"] for line in table] == ["running"] * 4
    train_settings(settings, tmp_path / "a")
    train_settings(settings, tmp_path / "b")
    for name in names:
        assert result(tmp_path / "a" / name) == result(tmp_path / "b" / name)


def without_speed(sweep: Path) -> list[dict[str, str]]:
    lines = read_table(sweep)
    for line in lines:
        assert float(line.pop("last_rows_per_s")) > 0
    return lines


def test_one_impossible_run_leaves_nothing_of_any_behind(store, tmp_path):
    configs = [config_of(store, tmp_path / "a"), config_of(store, tmp_path / "b", site="x")]
    with pytest.raises(ConfigError, match="no site"):
        train_all(configs)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("swept", [{}, {"seed": [0, 1]}], ids=["a run", "a sweep"])
def test_rows_that_cannot_be_read_leave_nothing_behind(tmp_path, swept):
    damaged = make_training_store(tmp_path / "a.actstore", n_rows=512)
    flip(damaged / "data.zarr" / "mlp_out.0" / "c" / "0" / "0", 9)
    settings = settings_for(damaged, steps=4, **swept)
    with refused(StoreError, "is damaged"):
        train_settings(settings, tmp_path / "deep" / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["a.actstore"]


def test_members_of_unequal_length_each_end_at_their_own(store, tmp_path):
    settings = settings_for(store, steps=1, tokens=[64 * 3, 64 * 9, 64 * 6])
    reports = complete(train_settings(settings, tmp_path / "a"))
    assert [(report.step, report.n_steps) for report in reports] == [(3, 3), (9, 9), (6, 6)]
