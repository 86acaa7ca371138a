import json
import math
import re
from pathlib import Path

import pytest
import torch
import transformers
from torch.nn import functional as F

from pipeline import cross_entropy
from pipeline.archs import TopKConfig
from pipeline.codec import to_json
from pipeline.config import EvalConfig
from pipeline.errors import CheckpointError, ConfigError, DataError, TextError
from pipeline.evaluate.evaluation import evaluate
from pipeline.evaluate.fidelity import Prediction, Reconstruction, loss_recovered
from pipeline.evaluate.figures import save_figures
from pipeline.evaluate.geometry import dead_cosine
from pipeline.evaluate.sparsity import Sparsity
from pipeline.model import LanguageModel
from pipeline.sae.coder import SparseCoder
from pipeline.tokenizer import load_tokenizer
from tests.tiny import CTX_LEN, WIDTH, make_coder, make_model, make_text, save_coder

CPU = torch.device("cpu")
N_CONTEXTS = 14


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("lm") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.mktemp("text") / "a.txt", n_contexts=N_CONTEXTS)


@pytest.fixture
def run_eval(tmp_path, model, text):
    """Saves coders as runs and evaluates them together."""

    def run(*coders: SparseCoder, saved=None, **options):
        runs = tuple(
            save_coder(tmp_path / f"run{i}", coder, **({"model": model} | (saved or {})))
            for i, coder in enumerate(coders)
        )
        options = {"text": text, "tokens": N_CONTEXTS * CTX_LEN, "device": "cpu"} | options
        return evaluate(EvalConfig(runs=runs, **options))

    return run


def identity_coder() -> SparseCoder:
    """`x = relu(x) - relu(-x)`, exactly."""
    coder, eye = make_coder(expansion=2), torch.eye(WIDTH)
    with torch.no_grad():
        coder.W_enc.copy_(torch.cat([eye, -eye], 1))
        coder.W_dec.copy_(torch.cat([eye, -eye]))
        coder.b_enc.zero_()
        coder.b_dec.zero_()
    return coder


def constant_coder(value: torch.Tensor) -> SparseCoder:
    """Reconstructs everything as one vector."""
    coder = make_coder()
    with torch.no_grad():
        coder.W_dec.zero_()
        coder.b_dec.copy_(value)
    return coder


def contexts_of(model, text) -> torch.Tensor:
    ids = load_tokenizer(str(model)).encode([Path(text).read_text()])[0]
    return torch.tensor(ids)[: N_CONTEXTS * CTX_LEN].view(-1, CTX_LEN)


def brute_force(model, text, coder: SparseCoder) -> dict[str, float]:
    """All the keys, in float64, all tokens at once, by hooks and formulas of its own."""
    lm = transformers.GPTNeoXForCausalLM.from_pretrained(model).double().eval()
    mlp = lm.gpt_neox.layers[1].mlp
    tokens = contexts_of(model, text)
    seen: list[torch.Tensor] = []

    def logp(edit=None):
        def hook(module, args, out):
            seen.append(out)
            return edit(out) if edit else None

        handle = mlp.register_forward_hook(hook)
        with torch.no_grad():
            logits = lm(tokens).logits[:, :-1].flatten(0, 1)
        handle.remove()
        return logits - logits.logsumexp(-1, keepdim=True)

    def ce(logp):
        return -logp[torch.arange(len(logp)), tokens[:, 1:].flatten()].mean().item()

    clean = logp()
    x = seen[0].flatten(0, 1)
    w = {name: p.detach().double() for name, p in coder.named_parameters()}
    z = ((x - w["b_dec"]) @ w["W_enc"] + w["b_enc"]).clamp_min(0)
    x_hat = z @ w["W_dec"] + w["b_dec"]
    patched = logp(lambda out: x_hat.view_as(out))
    zero, mean = ce(logp(torch.zeros_like)), ce(logp(lambda out: x.mean(0).expand_as(out)))
    dead = ~(z > 0).any(0)
    centre = w["W_dec"][dead].mean(0)
    cos = (w["W_dec"] @ centre) / (w["W_dec"].norm(dim=1) * centre.norm())
    return {
        "ce_clean": ce(clean),
        "ce_patched": ce(patched),
        "ce_zero": zero,
        "ce_mean": mean,
        "loss_recovered": (zero - ce(patched)) / (zero - ce(clean)),
        "loss_recovered_mean": (mean - ce(patched)) / (mean - ce(clean)),
        "kl": (clean.exp() * (clean - patched)).sum(1).mean().item(),
        "l0": (z > 0).double().sum(1).mean().item(),
        "l1": z.abs().sum(1).mean().item(),
        "explained_variance": (1 - (x - x_hat).pow(2).sum() / (x - x.mean(0)).pow(2).sum()).item(),
        "mse": (x - x_hat).pow(2).sum(1).mean().item(),
        "cosine": ((x * x_hat).sum(1) / x.norm(dim=1) / x_hat.norm(dim=1)).mean().item(),
        "relative_bias": (x_hat.pow(2).sum() / (x * x_hat).sum()).item(),
        "n_dead": int(dead.sum()),
        "frac_dead": dead.double().mean().item(),
        "dead_cosine_mean": cos[dead].mean().item(),
        "alive_cosine_mean": cos[~dead].mean().item(),
    }


