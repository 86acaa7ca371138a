"""Where the directions of a dictionary lie, against plain loops in float64."""

import itertools
import math

import pytest
import torch

from pipeline.config.architectures import TopKConfig
from pipeline.evaluate import geometry
from pipeline.evaluate.geometry import (
    dead_cosine,
    encoder_decoder_cosine,
    max_cosine,
    mutual_mmcs,
    others_cosine,
)
from pipeline.sae.sae import TunedSAE
from tests.helpers.tiny import make_sae


def cosine(a: list[float], b: list[float]) -> float:
    """Of two vectors, by its definition."""
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few rows, whatever their width."""
    monkeypatch.setattr(geometry, "_CELLS", 60)


@pytest.mark.usefixtures("small_blocks")
def test_encoder_columns_are_compared_with_their_own_decoder_rows():
    coder = make_sae(arch=TopKConfig(k=3))
    with torch.no_grad():
        coder.W_enc.copy_(3 * rows(16, 64, seed=1))
        coder.W_dec.copy_(rows(64, 16, seed=2) * torch.arange(1, 65)[:, None])
    pairs = zip(coder.W_enc.double().T.tolist(), coder.W_dec.double().tolist(), strict=True)
    expected = list(itertools.starmap(cosine, pairs))
    found = encoder_decoder_cosine(coder)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, rel=1e-12)


def test_a_negative_scale_turns_what_a_latent_reads_around_and_a_zero_one_leaves_nothing():
    tuned = TunedSAE(make_sae())
    with torch.no_grad():
        tuned.sae.W_enc.copy_(rows(16, 64))
        tuned.c.copy_(torch.linspace(-2, 2, 64))
        tuned.c[5] = 0
    plain = encoder_decoder_cosine(tuned.sae)
    found = encoder_decoder_cosine(tuned)
    torch.testing.assert_close(found, plain * tuned.c.sign(), rtol=0, atol=1e-7)
    assert found[5] == 0
    torch.testing.assert_close(found, encoder_decoder_cosine(tuned.fold()))


@pytest.mark.parametrize("n", [2, 3, 17, 64])
@pytest.mark.usefixtures("small_blocks")
def test_the_largest_cosine_is_with_any_other_row_before_or_after_it(n):
    W_dec = rows(n, 5) * torch.arange(1, n + 1)[:, None]
    W_dec[-1] = 2 * W_dec[0] + 0.01  # nearly the same direction, in blocks far apart
    listed = W_dec.double().tolist()
    expected = [
        max(cosine(a, b) for j, b in enumerate(listed) if j != i) for i, a in enumerate(listed)
    ]
    found = max_cosine(W_dec)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_two_equal_rows_have_cosine_1_at_most_and_opposite_ones_minus_1():
    many = rows(100, 33)  # the rounded products of some with themselves are above 1
    twice = max_cosine(torch.cat([many, many]))
    assert twice.tolist() == pytest.approx([1] * 200, abs=1e-6)
    assert twice.max() <= 1
    assert max(max(mutual_mmcs(row[None], row[None])) for row in many) <= 1
    assert max_cosine(torch.cat([many[:1], -many[:1]])).tolist() == pytest.approx([-1, -1])


def test_a_row_of_zeros_is_at_right_angles_to_all_and_a_lone_row_has_none_to_compare_with():
    W_dec = torch.tensor([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.1]])
    assert max_cosine(W_dec).tolist() == [0, 0, 0]  # the others point away from each other
    assert max_cosine(torch.zeros(2, 4)).tolist() == [0, 0]
    assert max_cosine(rows(1, 4)).tolist() == [0]
    assert mutual_mmcs(torch.zeros(2, 4), rows(3, 4)) == (0, 0)


@pytest.mark.usefixtures("small_blocks")
def test_mmcs_is_the_mean_over_a_dictionary_of_the_best_match_in_the_other():
    first, second = rows(70, 6), 5 * rows(9, 6, seed=1)
    a, b = first.double().tolist(), second.double().tolist()
    there = sum(max(cosine(row, other) for other in b) for row in a) / len(a)
    back = sum(max(cosine(row, other) for other in a) for row in b) / len(b)
    assert abs(there - back) > 1e-3
    assert mutual_mmcs(first, second) == pytest.approx((there, back), abs=1e-6)


def test_the_mean_dead_row_is_what_dead_and_living_rows_are_compared_with():
    W_dec = rows(6, 4)
    dead = torch.tensor([True, False, False, True, False, True])
    listed = W_dec.double().tolist()
    centre = [sum(column) / 3 for column in zip(*(listed[i] for i in (0, 3, 5)), strict=True)]
    found = dead_cosine(W_dec, dead)
    assert found is not None
    assert found.tolist() == pytest.approx([cosine(row, centre) for row in listed], rel=1e-12)
    assert dead_cosine(W_dec, torch.zeros(6, dtype=torch.bool)) is None


def test_dead_rows_are_compared_with_the_others_that_are_dead():
    W_dec = rows(6, 4) * torch.arange(1, 7)[:, None]  # lengths do not count
    dead = torch.tensor([True, False, False, True, False, True])
    listed = [[x / math.hypot(*row) for x in row] for row in W_dec.double().tolist()]
    found = others_cosine(W_dec, dead, seed=0)
    expected = []
    for i in (0, 3, 5):
        rest = [sum(x) for x in zip(*(listed[j] for j in (0, 3, 5) if j != i), strict=True)]
        expected.append(cosine(listed[i], rest))
    assert found.dead == pytest.approx(sum(expected) / 3, rel=1e-12)
    assert others_cosine(W_dec, torch.arange(6) == 2, seed=0) is None, "there are no others"


def test_by_chance_a_row_is_at_right_angles_to_the_others_but_not_to_a_mean_it_is_in():
    W_dec, dead = rows(2000, 64), torch.arange(2000) < 23
    found = others_cosine(W_dec, dead, seed=0)
    assert found.dead == pytest.approx(0, abs=0.1)
    assert found.living == pytest.approx(0, abs=0.02)
    to_mean = dead_cosine(W_dec, dead)
    assert to_mean is not None
    assert to_mean[dead].mean().item() == pytest.approx(23**-0.5, abs=0.05)


def test_chance_knows_that_the_living_are_alike_too():
    W_dec, dead = rows(500, 64) + 1, torch.arange(500) < 23
    found = others_cosine(W_dec, dead, seed=0)
    assert found.living == pytest.approx(found.dead, abs=0.05) and found.dead > 0.5
    assert found == others_cosine(W_dec, dead, seed=0) != others_cosine(W_dec, dead, seed=1)
    assert others_cosine(W_dec, torch.arange(500) < 251, seed=0).living is None


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_directions_have_no_length(scale):
    coder = make_sae(arch=TopKConfig(k=3))
    with torch.no_grad():
        coder.W_enc.copy_(coder.W_dec.T * scale)
    assert encoder_decoder_cosine(coder).tolist() == pytest.approx([1.0] * 64, abs=1e-6)
