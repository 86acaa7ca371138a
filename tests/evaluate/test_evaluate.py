import json
import math
from dataclasses import replace

import pytest
import saepipe as sp
import torch

from pipeline.config.architectures import TopKConfig
from pipeline.config.serialization import to_json
from pipeline.config.stages import EvalConfig
from pipeline.errors import CheckpointError, ConfigError, DataError, TextError
from pipeline.evaluate import evaluate as evaluation
from pipeline.evaluate.evaluate import evaluate
from pipeline.evaluate.metrics import METRICS
from pipeline.lm import cross_entropy
from pipeline.lm.hub import ModelFiles
from pipeline.lm.model import LanguageModel
from pipeline.runs.sweep import SweepDocument
from pipeline.sae.sae import SAE
from pipeline.terminal import commands
from pipeline.terminal.screen import Screen
from tests.helpers.evaluations import N_CONTEXTS
from tests.helpers.refusals import may_only_be_read, refused
from tests.helpers.tiny import CTX_LEN, EOS, WIDTH, identity_sae, make_model, make_sae


@pytest.fixture
def run_eval(evals):
    """Saves coders as runs and evaluates them together."""

    def run(*coders: SAE, saved=None, **options):
        runs = [evals.save(f"run{i}", coder, **saved or {}) for i, coder in enumerate(coders)]
        return evals.reports(*runs, **options)

    return run


def test_a_perfect_coder_recovers_everything_and_one_that_says_nothing_is_zero_ablation(run_eval):
    mute = make_sae()
    for p in (mute.W_dec, mute.b_dec):
        torch.nn.init.zeros_(p)
    perfect, nothing = run_eval(identity_sae(), mute)
    assert perfect.ce_patched == perfect.ce_clean
    assert perfect.kl == perfect.mse == 0
    assert perfect.loss_recovered == perfect.loss_recovered_mean == perfect.explained_variance == 1
    assert perfect.cosine == pytest.approx(1, rel=1e-6)
    assert perfect.relative_bias == pytest.approx(1, rel=1e-6)
    assert nothing.ce_patched == nothing.ce_zero
    assert nothing.loss_recovered == nothing.cosine == 0
    assert nothing.relative_bias is None


def test_batches_and_slices_change_no_number(evals, monkeypatch):
    run = evals.save()
    (report,) = evals.reports(run)
    n_rows: list[int] = []
    logits = LanguageModel.logits

    def counted(self, hidden):
        n_rows.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(LanguageModel, "logits", counted)
    monkeypatch.setattr(cross_entropy, "CPU_ROWS", 7)
    (sliced,) = evals.reports(run, batch_size=1)
    assert max(n_rows) == 7
    for key in ("ce_clean", "ce_patched", "ce_zero", "ce_mean", "kl", "mse", "explained_variance"):
        assert getattr(sliced, key) == pytest.approx(getattr(report, key), rel=1e-5), key
    assert sliced.density == report.density


def test_each_run_says_how_much_of_it_every_other_as_wide_has_found(evals, run_eval, tmp_path):
    coders = make_sae(seed=1), make_sae(seed=2, expansion=2)
    other_model = make_model(tmp_path / "wide", width=2 * WIDTH)
    wide = make_sae(seed=3, d_in=2 * WIDTH)
    third = evals.save("wide_run", wide, model=other_model, text="other")
    one, two = run_eval(*coders)
    (first,), (second,) = one.overlaps, two.overlaps
    assert (first.run, second.run) == (two.run, one.run)
    a, b = (coder.W_dec.detach().double() for coder in coders)
    cosines = (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).T
    assert first.mmcs == pytest.approx(cosines.max(1).values.mean().item(), rel=1e-6)
    assert second.mmcs == pytest.approx(cosines.max(0).values.mean().item(), rel=1e-6)
    assert [report.overlaps for report in evals.reports(one.run, third, tokens=50)] == [(), ()]


def test_many_runs_are_not_compared_each_with_each(run_eval, monkeypatch):
    monkeypatch.setattr(evaluation, "COMPARED", 1)
    assert [report.overlaps for report in run_eval(make_sae(seed=1), make_sae(seed=2))] == [
        (), (),
    ]  # fmt: skip


@pytest.mark.parametrize(("n_runs", "layers"), [(3, ()), (1, (0, 1, 2))])
def test_runs_and_layers_share_every_pass_but_their_own(run_eval, passes, n_runs, layers):
    coders = [make_sae(seed=seed) for seed in range(n_runs)]
    _, n = passes(lambda: run_eval(*coders, layers=layers, batch_size=N_CONTEXTS))
    assert n == 1 + 1 + 2 + 3  # means, clean, zero and mean, one per run and layer


def test_asking_for_layers_changes_no_other_number(evals):
    run = evals.save()
    (without,), (with_layers,) = evals.reports(run), evals.reports(run, layers=(0, 1, 2))
    assert replace(with_layers, inserted=()) == without


