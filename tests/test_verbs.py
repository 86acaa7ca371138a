"""The verbs of `import saepipe`: what they take, what they leave, and how they refuse."""

from dataclasses import replace
from inspect import signature
from pathlib import Path

import numpy as np
import pytest
import torch

from actstore.errors import StoreError
from actstore.reader import ActStore
from pipeline import verbs
from pipeline.config.architectures import TopKConfig
from pipeline.config.defaults import settled
from pipeline.config.stages import HarvestConfig
from pipeline.config.training import TrainConfig
from pipeline.connect.reading.values import Reading
from pipeline.errors import CheckpointError, ConfigError, PipelineError
from pipeline.evaluate.report import load_report
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import SAE
from pipeline.terminal.options import as_typed
from tests.helpers.crashing import files_up_to
from tests.helpers.refusals import refused

SMALL = {"arch": "topk", "k": 4, "expansion": 2, "batch_size": 50, "log_every": 1, "device": "cpu"}


@pytest.fixture
def store(make_store) -> Path:
    return make_store()


def test_keywords_make_the_run_that_its_config_makes(store, tmp_path):
    steps, seen = [], []
    run = verbs.train(
        store,
        out=tmp_path / "a",
        tokens="200",
        on_step=steps.append,
        on_progress=seen.append,
        **SMALL,
    )
    config = TrainConfig(
        store=store.resolve(), out=(tmp_path / "a").resolve(), arch=TopKConfig(k=4), expansion=2,
        batch_size=50, log_every=1, device="cpu", tokens=200, site="mlp_out.1",
    )  # fmt: skip
    widths = {"d_in": run.provenance.d_in, "d_sae": run.d_sae}
    assert run.config == settled(config, **widths, n_rows=run.provenance.n_rows)
    assert [report.step for report in steps] == [1, 2, 3, 4]
    assert [(p.stage, p.done, p.total, p.unit) for p in seen] == [
        ("train", n, 200, "rows") for n in (50, 100, 150, 200)
    ]
    again = verbs.train(replace(config, out=tmp_path / "b"))
    for name, weights in run.sae.state_dict().items():
        assert torch.equal(weights, again.sae.state_dict()[name])
    other = verbs.train(config, out=tmp_path / "c", k=2, tokens=np.int64(50))
    assert (other.config.arch, other.config.tokens) == (TopKConfig(k=2), 50)


def test_a_run_tells_what_became_of_it(store, tmp_path):
    run = verbs.train(str(store), out=str(tmp_path / "a"), **SMALL)
    assert run.metrics == run.curves[-1]
    assert run.metrics["step"] == 4 and run.metrics["l0"] == 4
    assert list(run.to_frame()["step"]) == [1, 2, 3, 4]
    assert isinstance(run.sae, SAE) and run.sae is run.sae
    words = repr(run)
    assert words.startswith(f"SAERun({tmp_path}/a: topk k=4 at mlp_out.1, 32 features, L0 4, expl")
    (tmp_path / "a" / "metrics.jsonl").unlink()
    assert repr(run).endswith("32 features)")
    with pytest.raises(CheckpointError, match="metrics.jsonl"):
        run.metrics


@pytest.mark.parametrize("kind", [str, Path, SAERun.open])
def test_a_run_is_its_path(store, tmp_path, kind):
    verbs.train(ActStore.open(store), out=tmp_path / "a", **SMALL)
    run = kind(tmp_path / "a")
    assert SAE.from_pretrained(run, device="auto").d_sae == 32
    assert SAERun.open(run).path == tmp_path / "a"
    found = verbs.features(run, n_top=2, device="cpu")
    assert found.run == (tmp_path / "a").resolve() and len(found) == 32


