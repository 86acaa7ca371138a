"""As many latents as were asked for are active when a run ends, and few of the others are dead."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actstore.reader import ActStore
from pipeline.config.architectures import ARCHS, PenalisedByL1
from pipeline.runs.sae_run import SAERun
from pipeline.sae.architecture import Architecture, architecture_of
from pipeline.sae.sae import SAE, fit
from pipeline.sae.stack import Stack, stacked
from pipeline.training.assemble import point_at_rows
from pipeline.training.train import train
from tests.helpers.stores import column
from tests.helpers.training import config_of, lines_of, make_rows, write_rows

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 16
OPEN = {
    "normalize": "rms", "w_dec_start": "rows", "revive": 1.0, "lr": None, "lr_warmup": "5%",
    "lr_decay": "60%", "dead_window": None, "batch_size": 128, "expansion": 4,
}  # fmt: skip
"""The defaults, where the helper has plainer settings."""


@pytest.fixture(scope="module")
def wide(tmp_path_factory) -> Path:
    """Rows whose unit is none, around a point far from zero."""
    rows = 37 * make_rows(16_384, width=WIDTH)
    return write_rows(tmp_path_factory.mktemp("wide") / "a.actstore", rows, shard_rows=4096)


def active(sae: SAE, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return (sae.encode(x) > 0).float()


@pytest.mark.parametrize("l0", [3, 8])
@pytest.mark.parametrize("kind", ARCHS)
def test_a_short_run_ends_with_as_many_active_latents_as_were_asked_for(wide, tmp_path, kind, l0):
    arch = ARCHS[kind](**{ARCHS[kind].l0_as: l0})
    train(config_of(wide, tmp_path / "r", steps=128, **OPEN, arch={"kind": kind, arch.l0_as: l0}))
    run, x = SAERun.open(tmp_path / "r"), torch.from_numpy(column(ActStore.open(wide), "mlp_out.0"))
    z = active(run.sae, x)
    assert float(z.sum(-1).mean()) == pytest.approx(l0, rel=0.02)
    assert run.metrics["l0"] == pytest.approx(l0, rel=0.1)  # of one batch
    assert run.metrics["explained_variance"] > 0


@pytest.mark.parametrize("said", ["target", "l1"])
@pytest.mark.parametrize(
    "kind", [kind for kind, arch in ARCHS.items() if issubclass(arch, PenalisedByL1)]
)
def test_only_a_number_of_latents_shifts_biases(wide, tmp_path, kind, said):
    """At the beginning and at the end; else one step moves them by one learning rate from zero."""
    settings = OPEN | {"lr": 0.01, "lr_warmup": "0", "lr_decay": "0", "revive": 0.0}
    train(config_of(wide, tmp_path / "r", steps=1, arch={"kind": kind, said: 0.1}, **settings))
    run = SAERun.open(tmp_path / "r")
    biases = [p for name, p in run.sae.state_dict().items() if "b_" in name and name != "b_dec"]
    assert all(float(p.abs().max()) <= 0.0101 for p in biases)
    assert run.metrics["l0"] > 0.4 * run.d_sae


@pytest.mark.parametrize("kind", ARCHS)
def test_dead_latents_come_nearer_and_the_others_stay(kind):
    knobs = {ARCHS[kind].l0_as: 4} | ({"prefixes": 3} if kind == "matryoshka" else {})
    config = ARCHS[kind](**knobs)
    arch = architecture_of(config, d_in=8, d_sae=32, rms=2.0)
    saes = [SAE(config, d_in=8, d_sae=32, seed=seed, rms=2.0) for seed in (0, 1)]
    stack = Stack(stacked(saes, arch), arch)
    if kind == "jumprelu":
        stack.params["log_threshold"].add_(1.0)  # it has risen since the start
    before = {name: p.clone() for name, p in stack.params.items()}
    dead = torch.zeros(2, 32, dtype=torch.bool)
    dead[0, 3] = dead[1, 5] = True
    arch.revive(stack.params, dead, step=torch.tensor([[0.1], [0.4]]).expand(2, 32))
    moved = {
        name: p - before[name]
        for name, p in stack.params.items()
        if not torch.equal(p, before[name])
    }
    names = {"jumprelu": {"log_threshold"}, "gated": {"b_gate", "b_mag"}}.get(kind, {"b_enc"})
    assert set(moved) == names
    expected = dead * torch.tensor([[0.1], [0.4]]) * (-0.5 if kind == "jumprelu" else 1)
    for move in moved.values():
        torch.testing.assert_close(move, expected)


def test_a_dead_latents_threshold_falls_to_its_start_and_then_its_bias_rises():
    config = ARCHS["jumprelu"](l0=4)
    arch = architecture_of(config, d_in=8, d_sae=32, rms=2.0)
    stack = Stack(stacked([SAE(config, d_in=8, d_sae=32, rms=2.0)], arch), arch)
    at, b_enc = stack.params["log_threshold"], stack.params["b_enc"]
    start = at[0, 0].item()
    at[0, :2] += 0.07
    dead = torch.zeros(1, 32, dtype=torch.bool)
    dead[0, 0] = dead[0, 2] = True
    for _ in range(3):
        arch.revive(stack.params, dead, step=torch.full((1, 32), 0.1))
    assert at[0, :3].tolist() == pytest.approx([start, start + 0.07, start])
    assert b_enc[0, :3].tolist() == pytest.approx([0.1, 0.0, 0.3])  # first: 2 of 3 lowered it


def test_gates_are_shifted_until_as_many_latents_as_asked_for_have_a_magnitude_too():
    config = ARCHS["gated"](l0=4)
    arch = architecture_of(config, d_in=8, d_sae=32, rms=1.0)
    sae = SAE(config, d_in=8, d_sae=32)
    x = torch.randn(4000, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        sae.activation.b_mag[::2] = -1.5  # of many whose gate is open
        fit(sae, arch, [x], l0=4)
    assert float(active(sae, x).sum(-1).mean()) == pytest.approx(4, rel=0.01)


def test_only_what_was_silent_for_long_is_helped_and_only_if_that_was_asked_for(wide, tmp_path):
    """With l1 so high, everything falls silent; from then on nothing but the help moves b_enc."""
    biases = {}
    for revive in (0.0, 1.0):
        out = tmp_path / str(revive)
        settings = OPEN | {
            "lr": 0.01, "lr_warmup": "0", "lr_decay": "0", "revive": revive, "beta1": 0.0,
            "beta2": 0.001, "revive_after": "8 steps", "dead_window": "1M", "w_dec_start": "random",
        }  # fmt: skip
        arch = {"kind": "relu", "l1": 1e6}
        train(config_of(wide, out, steps=200, checkpoint_every=1000, arch=arch, **settings))
        biases[revive] = SAERun.open(out).sae.b_enc.detach()
    assert float(biases[0.0].max()) < -0.1
    assert float((biases[1.0] - biases[0.0]).min()) > 0.02


def test_help_slows_down_with_learning_but_for_what_stays_silent(wide, tmp_path, monkeypatch):
    steps = []

    def note(arch, params, dead, *, step):
        steps.append((dead.clone(), step.clone()))

    monkeypatch.setattr(Architecture, "revive", note)
    settings = OPEN | {"lr": 0.01, "lr_warmup": "0", "lr_decay": "100%", "revive_after": "3 steps"}
    arch = {"kind": "relu", "l1": 1e6}
    train(config_of(wide, tmp_path / "r", steps=100, checkpoint_every=1000, arch=arch, **settings))
    silent = torch.zeros(4 * WIDTH)
    for i, (dead, step) in enumerate(steps):
        silent = torch.where(dead[0], silent + 1, 0)  # steps since the third
        long = silent > 27
        torch.testing.assert_close(
            step[0][~long], torch.full_like(step[0], 0.01 * (1 - i / 100))[~long]
        )
        torch.testing.assert_close(step[0][long], torch.full_like(step[0], 0.01)[long])
    assert long.any()


def test_directions_start_half_towards_rows_seen_from_their_mean():
    x = torch.from_numpy(make_rows(64, width=WIDTH))
    config = ARCHS["topk"](k=4)
    plain, sae = (SAE(config, d_in=WIDTH, d_sae=64, seed=0) for _ in range(2))
    with torch.no_grad():
        point_at_rows(sae, x, seed=3)
    torch.testing.assert_close(sae.W_dec.norm(dim=-1), plain.W_dec.norm(dim=-1))
    torch.testing.assert_close(sae.W_enc.norm(dim=0), plain.W_enc.norm(dim=0))
    unit = torch.nn.functional.normalize(sae.W_dec, dim=-1)
    torch.testing.assert_close(torch.nn.functional.normalize(sae.W_enc.T, dim=-1), unit)
    towards = torch.nn.functional.normalize(x - x.mean(0), dim=-1)
    # What is left of 2 cos(angle / 2) times each direction without its noise is one of the rows.
    twice = unit * (plain.W_dec + towards[:, None]).norm(dim=-1)[..., None]
    off = (twice - plain.W_dec - towards[:, None]).norm(dim=-1).min(0).values
    assert float(off.detach().max()) < 1e-5
    chosen = (twice - plain.W_dec - towards[:, None]).norm(dim=-1).argmin(0)
    assert len(np.unique(chosen.detach().numpy())) > 32
    again = SAE(config, d_in=WIDTH, d_sae=64, seed=0)
    with torch.no_grad():
        point_at_rows(again, x, seed=4)
    assert not torch.equal(again.W_dec, sae.W_dec)


def test_a_price_that_is_told_stays_and_thresholds_are_as_they_were_learned(wide, tmp_path):
    arch = {"kind": "jumprelu", "coefficient": 0.02}
    settings = OPEN | {"lr": 0.01, "normalize": "none"}
    settings |= {"log_every": 1, "checkpoint_every": 64}
    train(config_of(wide, tmp_path / "r", steps=64, arch=arch, **settings))
    run, curves = SAERun.open(tmp_path / "r"), lines_of(tmp_path / "r")
    rows = column(ActStore.open(wide), "mlp_out.0").astype(np.float64)
    price = 0.02 * np.square(rows).sum(-1).mean()
    assert [line["beta"] for line in curves] == pytest.approx([price] * len(curves), rel=1e-3)
    newest = max((tmp_path / "r" / "checkpoints").iterdir())
    learned = load_file(newest / "sae.safetensors")["activation.threshold"]
    torch.testing.assert_close(run.sae.activation.threshold.detach(), learned, rtol=0, atol=0)


def test_latents_begin_behind_low_thresholds_and_a_price_makes_them_few(wide, tmp_path):
    arch = {"kind": "jumprelu", "l0": 4}
    train(config_of(wide, tmp_path / "r", steps=512, **OPEN, arch=arch, log_every=1))
    l0 = [line["l0"] for line in lines_of(tmp_path / "r")]
    assert l0[0] > 0.3 * 4 * WIDTH
    late = l0[384:-1]  # before thresholds are fitted
    assert sum(late) / len(late) == pytest.approx(4, rel=0.1)
