"""Connectors in training: gradients, exact zeros, sweeps, and going on to the same bits."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actstore.reader import ActStore
from pipeline.config.training import ConnectConfig
from pipeline.connect import train as room
from pipeline.connect.connector import PairLatents
from pipeline.connect.group import Problem, shrink
from pipeline.connect.reading.read import read_connector
from pipeline.connect.reading.values import ReadingConfig
from pipeline.connect.run import ConnectorRun, blank_connector_run
from pipeline.connect.start import start_connector
from pipeline.connect.train import PairFeeder, connector_bytes
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.runs.curves import ConnectStep
from pipeline.runs.kinds import says_kind
from pipeline.runs.sae_run import SAERun
from pipeline.sae.kernels import kernels_for
from pipeline.training.loop import stream_of
from pipeline.training.train import train_all
from tests.helpers.plain_eval import leave_out
from tests.helpers.refusals import refused
from tests.helpers.training import (
    lines_of,
    make_rows,
    result,
    settings_for,
    train_settings,
    unfinish,
    write_rows,
)

SITES = ("resid_pre.0", "mlp_out.0")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A store, and an SAE of each of its sites that saw a few batches."""
    folder = tmp_path_factory.mktemp("connect")
    x = make_rows(1024, width=8)
    layer = np.random.default_rng(1).standard_normal((8, 8)).astype(np.float32)
    store = write_rows(folder / "s.actstore", {SITES[0]: x, SITES[1]: np.maximum(x @ layer, 0)})
    for site in SITES:
        settings = settings_for(store, steps=30, site=site, arch={"kind": "topk", "k": 3})
        train_settings(settings, folder / site)
    return folder


def make_config(place: Path, out: Path, **changes) -> ConnectConfig:
    common = {
        "store": place / "s.actstore", "out": out, "ends": tuple(place / site for site in SITES),
        "batch_size": 64, "tokens": 64 * 20, "checkpoint_every": 5, "log_every": 4,
        "device": "cpu", "window_rows": 512, "threads": 1, "start": "random", "l1": 0.002,
    }  # fmt: skip
    return ConnectConfig(**(common | changes))


def connect(config: ConnectConfig) -> ConnectStep:
    torch.set_num_threads(1)
    (outcome,) = train_all([config])
    assert isinstance(outcome, ConnectStep), outcome
    return outcome


def every_row(store: ActStore, *metadata: str) -> dict[str, torch.Tensor]:
    indices = np.arange(store.n_rows)
    return {name: torch.from_numpy(store.rows(name, indices)) for name in (*SITES, *metadata)}


# --- the objective ---------------------------------------------------------------------------


def make_problem(activation: str = "relu") -> tuple[Problem, PairLatents]:
    generator = torch.Generator().manual_seed(0)
    active = torch.rand(32, 13, generator=generator) < 0.25
    z1 = torch.rand(32, 13, generator=generator) * active
    z2 = torch.rand(32, 7, generator=generator) * (torch.rand(32, 7, generator=generator) < 0.5)
    problem = Problem(
        W=torch.randn(13, 7, generator=generator),
        b=torch.randn(7, generator=generator) * 0.3,
        predicted=torch.rand(7, generator=generator) < 0.7,
        activation=activation,
        dtype=torch.float32,
    )
    return problem, PairLatents(z1=z1, z2=z2)


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_gradients_are_those_of_the_squared_error_of_predicted_outputs(activation, sparse):
    problem, latents = make_problem(activation)
    W, b = (p.double().requires_grad_() for p in (problem.W, problem.b))
    pre = latents.z1.double() @ W + b
    z2_hat = pre.clamp_min(0) if activation == "relu" else pre
    error = (z2_hat - latents.z2.double())[:, problem.predicted]
    expected = error.square().sum(1).mean()
    expected.backward()

    grads = torch.full_like(problem.W, 9.0), torch.full_like(problem.b, 9.0)
    kernels = kernels_for(CPU) if sparse else None
    recon, _ = problem.learn(latents, *grads, kernels=kernels)
    assert recon.item() == pytest.approx(expected.item(), rel=1e-5)
    for grad, p in zip(grads, (W, b), strict=True):
        torch.testing.assert_close(grad.double(), p.grad, rtol=1e-4, atol=1e-6)