def test_lists_make_a_sweep_and_nothing_else_does(store, tmp_path):
    runs = verbs.sweep(store, out=tmp_path / "s", **{**SMALL, "k": [2, 4], "seed": range(2)})
    members = [(run.config.arch.k, run.config.seed) for run in runs]
    assert members == [(2, 0), (2, 1), (4, 0), (4, 1)]
    made = {path.name for path in (tmp_path / "s").glob("sweep.*")}
    assert made == {"sweep.json", "sweep.csv"}
    with pytest.raises(ConfigError, match="train makes one run, and these settings 2.*sweep"):
        verbs.train(store, out=tmp_path / "t", **{**SMALL, "k": [2, 4]})
    assert not (tmp_path / "t").exists()


def test_connectors_are_trained_by_keywords_too(make_store, tmp_path):
    store = make_store(widths={"mlp_out.1": 16, "resid.0": 16})
    ends = [
        verbs.train(store, site=site, out=tmp_path / site, **SMALL)
        for site in ("mlp_out.1", "resid.0")
    ]
    run = verbs.connect(store, ends=ends, out=tmp_path / "c", batch_size=50, log_every=1)
    assert [end.run for end in (run.source, run.target)] == [end.path for end in ends]
    assert run.metrics["step"] == 4
    reading = verbs.features(run, tokens=200, device="cpu")
    assert isinstance(reading, Reading) and reading.n_tokens == 200
    assert repr(run) == f"ConnectorRun({run.path}: {ends[0].path} to {ends[1].path}, l1=0.01)"
    assert repr(reading).startswith(f"Reading({run.path}: {len(reading.equations)} equations, ")
    assert len(repr(reading)) < len(str(run.path)) + 120


@pytest.mark.slow
def test_harvest_evaluate_and_report(tiny_model, tiny_text, tmp_path):
    out, seen = tmp_path / "a.actstore", []
    what = {"model": tiny_model, "text": tiny_text, "sites": "mlp_out.1", "ctx_len": 12}
    summary = verbs.harvest(out=out, tokens="1k", on_progress=seen.append, device="cpu", **what)
    n = f"{summary.n_rows:,}"
    assert repr(summary) == f"HarvestSummary({out}: {n} rows a site, {n} of them written now)"
    assert summary.store == out and seen[-1].done == summary.n_rows == ActStore.open(out).n_rows
    assert verbs.harvest(HarvestConfig(out=out, **what), tokens=1_000).reused
    runs = verbs.sweep(out, out=tmp_path / "s", **{**SMALL, "k": [2, 4]})
    seen.clear()
    told = {"text": tiny_text, "tokens": 240, "n_bootstrap": 9, "device": torch.device("cpu")}
    one = verbs.evaluate(str(runs[0].path), on_progress=seen.append, **told)
    assert {(p.stage, p.unit) for p in seen} == {("mean", "tokens"), ("losses", "tokens")}
    assert load_report(runs[0].path).l0 == one.l0 == 2
    several = verbs.evaluate(runs, **told)
    assert [report.l0 for report in several] == [2, 4]
    assert (tmp_path / "s" / "eval.csv").exists()
    frame = one.to_frame()
    assert (len(frame), frame["l0"][0], frame["run"][0]) == (1, 2, str(runs[0].path))
    assert repr(one).startswith(f"EvalReport({runs[0].path}: topk")
    assert "L0 2, " in repr(one)
    page = verbs.report(runs, n_features=3).path
    assert page == tmp_path / "s" / "report.html" and page.exists()
    assert (runs[1].path / "features" / "features.json").exists()


def test_fine_tuning_takes_keywords(tiny_text, tmp_path, evals):
    run = evals.save("sae")
    with torch.inference_mode():  # where nothing could be learned
        sae = SAE.from_pretrained(run)
        report = verbs.finetune(
            run, text=tiny_text, out=tmp_path / "tuned", epochs=1, steps_per_epoch=2, ctx_len=12,
            batch_size=2, heldout_contexts=4, device="cpu",
        )  # fmt: skip
    sae(torch.ones(1, sae.d_in)).sum().backward()
    assert sae.W_dec.grad is not None and sae.W_dec.dtype == torch.float32
    assert report.n_steps == 2
    assert repr(report).startswith(f"FinetuneReport({report.out}: loss the model alone ")


