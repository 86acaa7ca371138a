import errno
import json
import os
import shutil

import pytest
import saepipe as sp
import torch

from pipeline.config.architectures import (
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    ReluConfig,
    TiedConfig,
    TopKConfig,
)
from pipeline.config.stages import EvalConfig, FinetuneConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.evaluate.evaluate import evaluate
from pipeline.finetune import fold as fold_module
from pipeline.finetune.fold import fold
from pipeline.finetune.run import FinetunedRun
from pipeline.report.figures import curves_lost, curves_of
from pipeline.runs.listing import list_runs
from pipeline.runs.sae_run import SAERun
from pipeline.sae.gated import Gated
from pipeline.sae.jumprelu import Threshold
from pipeline.sae.sae import SAE, TunedSAE
from tests.helpers.refusals import refused
from tests.helpers.tiny import CTX_LEN, make_model, make_sae, make_text, save_sae
from tests.helpers.tunings import finetune

KINDS = {
    arch.kind: arch
    for arch in (
        ReluConfig(), ReluAprilConfig(), TiedConfig(), GatedConfig(), TopKConfig(k=6),
        BatchTopKConfig(k=6), MatryoshkaConfig(k=6, prefixes=3), JumpReluConfig(),
    )
}  # fmt: skip


def trained_like(kind: str) -> SAE:
    """An SAE whose every number matters: no latent is silent, no threshold or gate at its start."""
    sae, generator = make_sae(arch=KINDS[kind]), torch.Generator().manual_seed(7)
    with torch.no_grad():
        sae.b_enc[::5] = 0.2
        if isinstance(sae.activation, Gated):
            sae.b_enc.zero_()
        for p in sae.activation.parameters():
            if isinstance(sae.activation, Threshold):
                p.uniform_(0.1, 0.9, generator=generator)
            else:
                p.normal_(std=0.3, generator=generator)
    return sae