def test_contexts_whose_loss_does_not_rise_are_not_among_the_worst(evals, run_eval):
    nothing, everything = run_eval(identity_sae(), make_sae(), n_worst=100)
    assert nothing.worst == ()
    assert 5 < len(everything.worst) <= N_CONTEXTS
    assert all(worst.ce_patched > worst.ce_clean for worst in everything.worst)
    assert evals.reports(everything.run, n_worst=0)[0].worst == ()


def test_intervals_of_a_report_surround_its_metrics_and_follow_the_seed(evals):
    run = evals.save()
    (report,), (other,) = evals.reports(run), evals.reports(run, seed=1)
    headline = {metric.name for metric in METRICS.values() if metric.main} - {"frac_dead"}
    headline -= {"loss_recovered_mean"}  # which some of the draws do not have: its mean is as good
    assert headline < {interval.metric for interval in report.intervals}
    for interval in report.intervals:
        assert interval.low < getattr(report, interval.metric) < interval.high, interval
    assert other.intervals != report.intervals
    assert other.ce_patched == report.ce_patched


def test_runs_of_several_sites_and_archs_keep_their_order(evals):
    arch = TopKConfig(k=3)
    runs = (
        evals.save("a", site="resid_post.2"),
        evals.save("b", make_sae(arch=arch), site="mlp_out.0", arch=arch),
        evals.save("c", site="mlp_out.1"),
    )
    reports = evals.reports(*runs, tokens=100, layers=(0, 2))
    assert [report.run for report in reports] == list(runs)
    assert [report.site for report in reports] == ["resid_post.2", "mlp_out.0", "mlp_out.1"]
    assert [report.arch for report in reports] == ["relu", "topk", "relu"]
    assert reports[1].l0 <= 3
    assert len({report.ce_zero for report in reports}) == 3
    assert len({report.ce_clean for report in reports}) == 1
    inserted = [[found.site for found in report.inserted] for report in reports]
    assert inserted == [[f"{report.site[:-1]}{layer}" for layer in "02"] for report in reports]


def test_a_coder_in_another_model_says_so(evals, tmp_path, tiny_model):
    other = make_model(tmp_path / "other", seed=5)
    run = evals.save()
    (report,), (moved,) = evals.reports(run), evals.reports(run, model=str(other))
    assert (moved.model, moved.trained_on_model) == (str(other), str(tiny_model))
    assert f"trained on activations of {tiny_model}, evaluated in {other}" in moved.notes
    assert not any("evaluated in" in note for note in report.notes)
    assert moved.ce_clean != report.ce_clean


@pytest.mark.parametrize(
    ("saved", "options", "note"),
    [
        ({"model_fingerprint": "another"}, {}, "have changed since"),
        ({"text": "the text"}, {}, "not held out"),
        ({}, {"tokens": 10_000}, "10000 were asked for"),
    ],
    ids=["weights", "text", "tokens"],
)
def test_what_makes_numbers_less_comparable_is_noted(run_eval, tiny_text, saved, options, note):
    trained_on = {"text": tiny_text} if "text" in saved else {}
    (report,) = run_eval(make_sae(), saved=saved | trained_on, **options)
    assert any(note in told for told in report.notes)
    assert report.n_tokens == N_CONTEXTS * CTX_LEN


def test_weights_that_an_earlier_version_told_of_have_not_changed(run_eval, tiny_model):
    stored = ModelFiles(str(tiny_model)).fingerprint_like("sha256:")
    (report,) = run_eval(make_sae(), saved={"model_fingerprint": stored})
    assert not any("have changed" in told for told in report.notes)


def test_the_embedded_text_is_evaluated_on_its_held_out_part(run_eval):
    (report,) = run_eval(make_sae(), saved={"text": "builtin"}, text=None, tokens=50)
    assert report.text == "builtin@heldout"
    assert report.n_tokens == 60
    assert not any("held out" in note for note in report.notes)


def test_a_text_without_one_context_is_refused(run_eval, tmp_path):
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(TextError, match="one context"):
        run_eval(make_sae(), text=str(tmp_path / "short.txt"))