def test_every_number_agrees_with_a_plain_float64_computation(run_eval, model, text):
    coder = make_coder()
    (report,) = run_eval(coder, batch_size=3)
    for key, value in brute_force(model, text, coder).items():
        assert getattr(report, key) == pytest.approx(value, rel=1e-5), key
    assert 10 < report.n_dead < coder.d_sae / 2
    assert report.n_tokens == N_CONTEXTS * CTX_LEN
    assert report.n_predictions == N_CONTEXTS * (CTX_LEN - 1)
    assert (report.site, report.arch, report.d_in) == ("mlp_out.1", "relu", WIDTH)
    assert report.d_sae == len(report.density) == 4 * WIDTH


def test_a_perfect_coder_recovers_everything(run_eval):
    (report,) = run_eval(identity_coder())
    assert report.ce_patched == report.ce_clean
    assert report.kl == 0
    assert report.mse == 0
    assert report.loss_recovered == report.loss_recovered_mean == report.explained_variance == 1
    assert report.cosine == pytest.approx(1, rel=1e-6)
    assert report.relative_bias == pytest.approx(1, rel=1e-6)


def test_a_coder_that_says_nothing_is_zero_ablation(run_eval):
    (report,) = run_eval(constant_coder(torch.zeros(WIDTH)))
    assert report.ce_patched == report.ce_zero
    assert report.loss_recovered == 0
    assert report.cosine == 0
    assert report.relative_bias is None


def test_a_coder_that_says_the_mean_is_mean_ablation(run_eval, model, text):
    lm = transformers.GPTNeoXForCausalLM.from_pretrained(model).eval()
    seen: list[torch.Tensor] = []
    lm.gpt_neox.layers[1].mlp.register_forward_hook(lambda m, a, out: seen.append(out))
    with torch.no_grad():
        lm(contexts_of(model, text))
    (report,) = run_eval(constant_coder(seen[0].double().mean((0, 1)).float()))
    assert report.ce_patched == pytest.approx(report.ce_mean, rel=1e-6)
    assert report.explained_variance == pytest.approx(0, abs=1e-6)
    assert abs(report.ce_mean - report.ce_zero) > 1e-4


def test_batches_and_slices_change_no_number(run_eval, monkeypatch, tmp_path):
    coder = make_coder()
    (report,) = run_eval(coder)
    n_rows: list[int] = []
    logits = LanguageModel.logits

    def counted(self, hidden):
        n_rows.append(len(hidden))
        return logits(self, hidden)

    monkeypatch.setattr(LanguageModel, "logits", counted)
    monkeypatch.setattr(cross_entropy, "SLICE_ROWS", 7)
    runs = (tmp_path / "run0",)
    text = report.text
    (sliced,) = evaluate(
        EvalConfig(runs=runs, text=text, tokens=report.n_tokens, batch_size=1, device="cpu")
    )
    assert max(n_rows) == 7
    for key in ("ce_clean", "ce_patched", "ce_zero", "ce_mean", "kl", "mse", "explained_variance"):
        assert getattr(sliced, key) == pytest.approx(getattr(report, key), rel=1e-5), key
    assert sliced.density == report.density


