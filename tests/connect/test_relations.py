"""Relations between two inputs and an output: planted ones are found, others are not."""

import numpy as np
import pytest

from pipeline.connect.reading.relations import CLEAR, MIN_ROWS
from pipeline.connect.reading.values import Cell
from tests.helpers.readings import connector_of, related

N_ROWS, N_IN = 4000, 8
A, B, C, D, E = range(5)


def make_inputs(seed: int = 0, *, frequency: float = 0.1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.uniform(0.8, 1.2, (N_ROWS, N_IN))
    return values * (rng.random((N_ROWS, N_IN)) < frequency)


def noisy(z2: np.ndarray, *, share: float = 0.02, seed: int = 9) -> np.ndarray:
    """Some activations dropped and some made up."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(len(z2)) < share, np.where(z2 > 0, 0, 0.5), z2)[:, None]


def weights(**by_input: float) -> np.ndarray:
    W = np.zeros((N_IN, 1))
    for name, w in by_input.items():
        W["ABCDE".index(name), 0] = w
    return W


def planted(z1, W, b=0.0):
    return related(z1, noisy(np.maximum(z1 @ W[:, 0] + b, 0)), connector_of(W, [b]))


def test_an_or_is_found_with_the_rows_that_show_it():
    z1, W = make_inputs(), weights(A=1, B=0.9)
    z2 = noisy(np.maximum(z1 @ W[:, 0], 0))
    (found,) = related(z1, z2, connector_of(W))
    assert (found.kind, found.output, {found.a, found.b}) == ("or", 0, {A, B})
    a, b, o = z1[:, found.a] > 0, z1[:, found.b] > 0, z2[:, 0] > 0
    assert found.cells == tuple(
        Cell(n=int(rows.sum()), n_active=int((rows & o).sum()))
        for rows in (a & ~b, b & ~a, a & b, ~a & ~b)
    )
    assert (found.weight_a, found.weight_b) == pytest.approx((W[found.a, 0], W[found.b, 0]))
    assert found.inside == (a & b).sum() / b.sum()
    lows = [found.a_only.bounds[0], found.b_only.bounds[0]]
    assert found.score == min(*lows, found.both.bounds[1]) - found.neither.bounds[1]
    assert found.score < min(found.a_only.p, found.b_only.p) - found.neither.p


def test_inputs_that_never_meet_may_be_an_or():
    z1 = make_inputs()
    z1[z1[:, A] > 0, B] = 0
    (found,) = planted(z1, weights(A=1, B=1))
    assert (found.kind, found.both.n, found.both.p) == ("or", 0, None)


def test_an_input_that_silences_another_is_an_and_not():
    z1, W = make_inputs(), weights(A=1, B=-1.5)
    (found,) = planted(z1, W)
    assert (found.kind, found.a, found.b) == ("and-not", A, B)
    assert (found.weight_a, found.weight_b) == (1, -1.5)
    silenced = max(found.both.bounds[1], found.neither.bounds[1])
    assert found.score == found.a_only.bounds[0] - silenced


def test_an_and_not_says_how_much_of_the_second_lies_inside_the_first():
    z1 = make_inputs(frequency=0.2)
    z1[:, B] = np.where(z1[:, A] > 1, 1, 0)
    (found,) = planted(z1, weights(A=1, B=-1.5))
    assert (found.kind, found.inside, found.b_only.n) == ("and-not", 1, 0)


def test_two_inputs_that_pass_the_threshold_together_alone_are_an_and():
    z1 = make_inputs(frequency=0.2)
    (found,) = planted(z1, weights(A=1, B=1), b=-1.5)
    assert (found.kind, {found.a, found.b}) == ("and", {A, B})
    likely = max(cell.bounds[1] for cell in (found.a_only, found.b_only, found.neither))
    assert found.score == found.both.bounds[0] - likely


def test_one_input_is_no_relation():
    assert planted(make_inputs(), weights(A=1)) == ()


def test_an_output_that_goes_with_no_input_is_no_relation():
    z1, rng = make_inputs(), np.random.default_rng(3)
    z2 = rng.uniform(0.5, 1, (N_ROWS, 1)) * (rng.random((N_ROWS, 1)) < 0.3)
    W = weights(A=1, B=1, C=1, D=-1, E=-1)
    assert related(z1, z2, connector_of(W)) == ()


def test_inputs_that_only_go_along_with_the_one_that_does_the_work_are_no_and():
    z1, rng = make_inputs(frequency=0.1), np.random.default_rng(4)
    z1[:, [A, B]] = rng.uniform(0.8, 1.2, (N_ROWS, 2)) * (rng.random((N_ROWS, 2)) < 0.25)
    z1[:, C] = ((z1[:, A] > 0) & (z1[:, B] > 0)) * 1.0
    z2 = noisy(z1[:, C])
    assert related(z1, z2, connector_of(weights(A=0.05, B=0.05, C=1))) == ()
    honest = related(z1, z2, connector_of(weights(A=1, B=1, C=0.05)))
    assert [(r.kind, {r.a, r.b}) for r in honest] == [("and", {A, B})]


def test_each_input_of_an_or_must_do_the_work_itself():
    """Wherever A is active, C and D are, too, and they have the weight."""
    z1 = make_inputs()
    z1[:, [C, D]] = (z1[:, [A]] > 0) * 1.0
    z2 = noisy(((z1[:, A] > 0) | (z1[:, B] > 0)) * 1.0)
    assert related(z1, z2, connector_of(weights(A=0.1, B=1, C=0.6, D=0.6))) == ()
    (found,) = related(z1, z2, connector_of(weights(A=1, B=1, C=0.1, D=0.1)))
    assert (found.kind, {found.a, found.b}) == ("or", {A, B})


def test_a_negative_weight_too_small_to_matter_is_no_and_not():
    z1 = make_inputs()
    z2 = noisy(np.where(z1[:, B] > 0, 0, z1[:, A]))
    assert related(z1, z2, connector_of(weights(A=1, B=-0.1))) == ()
    assert [r.kind for r in related(z1, z2, connector_of(weights(A=1, B=-0.5)))] == ["and-not"]


def test_few_rows_show_nothing():
    z1, W = make_inputs(), weights(A=1, B=1)
    only_a = np.flatnonzero((z1[:, A] > 0) & (z1[:, B] == 0))
    z1[only_a[MIN_ROWS - 1 :], A] = 0
    assert planted(z1, W) == ()
    z1[only_a, A] = 1
    assert [r.kind for r in planted(z1, W)] == ["or"]


def test_a_difference_that_chance_could_make_is_not_clear():
    """30 rows of each cell, 0.6 against 0.2: far apart by their shares, not by their bounds."""
    z1 = np.zeros((N_ROWS, N_IN))
    z1[:30, A], z1[30:60, A], z1[30:60, B] = 1, 1, 1
    z2 = np.zeros((N_ROWS, 1))
    z2[:18], z2[30:36] = 1, 1
    assert (18 - 6) / 30 - CLEAR > 0
    for times, kinds in ((1, []), (10, []), (100, ["and-not"])):
        rows = (np.tile(z, (times, 1)) for z in (z1, z2))
        found = related(*rows, connector_of(weights(A=1, B=-1)))
        assert [r.kind for r in found] == kinds


def test_of_an_output_the_clearest_of_a_kind_is_told_and_the_clearest_come_first():
    z1 = make_inputs()
    W = np.zeros((N_IN, 2))
    W[[A, B, C], 0], W[[A, D], 1] = 1, 1
    z2 = np.hstack([noisy(z1 @ W[:, 0], share=0.15), noisy(z1 @ W[:, 1], share=0.01)])
    found = related(z1, z2, connector_of(W))
    assert [r.output for r in found] == [1, 0]
    assert found[0].score > found[1].score
