"""What each option of a training does to it, by formulas of its own in float64."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actstore.batches import Batches
from actstore.reader import ActStore
from pipeline.config.architectures import ARCHS
from pipeline.runs.sae_run import SAERun
from pipeline.sae.jumprelu import Threshold
from pipeline.sae.sae import SAE
from pipeline.training.assemble import b_dec_start
from pipeline.training.feed import Feed, Feeder
from pipeline.training.train import train
from tests.helpers.slow import slow
from tests.helpers.stores import column
from tests.helpers.training import (
    CTX,
    assert_alike,
    config_of,
    lines_of,
    make_rows,
    plain_arch,
    result,
    write_rows,
)

KNOBS: dict[str, dict[str, object]] = {
    "topk": {"k": 2}, "batchtopk": {"k": 2}, "matryoshka": {"k": 2, "prefixes": 3},
    "jumprelu": {"l0": 3.0},
}  # fmt: skip
every_arch = pytest.mark.parametrize(
    "arch", [plain_arch(kind, **KNOBS.get(kind, {})) for kind in ARCHS], ids=list(ARCHS)
)


def run(store: Path, out: Path, *, steps: int = 8, **changes: object) -> list[dict[str, Any]]:
    """Train, with a line of curves and a checkpoint of every step; the lines."""
    train(config_of(store, out, steps=steps, checkpoint_every=1, log_every=1, **changes))
    return lines_of(out)


def kept(out: Path, step: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights, and all else, of a checkpoint; in float64."""
    folder = out / "checkpoints" / f"step-{step:09d}"
    weights, rest = (load_file(folder / f"{name}.safetensors") for name in ("sae", "optimizer"))
    return {k: v.double() for k, v in weights.items()}, {k: v.double() for k, v in rest.items()}


def rows_of(store: Path, site: str = "mlp_out.0") -> torch.Tensor:
    return torch.from_numpy(column(ActStore.open(store), site))


def sae_at(out: Path, step: int) -> SAE:
    """The SAE of a checkpoint, which takes rows as they were fed."""
    sae = SAERun.open(out).blank_sae()
    sae.load_state_dict(load_file(out / "checkpoints" / f"step-{step:09d}" / "sae.safetensors"))
    return sae