def test_runs_together_give_the_reports_they_give_alone(run_eval, tmp_path):
    coders = make_coder(seed=1), make_coder(seed=2, expansion=2), identity_coder()
    together = run_eval(*coders)
    assert len({report.ce_patched for report in together}) == 3
    for i, report in enumerate(together):
        config = EvalConfig(
            runs=(tmp_path / f"run{i}",), text=report.text, tokens=report.n_tokens, device="cpu"
        )
        assert evaluate(config) == (report,)


def test_runs_of_one_site_share_every_pass_but_their_own(run_eval, monkeypatch):
    calls: list[int] = []
    hidden = LanguageModel.hidden

    def counted(self, tokens):
        calls.append(len(tokens))
        return hidden(self, tokens)

    monkeypatch.setattr(LanguageModel, "hidden", counted)
    run_eval(make_coder(seed=1), make_coder(seed=2), make_coder(seed=3), batch_size=N_CONTEXTS)
    assert len(calls) == 1 + 1 + 2 + 3  # means, clean, zero and mean, one per run


def test_runs_of_several_sites_and_archs_keep_their_order(tmp_path, model, text):
    arch = TopKConfig(k=3)
    runs = (
        save_coder(tmp_path / "a", make_coder(), model=model, site="resid_post.2"),
        save_coder(tmp_path / "b", make_coder(arch=arch), model=model, site="mlp_out.0", arch=arch),
        save_coder(tmp_path / "c", make_coder(), model=model, site="mlp_out.1"),
    )
    config = EvalConfig(runs=runs, text=text, tokens=100, device="cpu")
    reports = evaluate(config)
    assert [report.run for report in reports] == list(runs)
    assert [report.site for report in reports] == ["resid_post.2", "mlp_out.0", "mlp_out.1"]
    assert reports[1].arch == "topk"
    assert reports[1].l0 <= 3
    assert len({report.ce_zero for report in reports}) == 3
    assert len({report.ce_clean for report in reports}) == 1


def test_a_coder_in_another_model_says_so(run_eval, tmp_path, model):
    other = make_model(tmp_path / "other", seed=5)
    (report,) = run_eval(make_coder())
    (moved,) = evaluate(
        EvalConfig(runs=(tmp_path / "run0",), model=str(other), text=report.text, device="cpu")
    )
    assert (moved.model, moved.trained_on_model) == (str(other), str(model))
    assert f"trained on activations of {model}, evaluated in {other}" in moved.notes
    assert not any("evaluated in" in note for note in report.notes)
    assert moved.ce_clean != report.ce_clean


def test_weights_that_changed_since_the_harvest_are_noted(run_eval):
    (report,) = run_eval(make_coder(), saved={"model_fingerprint": "another"})
    assert any("have changed since" in note for note in report.notes)


def test_the_training_text_is_not_called_held_out(run_eval, text):
    (report,) = run_eval(make_coder(), saved={"text": text})
    assert any("not held out" in note for note in report.notes)


def test_the_embedded_text_is_evaluated_on_its_held_out_part(run_eval):
    (report,) = run_eval(make_coder(), saved={"text": "builtin"}, text=None, tokens=50)
    assert report.text == "builtin@heldout"
    assert report.n_tokens == 60
    assert not any("held out" in note for note in report.notes)


def test_a_text_that_ends_early_is_used_up_and_noted(run_eval):
    (report,) = run_eval(make_coder(), tokens=10_000)
    assert report.n_tokens == N_CONTEXTS * CTX_LEN
    assert any("10000 were asked for" in note for note in report.notes)


