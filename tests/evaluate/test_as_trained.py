from dataclasses import replace

import numpy as np
import pytest

from pipeline.config.serialization import to_json
from pipeline.errors import ConfigError
from pipeline.lm.tokenizer import load_tokenizer
from tests.helpers.evaluations import N_CONTEXTS
from tests.helpers.plain_eval import (
    LOSS,
    assert_numbers_agree,
    contexts_of,
    leave_out,
    plain_eval,
    worst_first,
)
from tests.helpers.tiny import CTX_LEN, make_sae


@pytest.fixture
def make_run(evals):
    """A run whose training left out these rows."""

    def make(name: str, *, seed=0, site="mlp_out.1", positions=(), token_ids=(), norms=None):
        run = evals.save(name, make_sae(seed=seed), site=site)
        return leave_out(
            run, exclude_positions=positions, exclude_tokens=token_ids, exclude_norms=norms
        )

    return make


@pytest.fixture
def eval_runs(evals):
    def run(*runs, as_trained: bool = True, **options):
        return evals.reports(*runs, as_trained=as_trained, **options)

    return run


LEFT_OUT = {
    "nothing": {},
    "positions": {"positions": (0, 5)},
    "last position": {"positions": (CTX_LEN - 1,)},
    "tokens": {"token_ids": (64, 65, 66)},
    "norms": {"norms": 1.2},
    "all": {"positions": (0,), "token_ids": (64,), "norms": 1.5},
}


@pytest.mark.parametrize("left_out", LEFT_OUT.values(), ids=LEFT_OUT)
def test_every_number_agrees_with_a_plain_float64_computation(
    left_out, make_run, eval_runs, tiny_model, tiny_text
):
    run, tokens = make_run("run", **left_out), contexts_of(tiny_model, tiny_text, n=N_CONTEXTS)
    (report,) = eval_runs(run, batch_size=4, layers=(2, 0, 1, 0), n_worst=5)
    plain = plain_eval(tiny_model, tokens, make_sae(), **left_out)
    contexts, inserted = plain.pop("contexts"), plain.pop("inserted")
    assert_numbers_agree(to_json(report), plain)
    assert len(plain) == 33
    share = plain["n_tokens"] / tokens.numel()
    assert 0.3 < share < 1 if left_out else share == 1
    assert 10 < report.n_dead < report.d_sae / 2
    assert 0 < report.n_frequent < report.d_sae - report.n_dead
    assert [found.site for found in report.inserted] == ["mlp_out.2", "mlp_out.0", "mlp_out.1"]
    for found in report.inserted:
        assert found.ce_patched == pytest.approx(inserted[found.site], rel=LOSS)
        assert found.added == pytest.approx(found.ce_patched - report.ce_clean, rel=1e-9)
    assert report.inserted[2].ce_patched == report.ce_patched
    n_worst = min(5, sum(sum(patched) > sum(clean) for clean, patched in contexts))
    assert [worst.context for worst in report.worst] == worst_first(contexts)[:n_worst]
    for worst in report.worst:
        clean, patched = map(np.mean, contexts[worst.context])
        assert worst.ce_clean == pytest.approx(clean, rel=LOSS)
        assert worst.ce_patched == pytest.approx(patched, rel=LOSS)
        difference = np.exp(worst.ce_patched) - np.exp(worst.ce_clean)
        assert worst.perplexity_difference == pytest.approx(difference, rel=1e-9)
        text = load_tokenizer(str(tiny_model)).decode(tokens[worst.context].tolist())
        assert worst.text == text


def test_what_was_left_out_is_said_in_words(make_run, eval_runs):
    (report,) = eval_runs(make_run("run", positions=[3, 0, 3], token_ids=[7], norms=2.5))
    assert report.excluded == (
        "positions 0, 3",
        "token 7",
        "rows whose norm is above 2.5 times the median",
    )
    assert not any("left out" in note for note in report.notes)
    (report,) = eval_runs(make_run("many", positions=list(range(1, 11))))
    assert report.excluded == ("positions 1, 2, 3, 4, 5, 6, 7, 8, ...",)


def test_without_the_flag_all_rows_count_and_a_note_names_it(make_run, eval_runs):
    plain, left = make_run("plain"), make_run("left", positions=[0])
    whole, report = eval_runs(plain, left, as_trained=False)
    assert (
        "training left out position 0: add `as_trained=True` to leave it out here too"
        in report.notes
    )
    assert report.excluded == ()
    assert report.n_tokens == N_CONTEXTS * CTX_LEN
    unlike = {"run": plain, "notes": (), "overlaps": whole.overlaps}
    assert replace(report, **unlike) == replace(whole, **unlike)
    assert not any("left out" in note for note in whole.notes)


def test_runs_that_left_out_different_rows_are_evaluated_together_as_alone(make_run, eval_runs):
    runs = [
        make_run("none"),
        make_run("first", positions=[0]),
        make_run("first too", positions=[0], seed=1),
        make_run("long", norms=1.1),
        make_run("elsewhere", norms=1.1, site="mlp_out.2"),
    ]
    together = eval_runs(*runs)
    for run, report in zip(runs, together, strict=True):
        assert eval_runs(run) == (replace(report, overlaps=()),)
    assert len({report.ce_clean for report in together}) == 4
    assert together[1].ce_zero == together[2].ce_zero != together[0].ce_zero


def test_with_nothing_left_to_count_the_exclusion_is_named(make_run, eval_runs):
    run = make_run("run", positions=list(range(CTX_LEN - 1)))
    with pytest.raises(ConfigError, match=r"run leaves no prediction of .* positions 0, 1, 2"):
        eval_runs(run)
    run = make_run("every", positions=list(range(CTX_LEN)))
    with pytest.raises(ConfigError, match="leaves no prediction"):
        eval_runs(run)