def test_the_sae_that_is_saved_is_the_moving_average_of_the_weights(store, tmp_path):
    run(store, tmp_path, ema=0.75, lr=1e-2, b_dec_start="zero")
    every = [kept(tmp_path, step)[0] for step in range(1, 9)]
    share = torch.tensor([0.75 ** (8 - step) for step in range(1, 9)], dtype=torch.float64)
    share /= share.sum()
    average = {
        name: torch.tensordot(share, torch.stack([weights[name] for weights in every]), 1)
        for name in every[0]
    }
    average["W_dec"] /= average["W_dec"].norm(dim=-1, keepdim=True)
    saved = load_file(tmp_path / "sae.safetensors")
    for name, expected in average.items():
        torch.testing.assert_close(saved[name].double(), expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(saved["W_dec"], kept(tmp_path, 8)[0]["W_dec"].float(), atol=1e-3)


def test_an_average_of_what_is_tied_is_tied(store, tmp_path):
    run(store, tmp_path, ema=0.75, lr=1e-2, arch=plain_arch("tied"))
    saved = load_file(tmp_path / "sae.safetensors")
    assert torch.equal(saved["W_enc"], saved["W_dec"].T)


OPTIONS: dict[str, dict[str, object]] = {
    "plain": {},
    "averaged": {"ema": 0.9},
    "scaled": {"normalize": "rms", "exclude_positions": [0]},
    "projected": {"project": True, "clip": 0.0, "lr_decay": "50%", "l1_warmup": "50%"},
    "sparse": {"sparse": "on", "b_dec_start": "median"},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@every_arch
def test_the_last_line_of_the_curves_is_of_what_is_left_behind(store, tmp_path, arch, options):
    *_, line = run(store, tmp_path, steps=5, arch=arch, lr=1e-2, **options)
    opened, config = ActStore.open(store), SAERun.open(tmp_path).config
    batches = Batches(
        store=opened, sites=("mlp_out.0",), metadata=("position",), batch_size=64,
        window_rows=config.window_rows, seed=config.order_seed,
    )  # fmt: skip
    batch = next(batches.start_at(4))
    x = torch.from_numpy(batch["mlp_out.0"]).double()
    scale = 1.0
    if "exclude_positions" in options:
        x = x[torch.from_numpy(batch["position"]) != 0]
        rows, position = rows_of(store).double(), column(opened, "position")
        scale = float(rows[torch.from_numpy(position) != 0].square().mean().sqrt())
    sae = SAERun.open(tmp_path).load_sae(torch.device("cpu")).double()
    with torch.no_grad():
        z, residual = sae.encode(x), sae(x) - x
    spread = (x - x.mean(0)).square().sum()
    assert line["l0"] == pytest.approx(float((z > 0).double().sum(-1).mean()), abs=1.5 / len(x))
    assert line["l1"] == pytest.approx(float(z.sum(-1).mean()), rel=1e-4)
    recon = float(residual.square().sum(-1).mean()) / scale**2
    assert line["recon"] == pytest.approx(recon, rel=1e-4)
    explained = 1 - float(residual.square().sum() / spread)
    assert line["explained_variance"] == pytest.approx(explained, abs=1e-4)
    assert line["loss"] == pytest.approx(line["recon"] + line["sparsity"] + line["aux"], rel=1e-5)


@pytest.mark.parametrize("k", [1.5, 2])
@pytest.mark.parametrize("kind", ["batchtopk", "matryoshka", "jumprelu"])
def test_a_threshold_lets_through_what_was_asked_for(store, tmp_path, kind, k):
    knobs = {"l0": float(k)} if kind == "jumprelu" else {"k": k}
    knobs |= {"prefixes": 3} if kind == "matryoshka" else {}
    run(store, tmp_path, steps=32, arch={"kind": kind} | knobs, lr=1e-2)  # one pass
    x, sae = rows_of(store), SAERun.open(tmp_path).load_sae(torch.device("cpu"))
    assert float((sae.encode(x) > 0).sum()) / len(x) == pytest.approx(k, rel=4e-3)


@every_arch
def test_the_sae_of_a_normalised_run_takes_rows_as_they_are(store, tmp_path, arch):
    run(store, tmp_path, arch=arch, normalize="rms", lr=1e-2, steps=4, exclude_positions=[0])
    x = rows_of(store)
    position = torch.from_numpy(column(ActStore.open(store), "position"))
    scale = float(x[position != 0].double().square().mean().sqrt())
    inner, saved = sae_at(tmp_path, 4), SAERun.open(tmp_path).load_sae(torch.device("cpu"))
    with torch.no_grad():
        if isinstance(inner.activation, Threshold):  # it was fitted after the last checkpoint
            ratio = saved.activation.threshold / inner.activation.threshold
            torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
            inner.activation.threshold.mul_(ratio)
        z, z_inner = saved.encode(x), inner.encode(x / scale)
        torch.testing.assert_close(saved(x), scale * inner(x / scale), rtol=1e-4, atol=1e-4)
        error = (saved(x) - x).square().sum(-1).mean()
        inner_error = (inner(x / scale) - x / scale).square().sum(-1).mean()
    assert float(error) == pytest.approx(scale**2 * float(inner_error), rel=1e-4)
    assert ((z > 0) == (z_inner > 0)).float().mean() > 0.999


def test_the_unit_of_the_rows_does_not_matter_once_they_are_normalised(tmp_path):
    """Four times the rows: a power of two, so that not a bit of what is learned differs."""
    x = make_rows(1024, width=8)
    lines = [
        run(write_rows(tmp_path / f"{unit}.actstore", unit * x), tmp_path / str(unit), steps=5,
            normalize="rms", arch={"kind": "jumprelu", "l0": 3.0}, b_dec_start="median")
        for unit in (1, 4)
    ]  # fmt: skip
    assert lines[0] == lines[1]
    one, four = (load_file(tmp_path / unit / "sae.safetensors") for unit in "14")
    torch.testing.assert_close(one["b_dec"] * 4, four["b_dec"])
    for step in range(1, 6):
        for a, b in zip(kept(tmp_path / "1", step), kept(tmp_path / "4", step), strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_b_dec_starts_where_it_was_told(store, tmp_path):
    feed = Feed(site="mlp_out.0")
    feeder = Feeder(ActStore.open(store), [feed], device=torch.device("cpu"))
    for start in ("zero", "mean", "median"):
        run(store, tmp_path / start, steps=1, lr=1e-9, b_dec_start=start)
        b_dec = kept(tmp_path / start, 1)[0]["b_dec"]
        torch.testing.assert_close(b_dec, b_dec_start(feeder, feed, start), rtol=1e-6, atol=1e-6)


def test_resampling_happens_when_it_is_due_and_is_counted(store, tmp_path):
    """A latent that was resampled is one whose moments are zero again."""
    changes: dict[str, object] = {
        "batch_size": 16, "arch": {"kind": "topk", "k": 1, "k_aux": 0}, "resample": "random",
        "resample_every": "4 steps",
    }  # fmt: skip
    never = run(store, tmp_path / "never", resample_window="9 steps", **changes)
    assert never[-1]["n_resampled"] == 0
    out = tmp_path / "due"
    lines = run(store, out, steps=12, resample_window="2 steps", **changes)
    counts = [0, *(line["n_resampled"] for line in lines)]
    anew = [
        int((kept(out, step)[1]["W_dec.exp_avg_sq"].abs().sum(-1) == 0).sum())
        for step in range(1, 13)
    ]
    grown = {step: counts[step] - counts[step - 1] for step in range(1, 13)}
    assert all(grown[step] == 0 for step in grown if step not in (4, 8))
    assert (grown[4], grown[8]) == (anew[3], anew[7]) and anew[3] + anew[7] > 3
    assert all(int(kept(out, s)[1]["n_resampled"]) == counts[s] for s in range(1, 13))


def test_dead_latents_are_those_silent_for_the_window_whatever_was_excluded(store, tmp_path):
    """Counted again by Adam's second moment, which grows with every row a latent is active on."""
    lines = run(
        store, tmp_path, steps=10, batch_size=16, arch={"kind": "topk", "k": 1, "k_aux": 0},
        dead_window="3 steps", exclude_positions=[0, 1, 2], clip=0.0,
    )  # fmt: skip
    moments = [kept(tmp_path, step)[1]["b_enc.exp_avg_sq"] for step in range(1, 11)]
    active = [moments[0] > 0]
    active += [after > before * 0.9991 for before, after in pairwise(moments)]
    for step in range(4, 11):
        silent = ~torch.stack(active[step - 3 : step]).any(0)
        assert lines[step - 1]["n_dead"] == int(silent.sum()) > 0
        assert lines[step - 1]["dead_over"] == 48
    assert (lines[1]["n_dead"], lines[1]["dead_over"]) == (
        int((~(active[0] | active[1])).sum()),
        32,
    )


def test_l1_warms_up_is_held_and_then_follows_the_target(store, tmp_path):
    arch = {"kind": "relu", "l1": 0.5, "target": 0.05}
    lines = run(store, tmp_path, steps=14, arch=arch, l1_warmup="4 steps", hold="8 steps")
    betas = [line["beta"] for line in lines]
    assert betas[:8] == pytest.approx([0.125, 0.25, 0.375, *[0.5] * 5])
    assert all(a < b for a, b in pairwise(betas[9:]))
    assert betas[-1] > 0.5  # more is active than was asked for


def test_the_learning_rate_rises_and_falls(store, tmp_path):
    lines = run(store, tmp_path, steps=10, lr=0.1, lr_warmup="4 steps", lr_decay="50%")
    expected = [0.025, 0.05, 0.075, 0.1, 0.1, 0.1, 0.08, 0.06, 0.04, 0.02]
    assert [line["lr"] for line in lines] == pytest.approx(expected)


def test_a_gradient_is_shortened_to_the_norm_it_is_clipped_to(store, tmp_path):
    """After one step, Adam's first moment is a tenth of the gradient."""
    run(store, tmp_path / "free", steps=1, clip=0.0)
    run(store, tmp_path / "clipped", steps=1, clip=0.25)
    free, clipped = (
        torch.cat([v.flatten() for k, v in kept(tmp_path / name, 1)[1].items()
                   if k.endswith(".exp_avg")]) * 10
        for name in ("free", "clipped")
    )  # fmt: skip
    assert free.norm() > 1
    torch.testing.assert_close(clipped, 0.25 * free / free.norm(), rtol=1e-5, atol=1e-8)


def test_a_projected_gradient_has_nothing_along_the_dictionary(store, tmp_path):
    W_dec = SAE(ARCHS["relu"](), d_in=8, d_sae=32).W_dec.detach().double()
    parallel = {}
    for project in (False, True):
        run(store, tmp_path / str(project), steps=1, project=project)
        moment = kept(tmp_path / str(project), 1)[1]["W_dec.exp_avg"]
        parallel[project] = (moment * W_dec).sum(-1).abs().max() / moment.norm(dim=-1).max()
    assert parallel[True] < 1e-6 < 1e-2 < parallel[False]


def test_what_is_excluded_by_place_token_or_norm_has_no_part(tmp_path):
    """First rows a hundred times as long, of a token of their own: three ways to leave them out."""
    x = make_rows(1024, width=8)
    x[::CTX] *= 100
    tokens = np.ones((1024 // CTX, CTX), np.int32)
    tokens[:, 0] = 7
    store = write_rows(tmp_path / "s.actstore", x, tokens=tokens)
    ways = {"exclude_positions": [0], "exclude_tokens": [7], "exclude_norms": 10.0}
    for name, value in ways.items():
        run(store, tmp_path / name, normalize="rms", **{name: value})
    first, *others = (result(tmp_path / name) for name in ways)
    assert all(other == first for other in others)
    assert run(store, tmp_path / "all", normalize="rms") != first[2]


@pytest.mark.parametrize(
    ("sparse", "k", "shown"), [("on", 8, True), ("off", 1, False), ("auto", 1, True),
                               ("auto", 16, False)]
)  # fmt: skip
def test_the_curves_say_which_path_was_taken(store, tmp_path, sparse, k, shown):
    lines = run(store, tmp_path, steps=2, sparse=sparse, arch={"kind": "topk", "k": k})
    assert [line["sparse"] for line in lines] == [shown] * 2


def test_latents_that_are_active_on_nearly_all_rows_are_counted(store, tmp_path):
    x = rows_of(store)
    (line,) = run(store, tmp_path, steps=1, batch_size=len(x), b_dec_start="zero")
    with torch.no_grad():
        active = (SAERun.open(tmp_path).sae.encode(x) > 0).float().mean(0)
    assert line["n_constant"] == int((active > 0.9).sum()) > 0


@pytest.mark.parametrize("sparse", ["on", slow("off")])
@every_arch
def test_bf16_learns_almost_as_float32_does(store, tmp_path, arch, sparse):
    wide, narrow = (
        run(
            store,
            tmp_path / precision,
            arch=arch,
            precision=precision,
            sparse=sparse,
            batch_size=512,
        )
        for precision in ("fp32", "bf16")
    )
    assert wide != narrow
    assert all(np.isfinite(value) for line in narrow for value in line.values())
    # On average over many rows: one for which another latent is picked shows in few.
    for name, rel in (("recon", 0.01), ("l0", 0.01)):
        a, b = (sum(line[name] for line in lines) for lines in (wide, narrow))
        assert b == pytest.approx(a, rel=rel), name


@every_arch
def test_the_sparse_path_learns_what_the_dense_one_does(store, tmp_path, arch):
    for sparse in ("on", "off"):
        run(store, tmp_path / sparse, arch=arch, sparse=sparse, dead_window="2 steps")
    assert_alike(tmp_path / "on", tmp_path / "off")