def test_a_text_without_one_context_is_refused(run_eval, tmp_path):
    (tmp_path / "short.txt").write_text("abc")
    with pytest.raises(TextError, match="one context"):
        run_eval(make_coder(), text=str(tmp_path / "short.txt"))


def test_a_coder_of_another_width_is_refused(run_eval):
    with pytest.raises(ConfigError, match=r"coder of 8 dimensions, but mlp_out.1 .* has 16"):
        run_eval(make_coder(d_in=8))


def test_a_site_beyond_the_model_is_refused(run_eval):
    with pytest.raises(ConfigError, match=r"mlp_out.9 does not exist"):
        run_eval(make_coder(), saved={"site": "mlp_out.9"})


def test_no_run_a_run_twice_and_no_such_run_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="no run to evaluate"):
        evaluate(EvalConfig(runs=()))
    with pytest.raises(ConfigError, match="named twice"):
        evaluate(EvalConfig(runs=(tmp_path, tmp_path)))
    with pytest.raises(CheckpointError, match="is not a run"):
        evaluate(EvalConfig(runs=(tmp_path,)))


def test_a_run_that_does_not_know_its_model_asks_for_it(run_eval):
    with pytest.raises(ConfigError, match="--model"):
        run_eval(make_coder(), saved={"model": ""})


def test_weights_that_are_not_numbers_are_refused(run_eval):
    coder = make_coder()
    with torch.no_grad():
        coder.b_dec[3] = math.nan
    with pytest.raises(DataError, match="run0 are not finite"):
        run_eval(coder)


def test_progress_is_told_up_to_the_end(tmp_path, model, text):
    save_coder(tmp_path / "run", make_coder(), model=model)
    seen = []
    config = EvalConfig(runs=(tmp_path / "run",), text=text, tokens=120, batch_size=4, device="cpu")
    evaluate(config, on_progress=seen.append)
    assert [(p.stage, p.n_done) for p in seen] == [
        (stage, n * CTX_LEN) for stage in ("mean", "losses") for n in (4, 8, 10)
    ]
    assert {p.n_tokens for p in seen} == {120}


def test_a_report_is_json_with_the_promised_keys(run_eval):
    (report,) = run_eval(constant_coder(torch.zeros(WIDTH)))
    document = json.loads(json.dumps(to_json(report), allow_nan=False))
    promised = set(
        re.findall(
            r"\w+",
            """run site arch d_in d_sae n_tokens ce_clean ce_patched ce_zero ce_mean loss_recovered
            loss_recovered_mean kl l0 l1 explained_variance mse cosine relative_bias n_dead
            frac_dead dead_cosine_mean alive_cosine_mean density model text notes""",
        )
    )
    assert not promised - document.keys()
    assert document["relative_bias"] is None


def test_the_dead_cosine_figure_lies_beside_the_run(run_eval, tmp_path):
    (report,) = run_eval(make_coder())
    assert save_figures(report) == (tmp_path / "run0" / "dead_cosine.png",)
    assert (tmp_path / "run0" / "dead_cosine.png").read_bytes().startswith(b"\x89PNG")


def test_reconstruction_sums_do_not_depend_on_how_rows_are_grouped():
    torch.manual_seed(0)
    x, x_hat = torch.randn(30, 5) + 100, torch.randn(30, 5) + 100
    mean = x.double().mean(0)
    grouped = Reconstruction(mean, device=CPU)
    for part in (slice(0, 1), slice(1, 20), slice(20, 30)):
        grouped.add(x[part], x_hat[part])
    xd, xd_hat = x.double(), x_hat.double()
    error, spread = (xd - xd_hat).square().sum(), (xd - mean).square().sum()
    assert grouped.explained_variance == pytest.approx(float(1 - error / spread), rel=1e-6)
    assert grouped.mse == pytest.approx(float(error / 30), rel=1e-6)
    assert grouped.relative_bias == pytest.approx(
        float((xd_hat * xd_hat).sum() / (xd * xd_hat).sum()), rel=1e-6
    )
    expected = F.cosine_similarity(xd, xd_hat).mean().item()
    assert grouped.cosine == pytest.approx(expected, rel=1e-6)


