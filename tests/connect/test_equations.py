"""Equations of output features, against sums over dense rows in float64."""

import numpy as np
import pytest

from pipeline.connect.reading.relations import MIN_SHARE, equations
from pipeline.connect.reading.values import wilson
from tests.helpers.readings import connector_of, observed_of

N_ROWS, N_IN, N_OUT = 600, 12, 5


def make_latents(seed: int = 0):
    """Sparse inputs, outputs that some of them explain, and the weights that say how."""
    rng = np.random.default_rng(seed)
    z1 = rng.uniform(0.5, 2, (N_ROWS, N_IN)) * (rng.random((N_ROWS, N_IN)) < 0.25)
    W = rng.normal(size=(N_IN, N_OUT)) * (rng.random((N_IN, N_OUT)) < 0.7)
    b = rng.normal(scale=0.3, size=N_OUT)
    z2 = np.maximum(z1 @ W + b + rng.normal(scale=0.3, size=(N_ROWS, N_OUT)), 0)
    return [values.astype(np.float32).astype(float) for values in (z1, z2, W, b)]


def told(z1, z2, W, b, *, n_terms=4, activation="relu"):
    connector = connector_of(W, b, activation=activation)
    return equations(observed_of(z1, z2, connector), connector, n_terms=n_terms)


def plain_terms(w, mean, *, sign: int, n: int) -> list[tuple[int, float, float]]:
    """Feature, contribution and share of the largest contributions of one sign."""
    contribution = w * mean
    added = contribution[contribution > 0].sum()
    largest = np.argsort(-sign * contribution)[:n]
    named = [i for i in largest if sign * contribution[i] > MIN_SHARE * added]
    return [(i, contribution[i], abs(contribution[i]) / added) for i in named]


@pytest.mark.parametrize("activation", ["relu", "linear"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_part_of_an_equation_is_what_sums_over_dense_rows_say(seed, activation):
    z1, z2, W, b = make_latents(seed)
    n_subtracting = 0
    for equation in told(z1, z2, W, b, activation=activation):
        o = equation.output
        w, true, active = W[:, o], z2[:, o], z2[:, o] > 0
        adding = plain_terms(w, z1[active].mean(0), sign=1, n=4)
        speaks = (z1[:, [i for i, _, _ in adding]] > 0).any(1)
        subtracting = plain_terms(w, z1[speaks & ~active].mean(0), sign=-1, n=2)
        n_subtracting += len(subtracting)
        for terms, expected in ((equation.adding, adding), (equation.subtracting, subtracting)):
            assert [term.feature for term in terms] == [i for i, _, _ in expected]
            for term, (i, contribution, share) in zip(terms, expected, strict=True):
                assert term.weight == w[i]
                assert term.contribution == pytest.approx(contribution, rel=1e-12)
                assert term.share == pytest.approx(share, rel=1e-12)
        shown = np.zeros(N_IN)
        shown[[term.feature for term in equation.terms]] = 1
        around = np.square(true - true.mean()).sum()
        for found, weights in ((equation.explained, w), (equation.explained_shown, w * shown)):
            predicted = z1 @ weights + b[o]
            if activation == "relu":
                predicted = np.maximum(predicted, 0)
            assert found == pytest.approx(1 - np.square(predicted - true).sum() / around, rel=1e-9)
        assert equation.bias == b[o]
        assert equation.n_nonzero == (w != 0).sum()
        assert equation.n_above == (np.abs(w) > 0.1).sum()
        assert equation.n_further == equation.n_nonzero - len(equation.terms)
        assert equation.n_active == active.sum()
        assert equation.frequency == active.mean()
        assert equation.mean == pytest.approx(true[active].mean(), rel=1e-12)
    assert n_subtracting > 4


def test_a_large_weight_of_an_input_that_is_never_active_is_not_named():
    z1, z2, W, b = make_latents()
    z1[:, 3], W[3] = 0, 50
    for equation in told(z1, z2, W, b):
        assert 3 not in [t.feature for t in equation.terms]


def test_outputs_that_are_dead_or_constant_or_only_held_back_are_told_as_such():
    z1, z2, W, b = make_latents()
    W[:, 0] = -np.abs(W[:, 0])
    z2[:, 1], z2[:, 2] = 2, 0
    held_back, constant, *others = told(z1, z2, W, b)
    assert held_back.terms == ()
    assert (constant.explained, constant.explained_shown) == (None, None)
    assert [e.output for e in (held_back, constant, *others)] == [0, 1, 3, 4]


def test_an_interval_holds_the_values_that_are_three_errors_from_what_was_seen():
    """Wilson's ends are the probabilities p at which |seen - p| is 3 sqrt(p (1 - p) / n)."""
    for hits, n in ((0, 7), (3, 20), (20, 20), (500, 1000)):
        seen = hits / n
        for end in wilson(hits, n):
            assert abs(seen - end) == pytest.approx(3 * np.sqrt(end * (1 - end) / n), abs=1e-7)
        low, high = wilson(hits, n)
        assert 0 <= low <= seen <= high <= 1
        assert low < high
    assert wilson(0, 0) == (0, 1)
