"""Small trainings: their stores and settings, what must be equal, and trainings that are killed."""

import csv
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from actstore.manifest import StoreSpec
from actstore.writer import ActWriter
from pipeline.config.architectures import ARCHS, Penalised
from pipeline.config.grid import expand
from pipeline.config.serialization import from_json
from pipeline.config.training import TrainConfig
from pipeline.runs.curves import TrainReport
from pipeline.training.loop import Outcome
from pipeline.training.sweep import train_sweep
from tests.helpers.stores import flip

CTX = 16
WIDTHS = {"mlp_out.0": 8, "resid_post.0": 8}

server = multiprocessing.get_context("forkserver")
server.set_forkserver_preload(["tests.helpers.training"])  # each child has torch already


def make_rows(n_rows: int, *, width: int, seed: int = 0) -> np.ndarray:
    """Sparse sums of more directions than there are dimensions, around a point far from zero."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((2 * width, width))
    active = rng.random((n_rows, len(directions))) < 0.15
    x = (active * rng.uniform(0.5, 2, active.shape)) @ directions + 2
    return x.astype(np.float32)


def make_training_store(path: Path, *, n_rows: int = 2048) -> Path:
    """A store of two sites, each token the number of its context."""
    acts = {
        site: make_rows(n_rows, width=width, seed=i)
        for i, (site, width) in enumerate(WIDTHS.items())
    }
    tokens = np.repeat(np.arange(n_rows // CTX, dtype=np.int32)[:, None], CTX, 1)
    return write_rows(path, acts, tokens=tokens)


def write_rows(
    path: Path,
    acts: np.ndarray | dict[str, np.ndarray],
    *,
    tokens: np.ndarray | None = None,
    dtype: str = "float32",
    shard_rows: int = 512,
) -> Path:
    """A store of rows of contexts of CTX tokens, one context after another."""
    sites = {"mlp_out.0": acts} if isinstance(acts, np.ndarray) else acts
    n_rows = len(next(iter(sites.values())))
    spec = StoreSpec.of(
        widths={site: x.shape[1] for site, x in sites.items()},
        ctx_len=CTX,
        dtype=dtype,
        shard_rows=shard_rows,
        source={"model": "builtin", "revision": "main", "text": "builtin"},
    )
    contexts = {site: x.reshape(-1, CTX, x.shape[1]) for site, x in sites.items()}
    with ActWriter.create_or_resume(path, spec, n_rows=n_rows) as writer:
        no_tokens = np.zeros((n_rows // CTX, CTX), np.int32)
        writer.append(contexts, tokens=no_tokens if tokens is None else tokens)
        writer.finish()
    return path


PLAIN: dict[str, Any] = {
    "lr_warmup": "0", "lr_decay": "0", "normalize": "none", "w_dec_start": "random", "revive": 0.0,
}  # fmt: skip
"""Settings of a training of which every step is alike, from noise: nothing depends on its length.
"""


def settings_for(store: Path, *, steps: int, **changes: object) -> dict[str, Any]:
    """Settings of a plain run, or of a sweep, of so many steps."""
    batch_size = changes.get("batch_size", 64)
    assert isinstance(batch_size, int)
    common = PLAIN | {
        "store": str(store), "site": "mlp_out.0", "batch_size": batch_size, "lr": 1e-3,
        "tokens": steps * batch_size, "checkpoint_every": 5, "log_every": 4, "device": "cpu",
        "window_rows": 512, "threads": 1, "dead_window": "1M", "arch": plain_arch("relu"),
    }  # fmt: skip
    return common | changes


def plain_arch(kind: str, **settings: object) -> dict[str, object]:
    """An architecture's table; a penalty is one that stays, unless it is told what to arrive at."""
    arch = ARCHS[kind]
    if issubclass(arch, Penalised) and not settings.keys() & {"l0", "target", arch.penalty_as}:
        settings[arch.penalty_as] = 1e-3
    return {"kind": kind} | settings


def config_of(store: Path, out: Path, *, steps: int = 30, **changes: object) -> TrainConfig:
    """The config of one run of these settings."""
    return from_json(TrainConfig, settings_for(store, steps=steps, **changes) | {"out": str(out)})


def train_settings(settings: dict[str, Any], out: Path, **options: Any) -> list[Outcome]:
    """Train these settings, whose lists make a sweep."""
    torch.set_num_threads(1)
    return train_sweep(expand(settings, out=out), out=out, **options)