def tuned_like(kind: str, *, dtype: torch.dtype = torch.float64) -> TunedSAE:
    """Scales above zero, at zero and below it, each with biases of both signs and of none."""
    tuned = TunedSAE(trained_like(kind)).to(dtype)
    with torch.no_grad():
        scales, biases = torch.tensor([1.7, 0.4, 0.0, -0.6, -1.3]), torch.tensor([-0.7, 0.0, 0.9])
        both = torch.cartesian_prod(scales, biases).to(dtype)
        both = both.repeat(-(-tuned.d_sae // len(both)), 1)[: tuned.d_sae]
        wobble = 1 + 0.1 * torch.linspace(-1, 1, tuned.d_sae, dtype=dtype)  # no two rank alike
        tuned.c.copy_(both[:, 0] * wobble)
        tuned.d.copy_(both[:, 1] * wobble)
    return tuned


@pytest.fixture
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return 1.5 * torch.randn(200, 16, generator=generator, dtype=torch.float64) + 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_the_folded_one_computes_what_the_tuned_one_does(kind, x):
    tuned = tuned_like(kind)
    plain, z = tuned.fold(), tuned.encode(x)
    exactly = {"rtol": 1e-11, "atol": 1e-11}
    if kind == "gated":  # its biases are those of its gates and magnitudes, as before
        assert not plain.b_enc.any()
    else:
        torch.testing.assert_close(plain.pre(x), tuned.pre(x), **exactly)
    torch.testing.assert_close(plain.encode(x), z, **exactly)
    assert torch.equal(plain.encode(x) > 0, z > 0)
    torch.testing.assert_close(plain.decode(z), tuned.decode(z), **exactly)
    torch.testing.assert_close(plain(x), tuned(x), **exactly)
    for sign in (tuned.c > 0, tuned.c == 0, tuned.c < 0):
        for side in (tuned.d > 0, tuned.d < 0):
            assert (sign & side).any()
    for sign in (tuned.c > 0, tuned.c < 0):
        assert (z[:, sign] > 0).any()
    assert not torch.allclose(tuned.sae(x), tuned(x))


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_not_moved_folds_to_the_same_bits(kind):
    sae = trained_like(kind)
    plain = TunedSAE(sae).fold()
    for name, value in sae.state_dict().items():
        assert plain.state_dict()[name].numpy().tobytes() == value.numpy().tobytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_only_a_tied_one_becomes_another_architecture(kind):
    sae = trained_like(kind)
    assert TunedSAE(sae).fold().arch == (ReluConfig() if kind == "tied" else sae.arch)
    assert TiedConfig(target=0.1).untied == ReluConfig(target=0.1)
    assert TiedConfig(l0=9, l1=2.0).untied == ReluConfig(l0=9, l1=2.0)


def test_what_was_folded_is_saved_and_opened_as_any_sae(tmp_path, x):
    for kind in KINDS:
        tuned = tuned_like(kind, dtype=torch.float32)
        plain = tuned.fold()
        plain.save_pretrained(tmp_path / kind)
        again = SAE.from_pretrained(tmp_path / kind)
        assert again.arch == plain.arch
        assert torch.equal(again(x.float()), plain(x.float()))


# --- on disk ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.mktemp("text") / "a.txt", n_contexts=40)


@pytest.fixture(scope="module")
def learn(tmp_path_factory, tiny_model, text):
    """A fine-tuning of an SAE of some kind."""

    def learn(kind: str = "relu", **options) -> FinetunedRun:
        folder, arch = tmp_path_factory.mktemp(kind), KINDS[kind]
        run = save_sae(folder / "sae", trained_like(kind), model=tiny_model, arch=arch)
        given = {
            "text": text, "batch_size": 4, "epochs": 1, "steps_per_epoch": 5, "ctx_len": CTX_LEN,
            "heldout_contexts": 4, "lr": 0.2, "device": "cpu",
        }  # fmt: skip
        finetune(FinetuneConfig(run=run, out=folder / "tuned", **(given | options)))
        return FinetunedRun.open(folder / "tuned")

    return learn


@pytest.fixture(scope="module")
def done(learn) -> FinetunedRun:
    """A whole fine-tuning, which nobody changes."""
    return learn()


@pytest.mark.parametrize("kind", ["relu", "tied", "gated", "jumprelu", "batchtopk"])
def test_it_evaluates_as_the_fine_tuning_does(learn, tmp_path, text, kind):
    done = learn(kind)
    run = sp.fold(done.path, out=tmp_path / "plain")
    shared = {"text": text, "tokens": 240, "device": "cpu"}
    tuned, plain = evaluate(EvalConfig(runs=(done.path, run.path), **shared))
    before, after = (
        {name: x for name, x in report.metrics.items() if x is not None}
        for report in (tuned, plain)
    )
    assert len(before) > 10
    assert after == pytest.approx(before, rel=1e-4, abs=1e-5)
    assert (plain.model, plain.site, plain.text) == (tuned.model, tuned.site, tuned.text)
    assert plain.arch == ("relu" if kind == "tied" else kind)
    assert any("folded.json" in note for note in plain.notes)
    assert not any("fitted to" in note for note in plain.notes)


def test_it_is_a_run_of_an_sae(done, tmp_path):
    run = sp.fold(done.path, out=tmp_path / "plain")
    assert isinstance(run, SAERun) and run.finished
    own = {"config": done.run.config, "provenance": done.run.provenance}
    assert run.provenance == own["provenance"]
    assert (run.config.arch, run.config.store) == (own["config"].arch, own["config"].store)
    assert run.config.out == run.path
    given = torch.randn(20, 16)
    torch.testing.assert_close(run.sae(given), done.sae(given), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(SAE.load(run.path / "sae.safetensors")(given), run.sae(given))
    assert sorted(file.name for file in run.path.iterdir()) == [
        "folded.json", "run.json", "sae.safetensors",
    ]  # fmt: skip
    assert not (tmp_path / "plain.partial").exists()
    (listed,) = list_runs(tmp_path)
    assert (listed.kind, listed.state, listed.site) == ("sae", "finished", "mlp_out.1")
    assert "unfinished" not in repr(run)


def test_versions_that_know_no_folding_open_it(done, tmp_path):
    """They refuse a run.json with a key that they do not know."""
    run = sp.fold(done.path, out=tmp_path / "plain")
    trained = json.loads((done.config.run / "run.json").read_text())
    folded = json.loads((run.path / "run.json").read_text())
    assert [*folded] == [*trained]
    assert [*folded["config"]] == [*trained["config"]]
    assert [*folded["store"]] == [*trained["store"]]


def test_it_says_what_it_is_from(done, tmp_path):
    run = sp.fold(done.path, out=tmp_path / "plain")
    told = json.loads((run.path / "folded.json").read_text())
    assert (run.path / told["report"]["run"]).resolve() == done.path
    assert told["finetune"]["ce_finetuned"] == done.report.ce_finetuned
    assert told["sources"]["text_fingerprint"] == done.sources.text_fingerprint != ""
    wanted = (done.run.sha256, done.sha256, run.sha256)
    assert (told["sha256_coder"], told["sha256_tuned"], told["sha256"]) == wanted


def test_it_has_no_curves_and_says_so(done, tmp_path):
    run = sp.fold(done.path, out=tmp_path / "plain")
    assert curves_of(run) is None
    assert curves_lost(run) == "It was folded from a fine-tuning, and has no curves of its own."
    with refused(CheckpointError, "cannot read the curves"):
        run.curves
    with refused(ConfigError, "nothing to draw yet"):
        sp.plot(run)


def test_one_that_was_moved_belongs_where_it_was_fine_tuned(learn, tmp_path, text):
    other = make_model(tmp_path / "other", seed=4)
    done = learn(model=str(other), site="mlp_out.2")
    report = fold(done.path, tmp_path / "plain")
    run = SAERun.open(report.out)
    assert (run.provenance.model, run.provenance.site) == (str(other), "mlp_out.2")
    assert run.provenance.model_fingerprint == done.sources.model_fingerprint != ""
    assert run.sae.site == "mlp_out.2"
    (note,) = report.notes
    assert f"mlp_out.2 of {other} now" in note and "activations of mlp_out.1" in note
    shared = {"text": text, "tokens": 240, "device": "cpu"}
    tuned, plain = evaluate(EvalConfig(runs=(done.path, run.path), **shared))
    assert (plain.model, plain.site) == (tuned.model, tuned.site)
    assert plain.ce_patched == pytest.approx(tuned.ce_patched, rel=1e-5)


def test_the_same_again_is_reused_and_anything_else_refused(done, learn, tmp_path):
    out = tmp_path / "plain"
    first = fold(done.path, out)
    before = (out / "sae.safetensors").stat().st_mtime_ns
    again = fold(done.path, out)
    assert (first.reused, again.reused) == (False, True)
    assert (again.run, again.out, again.arch) == (first.run, first.out, first.arch)
    assert (out / "sae.safetensors").stat().st_mtime_ns == before
    with refused(ConfigError, "was folded from another fine-tuning than"):
        fold(learn(lr=0.1).path, out)
    for there in (done.path, done.config.run):
        with refused(ConfigError, "exists and is not a folded SAE: choose another --out"):
            fold(done.path, there)
    with refused(ConfigError, "choose another `out`"):
        sp.fold(done.path, out=done.path)
    (tmp_path / "file").write_text("mine")
    with refused(ConfigError, "not a folded SAE"):
        fold(done.path, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert not fold(done.path, tmp_path / "empty").reused


def test_an_unfinished_fine_tuning_is_not_written_over(done, tmp_path):
    begun = tmp_path / "plain.partial" / "begun.json"
    begun.parent.mkdir()
    begun.write_text("{}")
    with refused(ConfigError, "is an unfinished fine-tuning"):
        fold(done.path, tmp_path / "plain")
    assert begun.read_text() == "{}"


def test_what_a_kill_left_is_no_hindrance(done, tmp_path):
    left = tmp_path / "plain.partial" / "sae.safetensors"
    left.parent.mkdir()
    left.write_bytes(b"half")
    fold(done.path, tmp_path / "plain")
    assert not left.parent.exists()


def test_a_full_disk_is_one_line_and_leaves_nothing(done, tmp_path, monkeypatch):
    def full(path, document):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(fold_module, "write_json", full)
    with refused(CheckpointError, r"cannot write to .*No space left.*make room"):
        fold(done.path, tmp_path / "new" / "plain")
    assert [*tmp_path.iterdir()] == []


def test_what_cannot_be_folded_is_refused_in_one_line(done, tmp_path):
    out = tmp_path / "plain"
    with refused(CheckpointError, "is a plain SAE, which has nothing to fold"):
        fold(done.config.run, out)
    with refused(CheckpointError, "is not a run: it has no run.json"):
        fold(tmp_path / "absent", out)
    connector = tmp_path / "connector" / "run.json"
    connector.parent.mkdir()
    connector.write_text('{"kind": "connector"}')
    with refused(CheckpointError, "is a connector run, not one of saepipe finetune"):
        fold(connector.parent, out)
    assert not out.exists()


@pytest.mark.parametrize("name", ["run.json", "sae.safetensors", "tuned.safetensors"])
def test_a_damaged_fine_tuning_is_one_line(done, tmp_path, name):
    copied = shutil.copytree(done.path, tmp_path / "tuned")
    for data in ((copied / name).read_bytes()[:-40], b"[" * 100_000):
        (copied / name).write_bytes(data)
        with refused(CheckpointError, "damaged|is not a run"):
            fold(copied, tmp_path / "plain")
    assert {path.name for path in tmp_path.iterdir()} == {"tuned"}


@pytest.mark.parametrize("name", ["run.json", "sae.safetensors", "folded.json"])
def test_a_damaged_folded_one_is_not_reused(done, tmp_path, name):
    out = fold(done.path, tmp_path / "plain").out
    for data in ((out / name).read_bytes()[:-40], b"[" * 100_000):
        (out / name).write_bytes(data)
        with refused(CheckpointError, "damaged"):
            fold(done.path, out)


def test_every_command_takes_it(succeeds, fails, tmp_path):
    """On the embedded model: numbers of the fine-tuning, features, a page, and another tuning."""
    store, sae, tuned, plain = (tmp_path / name for name in ("a.actstore", "sae", "tuned", "plain"))
    succeeds("harvest", "--site", "mlp_out.2", "--tokens", 2000, "--out", store, "--device", "cpu")
    succeeds("train", store, "--k", 8, "--expansion", 1, "--device", "cpu", "--out", sae)
    short = ["--epochs", 1, "--steps-per-epoch", 2, "--batch-size", 2, "--device", "cpu"]
    (tmp_path / "short.toml").write_text("heldout_contexts = 2\nctx_len = 32\n")
    short += ["--config", tmp_path / "short.toml"]
    succeeds("finetune", sae, *short, "--out", tuned)
    assert "has nothing to fold" in fails("fold", sae, "--out", plain)
    out, err = succeeds("fold", tuned, "--out", plain, "--json", "-")
    assert json.loads(out)["arch"] == "topk"
    assert f"{plain} (topk at mlp_out.2)" in err
    assert "complete, reused" in succeeds("fold", tuned, "--out", plain)[0]
    out, _ = succeeds("eval", tuned, plain, "--tokens", 512, "--device", "cpu", "--json", "-")
    before, after = json.loads(out)
    for name in ("ce_patched", "ce_added", "kl", "l0", "explained_variance", "mse", "n_dead"):
        assert after[name] == pytest.approx(before[name], rel=1e-4, abs=1e-5), name
    assert after["density"] == pytest.approx(before["density"], abs=1e-3)
    succeeds("features", plain, "--rows", 2, "--device", "cpu")
    succeeds("report", plain, "--features", 5, "--device", "cpu")
    assert "has no curves of its own" in (plain / "report.html").read_text()
    succeeds("finetune", plain, *short, "--out", tmp_path / "again")
    succeeds("runs", tmp_path)
