"""A training from a store to its run on disk: what it leaves, and how it ends."""

import errno
import json
import os
import shutil
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from actstore.reader import ActStore
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.harvest.harvest import harvest
from pipeline.plots.training import save_curves
from pipeline.runs.curves import METRICS, TrainReport
from pipeline.runs.sae_run import SAERun
from pipeline.terminal.lines import curve_words
from pipeline.training.group import Group
from pipeline.training.train import train
from tests.helpers.harvests import harvest_config
from tests.helpers.refusals import refused
from tests.helpers.tiny import CTX_LEN
from tests.helpers.training import (
    DAMAGES,
    config_of,
    flip_a_bit,
    lines_of,
    result,
    steps_kept,
    truncate,
    unfinish,
    write_rows,
)

pytestmark = pytest.mark.usefixtures("one_thread")

D_IN = 8
config_for = partial(config_of, checkpoint_every=10)


@pytest.fixture(scope="module")
def whole(store: Path, tmp_path_factory) -> Path:
    """An uninterrupted run of 30 steps, which nobody changes."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(config_for(store, out))
    return out


def test_a_run_leaves_checkpoints_curves_and_an_sae(store, tmp_path):
    seen: list[TrainReport] = []
    out = tmp_path / "run"
    report = train(config_for(store, out), on_step=seen.append)
    assert steps_kept(out) == [10, 20, 30]
    assert [r.step for r in seen] == [1, 4, 8, 12, 16, 20, 24, 28, 30]
    assert report == seen[-1] and (report.rows, report.n_steps) == (1920, 30)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [r.loss for r in seen]
    assert set(lines[0]) == {
        "step", "rows", "loss", "recon", "sparsity", "aux", "l0", "l1", "explained_variance",
        "beta", "n_dead", "dead_over", "n_constant", "n_resampled", "lr", "sparse", "rows_per_s",
    }  # fmt: skip
    run = SAERun.open(out)
    told = run.provenance
    assert (run.config.site, told.model, told.d_in) == ("mlp_out.0", "builtin", D_IN)
    assert told.fingerprint == ActStore.open(store).fingerprint
    norms = run.load_sae(torch.device("cpu")).W_dec.norm(dim=-1)
    torch.testing.assert_close(norms, torch.ones(4 * D_IN))


def test_the_first_step_is_adam_on_the_first_batch(store, tmp_path):
    """One step, recomputed with Adam's formula: each weight moves by lr against its gradient."""
    out = tmp_path / "run"
    train(config_for(store, out, steps=1))
    sae = SAERun.open(out).load_sae(torch.device("cpu"))
    mean = torch.from_numpy(ActStore.open(store).mean("mlp_out.0")).float()
    moved = (sae.b_dec - mean).abs()
    torch.testing.assert_close(moved, torch.full((D_IN,), 1e-3), rtol=0.01, atol=0)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(store, tmp_path, whole):
    train(config_for(store, tmp_path / "again", threads=2))
    train(config_for(store, tmp_path / "other", seed=1))
    assert result(tmp_path / "again") == result(whole)
    assert result(tmp_path / "other")[0] != result(whole)[0]


def pressing_ctrl_c(*, times: int, number: int = signal.SIGINT):
    """In step 12."""

    def press(report: TrainReport) -> None:
        for nth in range(times if report.step == 12 else 0):
            signal.raise_signal(number)
            assert nth == 0, "the second stops at once"

    return press


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_leaves_a_checkpoint_of_its_very_step(store, tmp_path, whole, number):
    before = signal.signal(number, signal.default_int_handler)  # as the command line has it
    out, press, seen = tmp_path / "stopped", pressing_ctrl_c(times=1, number=number), list[int]()

    def on_step(report: TrainReport) -> None:
        press(report)
        seen.append(report.step)

    try:
        with pytest.raises(KeyboardInterrupt):
            train(config_for(store, out), on_step=on_step)
        assert seen[-1] == 12, "it is noted, and strikes later"
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert steps_kept(out) == [10, 12]
    with pytest.raises(ConfigError, match="unfinished run"):
        train(config_for(store, out), resume=False)
    train(config_for(store, out))
    assert result(out) == result(whole)