def test_the_penalty_pulls_every_weight_towards_zero():
    problem, _ = make_problem()
    problem.W[0, 0] = 0.0
    grad = torch.zeros_like(problem.W)
    problem.add_penalty(grad, 0.25)
    torch.testing.assert_close(grad, 0.25 * problem.W.sign())


def test_shrinking_is_the_proximal_step_in_the_metric_of_adam():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(50, 40, generator=generator) * 0.1
    second = torch.rand(50, 40, generator=generator) * 1e-3
    reach = 3e-3 * 0.5 / ((second.double() / (1 - 0.999**7)).sqrt() + 1e-8)
    expected = W.double().sign() * (W.double().abs() - reach).clamp_min(0)
    shrink(W, second, step=7, beta2=0.999, lr=3e-3, coefficient=0.5)
    torch.testing.assert_close(W.double(), expected, rtol=1e-5, atol=1e-7)
    assert 0 < int((W == 0).sum()) < W.numel()


def lasso(z1: np.ndarray, z2: np.ndarray, l1: float) -> np.ndarray:
    """Minimiser of `mean ||z2 - z1 W||^2 + l1 sum |W|`, by coordinate descent in float64."""
    gram, cross = z1.T @ z1 / len(z1), z1.T @ z2 / len(z1)
    W = np.zeros((z1.shape[1], z2.shape[1]))
    for _ in range(2000):
        for i in range(len(W)):
            rest = cross[i] - gram[i] @ W + gram[i, i] * W[i]
            W[i] = np.sign(rest) * np.maximum(np.abs(rest) - l1 / 2, 0) / gram[i, i]
    return W


@pytest.mark.slow
def test_a_linear_connector_without_bias_ends_at_the_lasso_of_the_whole_store(place, tmp_path):
    config = make_config(
        place, tmp_path / "c", activation="linear", bias=False, l1=0.05, outputs="all",
        batch_size=1024, tokens=1024 * 300, lr=3e-2, lr_decay="70%", checkpoint_every=10_000,
        log_every=500, window_rows=1024,
    )  # fmt: skip
    connect(config)
    run = ConnectorRun.open(tmp_path / "c")
    found, rows = run.load_connector(CPU), every_row(ActStore.open(config.store))
    expected = lasso(*(z.double().numpy() for z in run.load_pair(CPU).latents(rows)), l1=0.05)
    W = found.W.double().numpy()
    assert not found.b.any()
    np.testing.assert_allclose(W, expected, atol=0.02 * np.abs(expected).max())
    np.testing.assert_array_equal(W == 0, expected == 0)  # exactly zero, and exactly there


# --- runs ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sparse": "off", "proximal": False},
        {"activation": "linear", "ema": 0.9, "clip": 0.5, "start": "regression"},
        {"start": "weights", "bias": False, "l1_warmup": "30%"},
    ],
    ids=["proximal", "dense, by gradient", "linear, averaged, clipped", "from the layer"],
)
def test_a_connector_stopped_anywhere_goes_on_to_the_same_bits(place, tmp_path, changes):
    connect(make_config(place, tmp_path / "whole", **changes))
    connect(make_config(place, tmp_path / "cut", **changes))
    for step in (15, 5):
        run = ConnectorRun.open(tmp_path / "cut")
        unfinish(tmp_path / "cut", up_to=step)
        with pytest.raises(CheckpointError, match="unfinished run: finish it with .*--connect "):
            ConnectorRun.open(run.path)
        connect(make_config(place, tmp_path / "cut", **changes))
        assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_a_sweep_shares_the_latents_and_each_member_is_as_if_trained_alone(place, tmp_path):
    configs = [make_config(place, tmp_path / f"{l1:g}", l1=l1) for l1 in (0.0, 0.02, 0.2)]
    configs = [replace(config, tokens=64 * 150, lr=1e-2) for config in configs]
    outcomes = train_all(configs)
    alone = connect(replace(configs[1], out=tmp_path / "alone"))
    assert result(tmp_path / "alone") == result(tmp_path / "0.02")
    fvu = [outcome.fvu for outcome in outcomes]
    nonzero = [outcome.nonzero for outcome in outcomes]
    assert fvu == sorted(fvu) and fvu[0] < fvu[2], fvu
    assert nonzero == sorted(nonzero, reverse=True) and nonzero[0] > nonzero[2], nonzero
    assert alone.fvu == fvu[1]