def test_shrinkage_shows_as_a_bias_below_one():
    x = torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    shrunk = Reconstruction(x.double().mean(0), device=CPU)
    shrunk.add(x, 0.8 * x)
    assert shrunk.relative_bias == pytest.approx(0.8, rel=1e-6)


def test_ratios_over_nothing_are_none():
    still = Reconstruction(torch.ones(3, dtype=torch.float64), device=CPU)
    still.add(torch.ones(4, 3), torch.zeros(4, 3))
    assert still.explained_variance is None
    assert still.relative_bias is None
    assert loss_recovered(clean=2.0, patched=2.5, ablated=2.0) is None


def test_loss_recovered_is_one_when_clean_and_zero_when_ablated():
    assert loss_recovered(clean=2.0, patched=2.0, ablated=4.0) == 1
    assert loss_recovered(clean=2.0, patched=4.0, ablated=4.0) == 0
    assert loss_recovered(clean=2.0, patched=2.5, ablated=4.0) == 0.75
    assert loss_recovered(clean=2.0, patched=5.0, ablated=4.0) == -0.5


def test_a_token_weighs_the_same_in_every_batch():
    class Head:
        def logits(self, hidden, /):
            return hidden

    torch.manual_seed(0)
    clean, edited = torch.randn(5, 8, 9), torch.randn(5, 8, 9)
    tokens = torch.randint(9, (5, 8))
    sums = Prediction(["edit", "other"], diverging=["edit"], device=CPU)
    for part in (slice(0, 1), slice(1, 5)):
        named = {"edit": edited[part], "other": clean[part]}
        sums.add(Head(), clean[part], named, tokens[part])
    p, q = clean.double().log_softmax(-1)[:, :-1], edited.double().log_softmax(-1)[:, :-1]
    targets = tokens[:, 1:, None]
    assert sums.n == 35
    assert sums.ce_clean == sums.ce("other") == pytest.approx(-p.gather(2, targets).mean().item())
    assert sums.ce("edit") == pytest.approx(-q.gather(2, targets).mean().item())
    assert sums.kl("edit") == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-6)


def test_sparsity_counts_what_is_above_zero():
    sums = Sparsity(4, device=CPU)
    sums.add(torch.tensor([[1.0, 0.0, 2.0, 0.0]]))
    sums.add(torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]))
    assert sums.l0 == 1.0
    assert sums.l1 == pytest.approx(4.5 / 4)
    assert sums.density.tolist() == [0.75, 0.0, 0.25, 0.0]
    assert sums.dead.tolist() == [False, True, False, True]


def test_dead_cosine_is_against_the_mean_of_the_dead_rows():
    W_dec = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0], [3.0, 0.0]])
    cosine = dead_cosine(W_dec, torch.tensor([True, True, False, False]))
    half = math.sqrt(0.5)
    torch.testing.assert_close(cosine, torch.tensor([half, half, -1.0, half]).double())


def test_without_dead_latents_there_is_no_dead_cosine(run_eval):
    assert dead_cosine(torch.randn(4, 3), torch.zeros(4, dtype=torch.bool)) is None
    coder = make_coder()
    with torch.no_grad():
        coder.b_enc.fill_(100.0)
    (report,) = run_eval(coder)
    assert report.n_dead == 0
    assert report.dead_cosine is report.dead_cosine_mean is report.alive_cosine_mean is None


def test_with_all_latents_dead_there_are_no_living_ones(run_eval):
    coder = make_coder()
    with torch.no_grad():
        coder.b_enc.fill_(-1e5)
    (report,) = run_eval(coder)
    assert report.frac_dead == 1
    assert report.l0 == report.l1 == 0
    assert report.alive_cosine_mean is None
    assert report.dead_cosine_mean is not None