def test_a_second_ctrl_c_stops_at_once(store, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(config_for(store, tmp_path / "a"), on_step=pressing_ctrl_c(times=2))
    assert steps_kept(tmp_path / "a") == [10]


def test_a_complete_run_is_reused_though_its_store_grew(tmp_path):
    acts = harvest_config(tmp_path, sites=("mlp_out.1",), tokens=20 * CTX_LEN)
    harvest(acts)
    counted, all_there_is = (
        config_for(acts.out, tmp_path / name, steps=4, site="mlp_out.1", **tokens)
        for name, tokens in (("counted", {}), ("all", {"tokens": None}))
    )
    for config in (counted, all_there_is):
        train(config)
    harvest(replace(acts, sites=("mlp_out.1", "mlp_out.0")))
    assert train(counted).reused
    assert train(all_there_is).reused, "it would see the same rows"
    unfinish(tmp_path / "all", up_to=2)
    with refused(ConfigError, r"all was begun when .* had 240 rows, and it has more sites now"):
        train(all_there_is)
    harvest(replace(acts, tokens=33 * CTX_LEN))
    assert train(counted).reused
    with refused(ConfigError, r"all was begun when .* had 240 rows, and it has 396 now: choose"):
        train(all_there_is)


@pytest.mark.parametrize("resume", [True, False])
def test_a_complete_run_is_reused(store, whole, resume):
    files = {p: p.stat().st_mtime_ns for p in whole.rglob("*")}
    seen: list[TrainReport] = []
    report = train(config_for(store, whole), resume=resume, on_step=seen.append)
    assert report.reused and report.step == report.n_steps == 30 and not seen
    assert {p: p.stat().st_mtime_ns for p in whole.rglob("*")} == files


def test_the_end_is_reached_from_the_last_checkpoint_too(store, tmp_path, whole):
    out = shutil.copytree(whole, tmp_path / "copy")
    unfinish(out, up_to=30)
    report = train(config_for(store, out))
    assert report.step == 30 and not report.reused
    assert result(out) == result(whole)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["sae.safetensors", "optimizer.safetensors", "state.json"])
def test_a_damaged_checkpoint_says_what_to_delete(store, tmp_path, whole, name, damage):
    out = shutil.copytree(whole, tmp_path / "copy")
    unfinish(out, up_to=20)
    folder = out / "checkpoints" / "step-000000020"
    if (name, damage) == ("state.json", flip_a_bit):
        damage = truncate  # a flipped bit in its text need not be noticed: it has no checksum
    damage(folder / name)
    with pytest.raises(CheckpointError) as caught:
        train(config_for(store, out))
    text = str(caught.value)
    assert f"{folder / name} is missing or damaged" in text and "\n" not in text
    assert f"delete the folder {folder} to go back" in text
    shutil.rmtree(folder)
    train(config_for(store, out))
    assert result(out) == result(whole)


def without_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


def without_lines(path: Path) -> None:
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n")