def test_sparse_and_dense_products_train_the_same_connector(place, tmp_path):
    for sparse in ("on", "off"):
        connect(make_config(place, tmp_path / sparse, sparse=sparse, tokens=64 * 8))
    on, off = (load_file(tmp_path / s / "connector.safetensors")["W"] for s in ("on", "off"))
    torch.testing.assert_close(on, off, rtol=0, atol=3e-5)


def test_a_complete_connector_is_reused_and_says_what_it_is(place, tmp_path):
    first = connect(make_config(place, tmp_path / "c"))
    again = connect(make_config(place, tmp_path / "c"))
    assert again == replace(first, reused=True)
    assert [says_kind(p) for p in (tmp_path / "c", place / SITES[0])] == ["connector", "sae"]
    run = ConnectorRun.open(tmp_path / "c")
    assert [end.site for end in (run.source, run.target)] == list(SITES)
    with pytest.raises(CheckpointError, match="is a connector run, not one of saepipe train"):
        SAERun.open(tmp_path / "c")
    with pytest.raises(CheckpointError, match="is a sae run, not one of saepipe train --connect"):
        ConnectorRun.open(place / SITES[0])


def test_the_curves_tell_the_batch_as_it_was_before_the_step(place, tmp_path):
    config = make_config(place, tmp_path / "c", tokens=64, outputs="all", start="weights")
    connect(config)
    (line,) = lines_of(tmp_path / "c")
    store = ActStore.open(config.store)
    run = ConnectorRun.open(tmp_path / "c")
    feeder = PairFeeder(store, [run], device=CPU)
    pair = run.load_pair(CPU)
    start = start_connector(config, pair, feeder.moments(run.ends)).requires_grad_(False)
    batch = next(stream_of(store, feeder, config, start=0, stop=1))
    z1, z2 = (z.double() for z in pair.latents(batch))
    error = (z1 @ start.W.double() + start.b.double()).clamp_min(0) - z2
    spread = (z2 - z2.mean(0)).square().sum()
    assert line["recon"] == pytest.approx(float(error.square().sum() / 64), rel=1e-4)
    assert line["fvu"] == pytest.approx(float(error.square().sum() / spread), rel=1e-4)
    assert line["sparsity"] == pytest.approx(0.002 * float(start.W.abs().sum()), rel=1e-4)
    assert line["loss"] == pytest.approx(line["recon"] + line["sparsity"], rel=1e-6)
    assert line["weights"] == float((start.W.abs() > 0.1).sum()) / z2.shape[1]


def test_the_penalty_rises_in_its_warm_up_and_counts_as_it_stands(place, tmp_path):
    for name, warmup in {"late": "19 steps", "now": "0"}.items():
        connect(make_config(place, tmp_path / name, l1=0.05, l1_warmup=warmup, lr=1e-2))
    late, now = (lines_of(tmp_path / name) for name in ("late", "now"))
    assert [line["beta"] for line in late] == pytest.approx(
        [0.05 * min(1, line["step"] / 19) for line in late]
    )
    assert late[1]["nonzero"] > now[1]["nonzero"]