def train_until(settings: dict[str, Any], out: Path, *, step: int) -> bool:
    """Train on to the first line of the curves of this step or a later one, and press Ctrl-C.

    False if the end came first.
    """

    def interrupt(report: TrainReport) -> None:
        if report.step >= step:
            raise KeyboardInterrupt

    try:
        train_settings(settings, out, on_step=interrupt)
    except KeyboardInterrupt:
        return True
    return False


def make_report(run: Path, step: int, **changes: Any) -> TrainReport:
    """A line of the curves of a run that nobody trained."""
    figures: dict[str, Any] = {
        "run": run, "step": step, "n_steps": 99, "rows": 8 * step, "loss": 1 / step, "recon": 1e-17,
        "sparsity": 0.0, "aux": 0.0, "l0": 1.5, "l1": 2.0, "explained_variance": 0.5, "beta": 0.1,
        "n_dead": 3, "n_resampled": 0, "lr": 1e-4, "sparse": step > 20, "rows_per_s": 100.0,
    }  # fmt: skip
    return TrainReport(**figures | changes)


def read_table(sweep: Path) -> list[dict[str, str]]:
    """The lines of a sweep.csv by column; what a member lacks is empty."""
    with (sweep / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def lines_of(out: Path) -> list[dict[str, float]]:
    """The curves of a run, but their speed."""
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        assert line.pop("rows_per_s") > 0
    return lines


def result(out: Path) -> tuple[bytes, bytes, list[dict[str, float]]]:
    """All that two equal runs must share: final weights, final moments, curves."""
    moments = max((out / "checkpoints").iterdir()) / "optimizer.safetensors"
    (weights,) = out.glob("*.safetensors")
    return weights.read_bytes(), moments.read_bytes(), lines_of(out)


def assert_alike(out: Path, other: Path) -> None:
    """Two runs differ by rounding: curves by 1e-4, weights of one kind by 3e-5, root mean square.

    Runs of ten steps of 1e-3 move weights by up to 1e-2. They are not compared one by one: Adam
    makes whole steps even of gradients that are nothing but rounding.
    """
    for line, theirs in zip(lines_of(out), lines_of(other), strict=True):
        named = {name: value for name, value in theirs.items() if name != "sparse"}
        assert {name: line[name] for name in named} == pytest.approx(named, rel=1e-4, abs=1e-5)
    ours, weights = (load_file(folder / "sae.safetensors") for folder in (out, other))
    for name, w in weights.items():
        assert np.sqrt(np.mean((ours[name].astype(float) - w) ** 2)) < 3e-5, name


def steps_kept(out: Path) -> list[int]:
    """The steps of a run's checkpoints."""
    return sorted(int(path.name.split("-")[1]) for path in (out / "checkpoints").glob("step-*"))


def flip_a_bit(path: Path) -> None:
    """In the middle of a file."""
    flip(path, path.stat().st_size // 2, bit=2)


def truncate(path: Path) -> None:
    """Take a few bytes off the end of a file."""
    path.write_bytes(path.read_bytes()[:-5])


DAMAGES = (flip_a_bit, truncate, Path.unlink)


def unfinish(out: Path, *, up_to: int) -> None:
    """Turn a complete run into what a kill would have left: later curves, some checkpoints."""
    document = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps(document | {"sha256": ""}))
    (weights,) = out.glob("*.safetensors")
    weights.unlink()
    for folder in (out / "checkpoints").glob("step-*"):
        if int(folder.name.split("-")[1]) > up_to:
            shutil.rmtree(folder)


def syncs_of(monkeypatch: Any, settings: dict[str, Any], out: Path) -> int:
    """Train to the end; how often that wrote to the disk."""
    count = [0]

    def sync(fd: int) -> None:
        count[0] += 1

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", sync)
        train_settings(settings, out)
    return count[0]


def killed(settings: dict[str, Any], out: Path, *, at_sync: int) -> None:
    """Train, and kill -9 it where it writes to the disk for this time."""
    process = server.Process(
        target=_train_and_die, args=(settings, out), kwargs={"at_sync": at_sync}
    )
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def _train_and_die(settings: dict[str, Any], out: Path, *, at_sync: int) -> None:
    count = [0]

    def sync(fd: int) -> None:
        count[0] += 1
        if count[0] == at_sync:
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = sync
    train_settings(settings, out)