REFUSED = [
    (lambda s, o: verbs.train(s, out=o, lrr=1), "train has no setting 'lrr': did you mean 'lr'"),
    (lambda s, o: verbs.train(s, out=o, kk=1), "train has no setting 'kk': did you mean 'k'"),
    (lambda s, o: verbs.train(s), "train lacks the setting 'out'"),
    (lambda s, o: verbs.harvest(), "harvest lacks the setting 'out'"),
    (lambda s, o: verbs.harvest(out=o, tokens="many"), "harvest.tokens: expected a number like"),
    (lambda s, o: verbs.harvest(out=o, device="gpu"), "harvest.device must be one of auto, cpu"),
    (lambda s, o: verbs.evaluate(o), "is not a run: it has no run.json"),
    (lambda s, o: verbs.evaluate(o, k=1), "evaluate has no setting 'k'"),
    (lambda s, o: verbs.features(o), "is not a run: it has no run.json"),
    (lambda s, o: verbs.features(s, n_top=0), "n_top must be positive, got 0"),
    (lambda s, o: verbs.report([o], out=s), "is a folder, a report is one file"),
    (lambda s, o: verbs.train(s, out=None), "train lacks the setting 'out'"),
    (lambda s, o: verbs.train(s, out=5), "train.out must be a path, got 5"),
    (lambda s, o: verbs.train(s, out=s / "run"), "run lies inside the store it learns from"),
    (lambda s, o: verbs.report([]), "there is no run to show"),
    (lambda s, o: verbs.train(s, out=o, arch="topkk", k=3), "'topkk': did you mean 'topk'"),
    (lambda s, o: verbs.finetune(o), "finetune lacks the setting 'out'"),
]


@pytest.mark.parametrize(("ask", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_cannot_be_is_one_line(store, tmp_path, ask, said):
    with refused(PipelineError, said):
        ask(store, tmp_path / "out")


@pytest.mark.parametrize(
    ("keywords", "options"),
    [
        ({"l1": 3}, ["--l1", 3]),
        ({"arch": "topk", "k": 99}, ["--arch", "topk", "--k", 99]),
        ({"arch": "topp"}, ["--arch", "topp"]),
        ({"site": "mlp_out.7"}, ["--site", "mlp_out.7"]),
        ({"lr": -1.0}, ["--lr", "-1"]),
    ],
)
def test_errors_are_those_of_the_command_line(store, tmp_path, fails, keywords, options):
    with pytest.raises(PipelineError) as caught:
        verbs.train(store, out=tmp_path / "a", **keywords)
    assert (
        fails("train", store, "--out", tmp_path / "a", *options)
        == f"error: {as_typed(str(caught.value))}"
    )
    assert " --" not in str(caught.value)


def test_a_store_that_is_not_there_is_a_store_error(tmp_path):
    with pytest.raises(StoreError, match="there is no activation store at"):
        verbs.train(tmp_path / "none", out=tmp_path / "a", **SMALL)


def test_signatures_and_help_name_every_setting():
    taken = signature(verbs.harvest).parameters
    assert list(taken)[:3] == ["config", "out", "model"] and list(taken)[-1] == "on_progress"
    assert taken["tokens"].default == 1_000_000
    assert "tokens = 1000000: Rows to store per site; rounded up to whole contexts." in (
        verbs.harvest.__doc__
    )
    assert list(signature(verbs.train).parameters)[:4] == ["store", "out", "site", "arch"]


def test_a_full_disk_is_told_where_nothing_else_knows_of_it(store, tmp_path):
    """The very first file of a run, of which nobody takes care but the verb."""
    with (
        files_up_to(100),
        refused(CheckpointError, r"run.json: File too large \([\d,]+ bytes\): make room there"),
    ):
        verbs.train(store, out=tmp_path / "a", **SMALL)
    assert verbs.train(store, out=tmp_path / "a", **SMALL).finished