def test_outputs_that_are_never_active_are_not_predicted_and_end_without_weights(place, tmp_path):
    folder = shutil.copytree(place / SITES[1], tmp_path / "half")
    run = SAERun.open(folder)
    coder = run.load_sae(CPU)
    with torch.no_grad():
        coder.b_enc[::2] = -1e6  # silent, and with k = 3 of the others always some active
    run.finish(coder)
    ends = (place / SITES[0], folder)
    for name, changes in {"shrunk": {}, "free": {"l1": 0.0}}.items():
        connect(make_config(place, tmp_path / name, ends=ends, **changes))
        W = load_file(tmp_path / name / "connector.safetensors")["W"]
        assert not W[:, ::2].any() and W[:, 1::2].any()


# --- what it is fed, and what can go wrong ----------------------------------------------------


def test_rows_that_either_sae_was_not_trained_on_are_left_out(place, tmp_path):
    excluded = {"exclude_positions": [3]}, {"exclude_positions": [0], "exclude_norms": 1.5}
    ends = tuple(shutil.copytree(place / site, tmp_path / site) for site in SITES)
    for end, rows in zip(ends, excluded, strict=True):
        leave_out(end, **rows)
    config = make_config(place, tmp_path / "c", ends=ends)
    connect(config)
    run = ConnectorRun.open(tmp_path / "c")
    store = ActStore.open(config.store)
    feeder = PairFeeder(store, [run], device=CPU)
    assert feeder.metadata == ("position",)
    rows = every_row(store, "position")
    kept, position = feeder.mask(run.ends, rows), rows["position"]
    norm = rows[SITES[1]].norm(dim=1)
    expected = (norm <= 1.5 * norm.median()) & (position != 0) & (position != 3)
    assert torch.equal(kept, expected) and 0 < int(kept.sum()) < int((position != 0).sum())


def test_two_saes_of_one_site_are_connected_and_read(place, tmp_path):
    settings = settings_for(place / "s.actstore", steps=8, site=SITES[1])
    train_settings(settings, tmp_path / "other")
    config = make_config(
        place, tmp_path / "c", ends=(tmp_path / "other", place / SITES[1]), start="regression"
    )
    outcome = connect(config)
    run = ConnectorRun.open(tmp_path / "c")
    assert outcome.step == 20 and run.source.site == run.target.site == SITES[1]
    store = ActStore.open(config.store)
    assert PairFeeder(store, [run], device=CPU).sites == (SITES[1],)
    assert read_connector(ReadingConfig(run=run.path, device="cpu")).n_tokens == store.n_rows


def test_an_sae_that_was_trained_anew_is_noticed(place, tmp_path):
    ends = tuple(shutil.copytree(place / site, tmp_path / site) for site in SITES)
    config = make_config(place, tmp_path / "c", ends=ends)
    connect(config)
    run = SAERun.open(ends[0])
    coder = run.load_sae(CPU)
    with torch.no_grad():
        coder.b_dec += 1
    run.finish(coder)
    with pytest.raises(CheckpointError, match="was trained anew since the connector"):
        ConnectorRun.open(tmp_path / "c").load_pair(CPU)
    with pytest.raises(ConfigError, match="was trained on another SAE to read, or .* changed"):
        connect(config)
    shutil.rmtree(ends[0])
    with pytest.raises(CheckpointError, match="is not a run"):
        ConnectorRun.open(tmp_path / "c").load_pair(CPU)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"site": "mlp_out.7"}, "harvest --site mlp_out.7"),
        ({"d_in": 9}, "an SAE of 9 dimensions, and mlp_out.0 of .* has 8"),
    ],
    ids=["without the site", "of another width"],
)
def test_a_store_that_does_not_fit_is_refused_before_anything_is_written(
    place, tmp_path, told, words
):
    folder = shutil.copytree(place / SITES[1], tmp_path / "elsewhere")
    run = SAERun.open(folder)
    replace(run, provenance=replace(run.provenance, **told)).write()
    with pytest.raises(ConfigError, match=words):
        connect(make_config(place, tmp_path / "c", ends=(place / SITES[0], folder)))
    assert not (tmp_path / "c").exists()


