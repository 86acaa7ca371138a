"""What an evaluation says of numbers that rest on little, and of an L0 that moved."""

import pytest

from pipeline.config.architectures import ReluConfig, TopKConfig
from pipeline.config.training import TrainConfig
from pipeline.evaluate.evaluate import caveats_on
from pipeline.evaluate.setup import l0_of
from pipeline.runs.curves import Curves
from pipeline.runs.sae_run import SAERun
from tests.helpers.tiny import make_provenance
from tests.helpers.training import make_report


def said(
    *,
    l0=32.0,
    n_dead=0,
    n_tokens=100_000,
    n_contexts=781,
    l0_trained=32.0,
    recovered=0.9,
    added=0.1,
) -> list[str]:
    metrics = {"l0": l0, "n_dead": n_dead, "loss_recovered_mean": recovered, "ce_added": added}
    return [*caveats_on(metrics, n_tokens=n_tokens, n_contexts=n_contexts, l0_trained=l0_trained)]


def test_what_rests_on_enough_needs_no_word():
    assert said() == said(l0_trained=None) == said(l0=32.3) == said(n_tokens=1_000) == []
    assert said(n_dead=10) == []
    assert said(l0=0.0) == [
        "L0 is 0.0 on this text, 100% fewer than the 32.0 that it was fitted to"
    ]


@pytest.mark.parametrize(
    ("told", "line"),
    [
        ({"l0": 36.6}, "L0 is 36.6 on this text, 14% more than the 32.0 that it was fitted to"),
        ({"l0": 16.0}, "L0 is 16.0 on this text, 50% fewer than the 32.0 that it was fitted to"),
        (
            {"n_dead": 40, "n_tokens": 30_000},
            "features that are active on fewer than one in 10,000 tokens may count as dead on "
            "30,000: raise `tokens`",
        ),
        (
            {"added": -0.0042},
            "the model predicts this text better with the SAE than alone, by 0.0042 nats: loss "
            "added and recovered tell little here, look at the KL divergence",
        ),
        ({"n_dead": 1}, "the dead-feature cosines are of 1 dead feature alone"),
        (
            {"recovered": None},
            "putting the site at its mean does not raise the loss of this text, so there is "
            "nothing to recover: look at the loss added",
        ),
        ({"n_contexts": 29}, "the intervals are of 29 contexts alone: raise `tokens`"),
    ],
)
def test_each_caveat_is_said_where_it_is_true(told, line):
    assert said(**told) == [line]


def test_the_l0_of_training_is_what_was_asked_for_or_that_of_the_last_rows(tmp_path):
    def l0(arch):
        config = TrainConfig(store="s", out=tmp_path, arch=arch)
        return l0_of(SAERun(path=tmp_path, provenance=make_provenance(d_in=6), config=config))

    assert l0(ReluConfig(l1=0.1)) is None  # no curves are there
    with Curves(tmp_path / "metrics.jsonl", keep=0) as curves:
        curves.append(make_report(tmp_path, 9, l0=7.5))
    assert l0(ReluConfig(l1=0.1)) == l0(ReluConfig(target=0.1)) == 7.5
    assert (l0(ReluConfig(l0=3)), l0(TopKConfig(k=5))) == (3, 5)