def with_a_hole(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"step": 4', b"\0\0\0\0\0\0\0\0\0"))


def with_a_list(path: Path) -> None:
    first, rest = path.read_bytes().split(b"\n", 1)
    path.write_bytes(b"[".ljust(len(first) - 1) + b"]\n" + rest)


@pytest.mark.parametrize(
    "damage", [without_end, without_lines, with_a_hole, with_a_list, Path.unlink]
)
def test_damaged_curves_are_noticed_before_the_first_step(store, tmp_path, whole, damage):
    out = shutil.copytree(whole, tmp_path / "copy")
    unfinish(out, up_to=20)
    damage(out / METRICS)
    seen: list[TrainReport] = []
    with refused(CheckpointError, rf"metrics.jsonl is damaged .*or delete {out / 'checkpoints'}"):
        train(config_for(store, out), on_step=seen.append)
    assert not seen
    shutil.rmtree(out / "checkpoints")
    train(config_for(store, out))
    assert result(out) == result(whole)


def test_what_is_no_checkpoint_is_left_alone(store, tmp_path, whole):
    out = shutil.copytree(whole, tmp_path / "copy")
    unfinish(out, up_to=20)
    for name in ("step-final", "step-25", "step-000000025.old", "mine"):
        (out / "checkpoints" / name).mkdir()
    for name in ("step-000000029", "notes.txt"):
        (out / "checkpoints" / name).write_text("mine")
    train(config_for(store, out))
    assert (out / "checkpoints" / "step-000000029").read_text() == "mine"
    assert lines_of(out) == lines_of(whole)
    assert (out / "sae.safetensors").read_bytes() == (whole / "sae.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("code", "advice"), [(errno.ENOSPC, "make room"), (errno.EROFS, "see to that")]
)
def test_a_disk_that_fails_is_one_line(store, tmp_path, monkeypatch, code, advice):
    def full(path, parts):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("pipeline.runs.checkpoints.write_file", full)
    words = rf"{os.strerror(code)}\): {advice}, then the same command goes on"
    with pytest.raises(CheckpointError, match=words):
        train(config_for(store, tmp_path / "a"))
    monkeypatch.undo()
    assert train(config_for(store, tmp_path / "a")).step == 30
    assert steps_kept(tmp_path / "a") == [10, 20, 30]


def test_a_disk_that_fails_at_the_end_leaves_a_checkpoint_to_go_on_from(
    store, tmp_path, monkeypatch
):
    def full(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    settings = {"checkpoint_every": 1000}
    train(config_for(store, tmp_path / "whole", **settings))
    assert steps_kept(tmp_path / "whole") == []
    monkeypatch.setattr("pipeline.runs.folder.save_tensors", full)
    with pytest.raises(CheckpointError, match="make room, then the same command goes on"):
        train(config_for(store, tmp_path / "a", **settings))
    monkeypatch.undo()
    assert steps_kept(tmp_path / "a") == [30]
    assert train(config_for(store, tmp_path / "a", **settings)).step == 30
    weights = [(tmp_path / name / "sae.safetensors").read_bytes() for name in ("whole", "a")]
    assert weights[0] == weights[1]


def test_one_that_diverges_at_its_last_step_is_not_finished_though_nothing_reports_it(
    store, tmp_path, monkeypatch
):
    """As where exclusions leave nothing of the last batch."""
    monkeypatch.setattr(Group, "_report", lambda *_: [])
    with pytest.raises(DataError, match="training diverged: the loss is .* at step 2 of"):
        train(config_for(store, tmp_path / "a", lr=1e30, steps=2, checkpoint_every=100))
    assert not SAERun.read(tmp_path / "a").finished


def test_steps_cover_the_rows_asked_for(store):
    def steps(**changes):
        return config_for(store, Path("x"), **changes).n_steps(1000)

    assert steps(tokens=None, batch_size=300) == 3
    assert steps(tokens=None, batch_size=4000) == 1
    assert steps(tokens=1000, batch_size=300) == 4
    assert steps(tokens=5000, batch_size=300) == 17


def test_the_stores_dtype_changes_only_the_precision_of_rows(tmp_path):
    """bfloat16 rows train like the float32 rows they stand for."""
    x = np.random.default_rng(1).standard_normal((1024, D_IN)).astype(np.float32)
    bits = (x.view(np.uint32) >> 16).astype(np.uint16)
    same = (bits.astype(np.uint32) << 16).view(np.float32)
    narrow = write_rows(tmp_path / "n.actstore", bits, dtype="bfloat16", shard_rows=1024)
    plain = write_rows(tmp_path / "p.actstore", same, shard_rows=1024)
    # One chunk holds all rows of either store, so that their order is the same.
    losses = [train(config_for(path, tmp_path / path.stem)).loss for path in (narrow, plain)]
    assert losses[0] == losses[1]


def test_training_finds_planted_directions(tmp_path):
    """Sparse sums of 24 hidden directions in 16 dimensions: each is some latent's direction."""
    rng = np.random.default_rng(0)
    truth = rng.standard_normal((24, 16))
    truth /= np.linalg.norm(truth, axis=1, keepdims=True)
    active = rng.random((16384, 24)) < 0.06
    x = (active * rng.uniform(0.5, 1.5, active.shape)) @ truth
    store = write_rows(tmp_path / "s.actstore", x.astype(np.float32))
    config = config_for(
        store, tmp_path / "run", arch={"kind": "relu", "l1": 0.3}, lr=1e-2, lr_decay="30%",
        batch_size=256, steps=400, log_every=400, checkpoint_every=10**6,
    )  # fmt: skip
    report = train(config)
    W_dec = SAERun.open(config.out).load_sae(torch.device("cpu")).W_dec.detach().numpy()
    cosine = (truth @ W_dec.T).max(axis=1)
    assert cosine.mean() > 0.95  # the best of 64 random directions gives 0.6
    assert report.explained_variance > 0.85 and report.l0 < 6


def test_of_rows_that_are_all_equal_no_variance_is_explained_and_none_is_claimed(tmp_path):
    store = write_rows(tmp_path / "s.actstore", np.full((2048, D_IN), 3.0, np.float32))
    config = config_for(store, tmp_path / "run", normalize="none")
    report = train(config)
    assert report.explained_variance is None
    assert "EV -" in curve_words(report)
    assert '"explained_variance": null' in (config.out / METRICS).read_text()
    assert train(config).explained_variance is None
    save_curves(config.out)
    assert not any("explained variance" in line for line in SAERun.open(config.out).advice)


@pytest.fixture
def another(store, tmp_path) -> Path:
    """A complete run of the same shape, on the same store, of another configuration."""
    train(config_for(store, tmp_path / "another", lr=1e-2))
    return tmp_path / "another"


def test_a_checkpoint_of_another_run_is_refused_before_the_first_step(
    store, tmp_path, whole, another
):
    out = shutil.copytree(whole, tmp_path / "copy")
    unfinish(out, up_to=10)
    folder = out / "checkpoints" / "step-000000020"
    shutil.copytree(another / "checkpoints" / folder.name, folder)
    shutil.copy(another / METRICS, out)
    seen: list[TrainReport] = []
    said = rf"{folder}/state.json is of a run of another .*: delete the folder {folder} to go back"
    with refused(CheckpointError, said):
        train(config_for(store, out), on_step=seen.append)
    assert not seen
    shutil.rmtree(folder)
    shutil.copy(whole / METRICS, out)
    train(config_for(store, out))
    assert result(out) == result(whole)


def test_a_checkpoint_goes_on_elsewhere_and_one_that_says_no_run_as_before(store, tmp_path, whole):
    out = shutil.copytree(whole, tmp_path / "moved/deeper")
    unfinish(out, up_to=20)
    train(config_for(store, out))
    assert result(out) == result(whole)
    unfinish(out, up_to=20)
    state = out / "checkpoints" / "step-000000020" / "state.json"
    told = json.loads(state.read_text())
    assert told.pop("digest")
    state.write_text(json.dumps(told))
    train(config_for(store, out))
    assert result(out) == result(whole)


def test_a_complete_run_with_curves_of_another_is_not_reported_on(store, tmp_path, whole, another):
    out = shutil.copytree(whole, tmp_path / "copy")
    shutil.copy(another / METRICS, out)
    with refused(CheckpointError, "metrics.jsonl is not that of this run"):
        train(config_for(store, out))
    shutil.copy(whole / METRICS, out)
    assert train(config_for(store, out)).reused
