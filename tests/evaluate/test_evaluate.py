import json
import math
from dataclasses import replace

import pytest
import torch
import transformers

from pipeline.config.architectures import TopKConfig
from pipeline.config.serialization import to_json
from pipeline.config.stages import EvalConfig
from pipeline.errors import CheckpointError, ConfigError, DataError, TextError
from pipeline.evaluate import evaluate as evaluation
from pipeline.evaluate.evaluate import evaluate
from pipeline.lm import cross_entropy
from pipeline.lm.model import LanguageModel
from pipeline.sae.sae import SAE
from tests.helpers.evaluations import N_CONTEXTS
from tests.helpers.plain_eval import assert_numbers_agree, contexts_of, plain_eval
from tests.helpers.tiny import CTX_LEN, WIDTH, identity_sae, make_model, make_sae


@pytest.fixture
def run_eval(evals):
    """Saves coders as runs and evaluates them together."""

    def run(*coders: SAE, saved=None, **options):
        runs = [evals.save(f"run{i}", coder, **saved or {}) for i, coder in enumerate(coders)]
        return evals.reports(*runs, **options)

    return run


def constant_sae(value: torch.Tensor) -> SAE:
    """Reconstructs everything as one vector."""
    coder = make_sae()
    with torch.no_grad():
        coder.W_dec.zero_()
        coder.b_dec.copy_(value)
    return coder


def test_every_number_agrees_with_a_plain_float64_computation(run_eval, tiny_model, tiny_text):
    coder = make_sae()
    (report,) = run_eval(coder, batch_size=3)
    plain = plain_eval(tiny_model, contexts_of(tiny_model, tiny_text, n=N_CONTEXTS), coder)
    numbers = {name: value for name, value in plain.items() if hasattr(report, name)}
    del numbers["inserted"]
    assert_numbers_agree(to_json(report), numbers)
    assert len(numbers) == 33
    assert 10 < report.n_dead < coder.d_sae / 2
    assert 0 < report.n_frequent < coder.d_sae - report.n_dead
    assert report.n_tokens == N_CONTEXTS * CTX_LEN
    assert report.n_predictions == N_CONTEXTS * (CTX_LEN - 1)
    assert (report.site, report.arch, report.d_in) == ("mlp_out.1", "relu", WIDTH)
    assert report.d_sae == len(report.density) == 4 * WIDTH
    assert report.excluded == report.inserted == report.overlaps == ()


def test_a_perfect_coder_recovers_everything(run_eval):
    (report,) = run_eval(identity_sae())
    assert report.ce_patched == report.ce_clean
    assert report.kl == 0
    assert report.mse == 0
    assert report.loss_recovered == report.loss_recovered_mean == report.explained_variance == 1
    assert report.cosine == pytest.approx(1, rel=1e-6)
    assert report.relative_bias == pytest.approx(1, rel=1e-6)


def test_a_coder_that_says_nothing_is_zero_ablation(run_eval):
    (report,) = run_eval(constant_sae(torch.zeros(WIDTH)))
    assert report.ce_patched == report.ce_zero
    assert report.loss_recovered == 0
    assert report.cosine == 0
    assert report.relative_bias is None


def test_a_coder_that_says_the_mean_is_mean_ablation(run_eval, tiny_model, tiny_text):
    lm = transformers.GPTNeoXForCausalLM.from_pretrained(tiny_model).eval()
    seen: list[torch.Tensor] = []
    lm.gpt_neox.layers[1].mlp.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        lm(contexts_of(tiny_model, tiny_text, n=N_CONTEXTS))
    (report,) = run_eval(constant_sae(seen[0].double().mean((0, 1)).float()))
    assert report.ce_patched == pytest.approx(report.ce_mean, rel=1e-6)
    assert report.explained_variance == pytest.approx(0, abs=1e-6)
    assert abs(report.ce_mean - report.ce_zero) > 1e-4


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


def test_runs_together_give_the_reports_they_give_alone(evals, run_eval):
    together = run_eval(make_sae(seed=1), make_sae(seed=2, expansion=2), identity_sae())
    assert len({report.ce_patched for report in together}) == 3
    for report in together:
        assert evals.reports(report.run) == (replace(report, overlaps=()),)


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


def test_runs_of_one_site_share_every_pass_but_their_own(run_eval, passes):
    coders = [make_sae(seed=seed) for seed in (1, 2, 3)]
    _, n = passes(lambda: run_eval(*coders, batch_size=N_CONTEXTS))
    assert n == 1 + 1 + 2 + 3  # means, clean, zero and mean, one per run


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
    assert reports[1].arch == "topk"
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
    ("d_in", "saved", "message"),
    [
        (8, {}, r"SAE of 8 dimensions, but mlp_out.1 .* has 16"),
        (WIDTH, {"site": "mlp_out.9"}, r"mlp_out.9 does not exist"),
        (WIDTH, {"model": ""}, "--model"),
    ],
    ids=["width", "site", "model"],
)
def test_a_run_that_does_not_fit_is_refused(run_eval, d_in, saved, message):
    with pytest.raises(ConfigError, match=message):
        run_eval(make_sae(d_in=d_in), saved=saved)


def test_no_run_a_run_twice_and_no_such_run_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run to evaluate"):
        evaluate(EvalConfig(runs=()))
    with pytest.raises(ConfigError, match="named twice"):
        evaluate(EvalConfig(runs=(tmp_path, tmp_path)))
    with pytest.raises(CheckpointError, match="is not a run"):
        evaluate(EvalConfig(runs=(tmp_path,)))


def test_weights_that_are_not_numbers_are_refused(run_eval):
    coder = make_sae()
    with torch.no_grad():
        coder.b_dec[3] = math.nan
    with pytest.raises(DataError, match="run0 are not finite"):
        run_eval(coder)


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
    with torch.no_grad():
        coder.b_enc.fill_(100.0)
    (report,) = run_eval(coder)
    assert report.n_dead == 0
    assert report.dead_cosine is report.dead_cosine_mean is report.alive_cosine_mean is None


def test_with_all_latents_dead_there_are_no_living_ones(run_eval):
    coder = make_sae()
    with torch.no_grad():
        coder.b_enc.fill_(-1e5)
    (report,) = run_eval(coder)
    assert report.frac_dead == 1
    assert report.l0 == report.l1 == 0
    assert report.alive_cosine_mean is None
    assert report.dead_cosine_mean is not None
    assert report.l0_quantiles == (0, 0, 0, 0, 0)
    assert report.n_rare == report.n_dead == len(report.density)
    assert report.n_frequent == 0
    json.dumps(to_json(report), allow_nan=False)
