import numpy as np
import pytest

from pipeline.errors import ConfigError
from pipeline.lm.tokenizer import load_tokenizer
from tests.helpers.evaluations import N_CONTEXTS
from tests.helpers.plain_eval import LOSS, contexts_of, plain_eval, worst_first
from tests.helpers.tiny import identity_sae, make_sae


@pytest.fixture(scope="module")
def plain(tiny_model, tiny_text):
    contexts = contexts_of(tiny_model, tiny_text, n=N_CONTEXTS)
    return plain_eval(tiny_model, contexts, make_sae())


@pytest.fixture
def run(evals):
    return evals.save()


def test_a_coder_in_each_layer_costs_what_a_plain_computation_says(run, evals, plain):
    (report,) = evals.reports(run, layers=(2, 0, 1, 0), batch_size=5)
    assert [found.site for found in report.inserted] == ["mlp_out.2", "mlp_out.0", "mlp_out.1"]
    expected = dict(plain["inserted"])
    for found in report.inserted:
        assert found.ce_patched == pytest.approx(expected[found.site], rel=LOSS)
        assert found.added == pytest.approx(found.ce_patched - report.ce_clean, rel=1e-9)
    assert report.ce_clean == pytest.approx(plain["ce_clean"], rel=LOSS)
    assert report.inserted[2].ce_patched == report.ce_patched


def test_asking_for_layers_changes_no_other_number(run, evals):
    (without,), (with_layers,) = evals.reports(run), evals.reports(run, layers=(0, 1, 2))
    for name in vars(without).keys() - {"inserted"}:
        assert getattr(with_layers, name) == getattr(without, name), name


def test_the_text_is_read_once_for_all_layers(run, evals, passes):
    _, n = passes(lambda: evals.reports(run, layers=(0, 1, 2), batch_size=N_CONTEXTS))
    assert n == 1 + 1 + 2 + 3  # means, clean, ablations, one for each layer


def test_a_layer_the_model_lacks_names_those_it_has(run, evals):
    with pytest.raises(ConfigError, match=r"mlp_out\.3 does not exist: .* has layers 0 to 2"):
        evals.reports(run, layers=(0, 3))


def test_the_worst_contexts_are_those_of_a_plain_computation(
    run, evals, plain, tiny_model, tiny_text
):
    (report,) = evals.reports(run, n_worst=5, batch_size=4)
    assert [worst.context for worst in report.worst] == worst_first(plain["contexts"])[:5]
    tokenizer = load_tokenizer(str(tiny_model))
    contexts = contexts_of(tiny_model, tiny_text, n=N_CONTEXTS)
    for worst in report.worst:
        clean, patched = (np.mean(losses) for losses in plain["contexts"][worst.context])
        assert worst.ce_clean == pytest.approx(clean, rel=LOSS)
        assert worst.ce_patched == pytest.approx(patched, rel=LOSS)
        difference = np.exp(worst.ce_patched) - np.exp(worst.ce_clean)
        assert worst.perplexity_difference == pytest.approx(difference, rel=1e-9)
        assert worst.text == tokenizer.decode(contexts[worst.context].tolist())


def test_contexts_whose_loss_does_not_rise_are_not_among_the_worst(evals):
    perfect, some = evals.save("perfect", identity_sae()), evals.save("some")
    nothing, everything = evals.reports(perfect, some, n_worst=100)
    assert nothing.worst == ()
    assert 5 < len(everything.worst) <= N_CONTEXTS
    assert all(worst.ce_patched > worst.ce_clean for worst in everything.worst)
    assert evals.reports(some, n_worst=0)[0].worst == ()


def test_intervals_of_a_report_surround_its_metrics_and_follow_the_seed(run, evals):
    (report,) = evals.reports(run)
    assert len(report.intervals) == 8
    for interval in report.intervals:
        assert interval.low < getattr(report, interval.metric) < interval.high, interval
    (other,) = evals.reports(run, seed=1)
    assert other.intervals != report.intervals
    assert other.ce_patched == report.ce_patched
