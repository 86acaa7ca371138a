from dataclasses import replace

import pytest

from pipeline.config.serialization import to_json
from pipeline.errors import ConfigError
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


@pytest.fixture(scope="module")
def tokens(tiny_model, tiny_text):
    return contexts_of(tiny_model, tiny_text, n=N_CONTEXTS)


@pytest.fixture
def make_run(evals):
    """A run whose training left out these rows."""

    def make(name: str, *, seed: int = 0, site: str = "mlp_out.1", **excluded):
        return leave_out(evals.save(name, make_sae(seed=seed), site=site), **excluded)

    return make


@pytest.fixture
def eval_runs(evals):
    def run(*runs, as_trained: bool = True, **options):
        return evals.reports(*runs, as_trained=as_trained, **options)

    return run


def cases(tokens) -> dict[str, tuple[dict[str, object], dict[str, object]]]:
    """Settings of a training, and the same for the plain computation."""
    common = tuple(tokens.flatten().bincount().topk(3).indices.tolist())
    return {
        "positions": ({"exclude_positions": [0, 5]}, {"positions": (0, 5)}),
        "last position": ({"exclude_positions": [CTX_LEN - 1]}, {"positions": (CTX_LEN - 1,)}),
        "tokens": ({"exclude_tokens": list(common)}, {"token_ids": common}),
        "norms": ({"exclude_norms": 1.2}, {"norms": 1.2}),
        "all": (
            {"exclude_positions": [0], "exclude_tokens": [common[0]], "exclude_norms": 1.5},
            {"positions": (0,), "token_ids": (common[0],), "norms": 1.5},
        ),
    }


@pytest.mark.parametrize("case", ["positions", "last position", "tokens", "norms", "all"])
def test_what_training_left_out_is_neither_edited_nor_counted(
    case, make_run, eval_runs, tiny_model, tokens
):
    settings, plainly = cases(tokens)[case]
    run = make_run("run", **settings)
    (report,) = eval_runs(run, batch_size=4, layers=(0, 1, 2))
    plain = plain_eval(tiny_model, tokens, make_sae(), **plainly)
    assert 0.3 * tokens.numel() < plain["n_tokens"] < tokens.numel()
    assert_numbers_agree(
        to_json(report), {key: plain[key] for key in plain.keys() - {"inserted", "contexts"}}
    )
    for found, (site, ce) in zip(report.inserted, plain["inserted"], strict=True):
        assert found.site == site
        assert found.ce_patched == pytest.approx(ce, rel=LOSS)
        assert found.added == pytest.approx(found.ce_patched - report.ce_clean, rel=1e-9)
    order = worst_first(plain["contexts"])
    assert [worst.context for worst in report.worst] == order[: len(report.worst)]
    worst, (clean, _) = report.worst[0], plain["contexts"][order[0]]
    assert worst.ce_clean == pytest.approx(sum(clean) / len(clean), rel=LOSS)


def test_what_was_left_out_is_said_in_words(make_run, eval_runs):
    settings = {"exclude_positions": [3, 0, 3], "exclude_tokens": [7], "exclude_norms": 2.5}
    (report,) = eval_runs(make_run("run", **settings))
    assert report.excluded == (
        "positions 0, 3",
        "token 7",
        "rows whose norm is above 2.5 times the median",
    )
    assert not any("left out" in note for note in report.notes)
    (report,) = eval_runs(make_run("many", exclude_positions=list(range(1, 11))))
    assert report.excluded == ("positions 1, 2, 3, 4, 5, 6, 7, 8, ...",)


def test_without_the_flag_all_rows_count_and_a_note_names_it(make_run, eval_runs):
    plain, left = make_run("plain"), make_run("left", exclude_positions=[0])
    whole, report = eval_runs(plain, left, as_trained=False)
    assert "training left out position 0: add --as-trained to leave it out here too" in report.notes
    assert report.excluded == ()
    assert report.n_tokens == N_CONTEXTS * CTX_LEN
    unlike = {"run": plain, "notes": (), "overlaps": whole.overlaps}
    assert replace(report, **unlike) == replace(whole, **unlike)
    assert not any("left out" in note for note in whole.notes)


def test_runs_that_left_out_different_rows_are_evaluated_together_as_alone(make_run, eval_runs):
    runs = [
        make_run("none"),
        make_run("first", exclude_positions=[0]),
        make_run("first too", exclude_positions=[0], seed=1),
        make_run("long", exclude_norms=1.1),
        make_run("elsewhere", exclude_norms=1.1, site="mlp_out.2"),
    ]
    together = eval_runs(*runs)
    for run, report in zip(runs, together, strict=True):
        assert eval_runs(run) == (replace(report, overlaps=()),)
    assert len({report.ce_clean for report in together}) == 4
    assert together[1].ce_zero == together[2].ce_zero != together[0].ce_zero


def test_with_nothing_left_to_count_the_exclusion_is_named(make_run, eval_runs):
    run = make_run("run", exclude_positions=list(range(CTX_LEN - 1)))
    with pytest.raises(ConfigError, match=r"run leaves no prediction of .* positions 0, 1, 2"):
        eval_runs(run)
    run = make_run("every", exclude_positions=list(range(CTX_LEN)))
    with pytest.raises(ConfigError, match="leaves no prediction"):
        eval_runs(run)
