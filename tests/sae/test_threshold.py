"""A threshold that is fitted to a number of active latents."""

import math

import pytest
import torch

from pipeline.sae.jumprelu import Threshold


def make_pre(*, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return scale * torch.randn(1000, 40, generator=generator)


def active(threshold: Threshold, pre: torch.Tensor) -> float:
    return int((threshold(pre) > 0).sum()) / len(pre)


@pytest.mark.parametrize("l0", [0.5, 3.0, 7.7])
@pytest.mark.parametrize("start", ["one", "one each", "none yet"])
def test_as_many_pass_as_were_asked_for_and_proportions_stay(start, l0):
    pre = make_pre(scale=3.0)
    theta = {"one": torch.tensor(0.2), "one each": torch.linspace(0.1, 4, 40)}.get(
        start, torch.zeros(())
    )
    threshold = Threshold(theta.clone())
    threshold.fit(pre.split(300), l0=l0)
    assert active(threshold, pre) == pytest.approx(l0, rel=5e-3)
    if start == "one each":
        ratio = (threshold.threshold / theta).detach()
        torch.testing.assert_close(ratio, ratio[:1].expand(40))


@pytest.mark.parametrize("odd", [-0.0, math.nan, -math.nan], ids=["zero", "nan", "nan below"])
def test_what_is_no_number_above_zero_is_not_counted(odd):
    """Every float has bits, and those of these would be places in no histogram."""
    pre = make_pre()
    expected = Threshold(torch.tensor(0.2))
    expected.fit([pre.clamp_min(0)], l0=3.0)
    threshold = Threshold(torch.tensor(0.2))
    threshold.fit([torch.where(pre > 0, pre, torch.tensor(odd))], l0=3.0)
    assert torch.equal(threshold.threshold, expected.threshold)


def test_without_rows_everything_above_zero_passes():
    threshold = Threshold(torch.tensor(0.2))
    threshold.fit([torch.empty(0, 40)], l0=3.0)
    assert threshold.threshold.item() == 0


def test_where_too_few_are_above_zero_all_of_them_pass():
    pre = make_pre() - 2
    threshold = Threshold(torch.tensor(0.5))
    threshold.fit([pre], l0=10.0)
    assert threshold.threshold.item() == 0
    assert active(threshold, pre) == int((pre > 0).sum()) / len(pre)


def test_later_rows_that_are_less_active_than_the_first_count_too():
    first, later = make_pre(scale=5.0)[:100], make_pre()
    threshold = Threshold(torch.tensor(1.0))
    threshold.fit([first, later], l0=4.0)
    assert active(threshold, torch.cat([first, later])) == pytest.approx(4.0, rel=5e-3)
