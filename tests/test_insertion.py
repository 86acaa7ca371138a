import numpy as np
import pytest
import torch

from pipeline.archs import TopKConfig
from pipeline.config import EvalConfig
from pipeline.errors import ConfigError
from pipeline.evaluate.evaluation import evaluate
from pipeline.model import LanguageModel
from pipeline.tokenizer import load_tokenizer
from tests.plain_eval import contexts_of, plain_eval
from tests.tiny import CTX_LEN, WIDTH, make_coder, make_model, make_text, save_coder

N_CONTEXTS = 14


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("lm") / "model")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return make_text(tmp_path_factory.mktemp("text") / "a.txt", n_contexts=N_CONTEXTS)


@pytest.fixture(scope="module")
def plain(model, text):
    return plain_eval(model, contexts_of(model, text, n=N_CONTEXTS), make_coder())


@pytest.fixture
def run(tmp_path, model):
    return save_coder(tmp_path / "run", make_coder(), model=model)


@pytest.fixture
def eval_runs(text):
    def run(*runs, **options):
        options = {"text": text, "tokens": N_CONTEXTS * CTX_LEN, "device": "cpu"} | options
        return evaluate(EvalConfig(runs=runs, n_bootstrap=30, **options))

    return run


def test_a_coder_in_each_layer_costs_what_a_plain_computation_says(run, eval_runs, plain):
    (report,) = eval_runs(run, layers=(2, 0, 1, 0), batch_size=5)
    assert [found.site for found in report.inserted] == ["mlp_out.2", "mlp_out.0", "mlp_out.1"]
    expected = dict(plain["inserted"])
    for found in report.inserted:
        assert found.ce_patched == pytest.approx(expected[found.site], rel=1e-5)
        added = expected[found.site] - plain["ce_clean"]
        assert found.added == pytest.approx(added, rel=1e-4)
    assert report.inserted[2].ce_patched == report.ce_patched


def test_asking_for_layers_changes_no_other_number(run, eval_runs):
    (without,), (with_layers,) = eval_runs(run), eval_runs(run, layers=(0, 1, 2))
    for name in vars(without).keys() - {"inserted"}:
        assert getattr(with_layers, name) == getattr(without, name), name


def test_the_text_is_read_once_for_all_layers(run, eval_runs, monkeypatch):
    calls: list[int] = []
    hidden = LanguageModel.hidden

    def counted(self, tokens):
        calls.append(len(tokens))
        return hidden(self, tokens)

    monkeypatch.setattr(LanguageModel, "hidden", counted)
    eval_runs(run, layers=(0, 1, 2), batch_size=N_CONTEXTS)
    assert len(calls) == 1 + 1 + 2 + 3  # means, clean, ablations, one for each layer


def test_each_run_goes_to_its_own_kind_of_site(tmp_path, model, eval_runs):
    arch = TopKConfig(k=3)
    runs = (
        save_coder(tmp_path / "a", make_coder(), model=model, site="resid_post.2"),
        save_coder(tmp_path / "b", make_coder(arch=arch), model=model, site="mlp_out.0", arch=arch),
    )
    one, two = eval_runs(*runs, layers=(0, 2))
    assert [found.site for found in one.inserted] == ["resid_post.0", "resid_post.2"]
    assert [found.site for found in two.inserted] == ["mlp_out.0", "mlp_out.2"]
    assert len({found.ce_patched for found in (*one.inserted, *two.inserted)}) == 4


def test_a_layer_the_model_lacks_names_those_it_has(run, eval_runs):
    with pytest.raises(ConfigError, match=r"mlp_out\.3 does not exist: .* has layers 0 to 2"):
        eval_runs(run, layers=(0, 3))


def test_the_worst_contexts_are_those_of_a_plain_computation(run, eval_runs, plain, model, text):
    (report,) = eval_runs(run, n_worst=5, batch_size=4)
    rises = [sum(patched) - sum(clean) for clean, patched in plain["contexts"]]
    order = sorted(range(N_CONTEXTS), key=lambda i: -rises[i])
    assert [worst.context for worst in report.worst] == order[:5]
    tokenizer, contexts = load_tokenizer(str(model)), contexts_of(model, text, n=N_CONTEXTS)
    for worst in report.worst:
        clean, patched = (np.mean(losses) for losses in plain["contexts"][worst.context])
        assert worst.ce_clean == pytest.approx(clean, rel=1e-5)
        assert worst.ce_patched == pytest.approx(patched, rel=1e-5)
        difference = np.exp(patched) - np.exp(clean)
        assert worst.perplexity_difference == pytest.approx(difference, rel=1e-4)
        assert worst.text == tokenizer.decode(contexts[worst.context].tolist())


def test_contexts_whose_loss_does_not_rise_are_not_among_the_worst(tmp_path, model, eval_runs):
    coder, eye = make_coder(expansion=2), torch.eye(WIDTH)
    with torch.no_grad():
        coder.W_enc.copy_(torch.cat([eye, -eye], 1))
        coder.W_dec.copy_(torch.cat([eye, -eye]))
        coder.b_enc.zero_()
        coder.b_dec.zero_()
    perfect = save_coder(tmp_path / "perfect", coder, model=model)
    some = save_coder(tmp_path / "some", make_coder(), model=model)
    nothing, everything = eval_runs(perfect, some, n_worst=100)
    assert nothing.worst == ()
    assert 5 < len(everything.worst) <= N_CONTEXTS
    assert all(worst.ce_patched > worst.ce_clean for worst in everything.worst)
    assert eval_runs(some, n_worst=0)[0].worst == ()


def test_intervals_of_a_report_surround_its_metrics_and_follow_the_seed(run, eval_runs):
    (report,) = eval_runs(run)
    assert len(report.intervals) == 8
    for interval in report.intervals:
        assert interval.low < getattr(report, interval.metric) < interval.high, interval
    (other,) = eval_runs(run, seed=1)
    assert other.intervals != report.intervals
    assert other.ce_patched == report.ce_patched