@pytest.mark.parametrize(
    ("read", "n_tokens"),
    [
        ({}, 40),  # a store that says nothing parsed special tokens
        ({"special_tokens": "literal"}, 40 * (1 + len(EOS)) // 2),
        ({"special_tokens": "parse", "documents": "separate"}, 0),
    ],
    ids=["unsaid", "literal", "separate"],
)
def test_a_text_is_read_as_that_of_the_store_was(run_eval, tmp_path, read, n_tokens):
    text = tmp_path / "marks.txt"
    text.write_text(f"a{EOS}" * 20)
    options = {"text": str(text), "tokens": 10**4}
    if not n_tokens:
        with pytest.raises(TextError, match="no document of .* is as long as a context of 12"):
            run_eval(make_sae(), saved=read, **options)
        return
    (report,) = run_eval(make_sae(), saved=read, **options)
    assert n_tokens - CTX_LEN < report.n_tokens <= n_tokens + 1


@pytest.mark.parametrize(
    ("d_in", "saved", "options", "message"),
    [
        (8, {}, {}, r"SAE of 8 dimensions, but mlp_out.1 .* has 16"),
        (WIDTH, {"site": "mlp_out.9"}, {}, r"mlp_out.9 does not exist"),
        (WIDTH, {"model": ""}, {}, "--model"),
        (WIDTH, {}, {"layers": (0, 3)}, r"mlp_out\.3 does not exist: .* has layers 0 to 2"),
    ],
    ids=["width", "site", "model", "layer"],
)
def test_a_run_that_does_not_fit_is_refused(run_eval, d_in, saved, options, message):
    with pytest.raises(ConfigError, match=message):
        run_eval(make_sae(d_in=d_in), saved=saved, **options)


def test_no_run_a_run_twice_and_no_such_run_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run to evaluate"):
        evaluate(EvalConfig(runs=()))
    with pytest.raises(ConfigError, match="named twice"):
        evaluate(EvalConfig(runs=(tmp_path, tmp_path)))
    with pytest.raises(CheckpointError, match="is not a run"):
        evaluate(EvalConfig(runs=(tmp_path,)))


def test_the_command_tells_that_a_larger_evaluation_is_kept_beside_a_smaller(evals, capsys):
    run, text = evals.save(), evals.text
    told = f"{run} on 120 tokens of {text} is kept beside this one, on 60 of {text}"
    for tokens, n in ((60, 0), (120, 0), (60, 1)):
        config = EvalConfig(
            runs=(run,), text=evals.text, tokens=tokens, device="cpu", n_bootstrap=0
        )
        commands.run_eval(config, screen=Screen())
        assert capsys.readouterr().out.count(told) == n


def test_a_sweep_is_evaluated_as_its_runs_are(evals):
    runs = [evals.save(f"sweep/seed={i}", make_sae(seed=i)) for i in (1, 0)]
    SweepDocument(members=tuple(run.name for run in runs)).write(evals.folder / "sweep")
    told = {"text": evals.text, "tokens": 120, "device": "cpu", "n_bootstrap": 0}
    found = sp.evaluate(evals.folder / "sweep", **told)
    assert [report.run for report in found] == runs
    assert (evals.folder / "sweep" / "eval.csv").exists()
    assert sp.evaluate(runs[0], **told).run == runs[0]


def test_weights_that_are_not_numbers_are_refused(run_eval):
    coder = make_sae()
    torch.nn.init.constant_(coder.b_dec[3:4], math.nan)
    with pytest.raises(DataError, match="run0 are not finite"):
        run_eval(coder)


def test_a_run_that_may_only_be_read_is_refused_before_the_pass(evals, monkeypatch):
    runs = [evals.save(name) for name in ("a", "b")]
    may_only_be_read(runs[1], monkeypatch)
    with refused(ConfigError, rf"denied\), where its evaluation .* type cp -r {runs[1]} COPY"):
        evals.reports(*runs, model="nowhere")


def test_a_table_that_cannot_be_written_is_told_before_the_pass(evals, monkeypatch):
    runs = [evals.save(name) for name in ("a", "b")]
    may_only_be_read(evals.folder, monkeypatch)
    with refused(ConfigError, rf"{evals.folder} cannot be .*table .*: choose another --out"):
        evals.reports(*runs, model="nowhere")


def test_progress_is_told_up_to_the_end(evals, tiny_text):
    seen = []
    config = EvalConfig(runs=(evals.save(),), text=tiny_text, tokens=120, batch_size=4)
    evaluate(config, on_progress=seen.append)
    assert [(p.stage, p.done) for p in seen] == [
        (stage, n * CTX_LEN) for stage in ("mean", "losses") for n in (4, 8, 10)
    ]
    assert {(p.total, p.unit) for p in seen} == {(120, "tokens")}


def test_without_dead_latents_there_is_no_dead_cosine(run_eval):
    coder = make_sae()
    torch.nn.init.constant_(coder.b_enc, 100.0)
    (report,) = run_eval(coder)
    assert report.n_dead == 0
    assert report.dead_cosine is report.dead_cosine_mean is report.alive_cosine_mean is None
    assert report.dead_cosine_others is report.dead_cosine_chance is None


def test_with_all_latents_dead_there_are_no_living_ones(run_eval):
    coder = make_sae()
    torch.nn.init.constant_(coder.b_enc, -1e5)
    (report,) = run_eval(coder)
    assert report.frac_dead == 1
    assert report.l0 == report.l1 == 0
    assert report.alive_cosine_mean is None
    assert report.dead_cosine_mean is not None
    assert report.dead_cosine_others is not None and report.dead_cosine_chance is None
    assert report.l0_quantiles == (0, 0, 0, 0, 0)
    assert report.n_rare == report.n_dead == len(report.density)
    assert report.n_frequent == 0
    json.dumps(to_json(report), allow_nan=False)