def test_what_does_not_fit_into_memory_is_refused_with_the_figures(place, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "memory_free", lambda device: 1000)
    with pytest.raises(ConfigError, match=r"needs about .*kB more than the 1kB free on cpu"):
        connect(make_config(place, tmp_path / "c"))


def test_a_sweep_needs_three_matrices_a_member_and_one_for_all(place, tmp_path):
    configs = [make_config(place, tmp_path / f"{l1:g}", l1=l1) for l1 in (0.01, 0.02, 0.03)]
    runs = [blank_connector_run(ActStore.open(config.store), config) for config in configs]
    size = 4 * runs[0].source.d_sae * runs[0].target.d_sae
    assert connector_bytes(runs) - connector_bytes(runs[:1]) == 2 * 3 * size
    averaged = replace(runs[0], config=replace(runs[0].config, ema=0.9))
    assert connector_bytes([averaged]) - connector_bytes(runs[:1]) == size


def test_one_that_diverges_stops_alone(place, tmp_path):
    configs = [make_config(place, tmp_path / name) for name in ("wild", "tame")]
    configs[0] = replace(configs[0], lr=1e30, activation="linear")
    wild, tame = train_all(configs)
    assert isinstance(wild, DataError) and "training diverged" in str(wild)
    assert isinstance(tame, ConnectStep)
    assert "diverged" in json.loads((tmp_path / "wild" / "run.json").read_text())["failure"]


# --- the command line ------------------------------------------------------------------------


@pytest.mark.slow
def test_pairs_of_runs_are_swept_over_and_named_by_their_ends(place, tmp_path, saepipe):
    there, back = (":".join(str(place / site) for site in ends) for ends in (SITES, SITES[::-1]))
    code, _, err = saepipe(
        "train", place / "s.actstore", "--connect", there, "--connect", back, "--out",
        tmp_path / "both", "--tokens", "640", "--batch-size", "64", "--set", "start=random",
    )  # fmt: skip
    assert code == 0, err
    assert says_kind(tmp_path / "both" / "resid_pre.0-mlp_out.0") == "connector"
    assert says_kind(tmp_path / "both" / "mlp_out.0-resid_pre.0") == "connector"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--connect", "a:b", "--k", "3"), "--k means nothing to --connect"),
        (("--connect", "a"), "--connect takes RUN_IN:RUN_OUT, got 'a'"),
        (("--connect", "a:a"), "a connector needs two runs, got a twice"),
        (("--connect", "a:b"), "is not a run"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else " ".join(value),
)
def test_what_cannot_be_connected_is_one_line(place, tmp_path, saepipe, options, words):
    code, _, err = saepipe("train", place / "s.actstore", "--out", tmp_path / "c", *options)
    assert code == 1 and err.count("\n") == 1
    assert words in err


def test_a_connector_does_not_go_on_from_a_checkpoint_of_another(place, tmp_path):
    for name, l1 in (("own", 0.01), ("other", 0.02)):
        connect(make_config(place, tmp_path / name, l1=l1))
        unfinish(tmp_path / name, up_to=15)
    kept = tmp_path / "own/checkpoints/step-000000015"
    shutil.rmtree(kept)
    shutil.copytree(tmp_path / "other/checkpoints" / kept.name, kept)
    with refused(CheckpointError, "state.json is of a run of another configuration"):
        connect(make_config(place, tmp_path / "own", l1=0.01))


def test_a_connector_is_not_used_as_one_of_another_activation(place, tmp_path):
    connect(make_config(place, tmp_path / "c", tokens=128))
    told = json.loads((tmp_path / "c/run.json").read_text())
    told["config"]["activation"] = "linear"
    (tmp_path / "c/run.json").write_text(json.dumps(told))
    with refused(CheckpointError, r"does not fit connector.safetensors \(activation linear"):
        ConnectorRun.open(tmp_path / "c").load_connector(CPU)
