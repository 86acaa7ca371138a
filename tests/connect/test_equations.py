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


def test_terms_that_add_are_the_largest_contributions_where_the_output_is_active():
    z1, z2, W, b = make_latents()
    for equation in told(z1, z2, W, b):
        o = equation.output
        contribution = W[:, o] * z1[z2[:, o] > 0].mean(0)
        order = [i for i in np.argsort(-contribution) if contribution[i] > 0][:4]
        added = contribution[contribution > 0].sum()
        assert [t.feature for t in equation.adding] == [
            i for i in order if contribution[i] > MIN_SHARE * added
        ]
        for term in equation.adding:
            assert term.weight == W[term.feature, o]
            assert term.contribution == pytest.approx(contribution[term.feature], rel=1e-12)
            assert term.share == pytest.approx(contribution[term.feature] / added, rel=1e-12)


def test_terms_that_subtract_are_weighed_where_the_output_is_silent_though_an_input_speaks():
    z1, z2, W, b = make_latents()
    met = 0
    for equation in told(z1, z2, W, b):
        o = equation.output
        speaks = (z1[:, [t.feature for t in equation.adding]] > 0).any(1)
        contribution = W[:, o] * z1[speaks & (z2[:, o] == 0)].mean(0)
        added = contribution[contribution > 0].sum()
        order = [i for i in np.argsort(contribution) if -contribution[i] > MIN_SHARE * added][:2]
        assert [t.feature for t in equation.subtracting] == order
        for term in equation.subtracting:
            met += 1
            assert term.weight < 0
            assert term.contribution == pytest.approx(contribution[term.feature], rel=1e-12)
            assert term.share == pytest.approx(-contribution[term.feature] / added, rel=1e-12)
    assert met > 4


@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_the_terms_shown_explain_what_they_alone_predict(activation):
    z1, z2, W, b = make_latents(1)
    for equation in told(z1, z2, W, b, activation=activation):
        o = equation.output
        kept = np.zeros(N_IN)
        kept[[t.feature for t in equation.terms]] = 1
        predicted = z1 @ (W[:, o] * kept) + b[o]
        whole = z1 @ W[:, o] + b[o]
        if activation == "relu":
            predicted, whole = np.maximum(predicted, 0), np.maximum(whole, 0)
        around = np.square(z2[:, o] - z2[:, o].mean()).sum()
        assert equation.explained_shown == pytest.approx(
            1 - np.square(predicted - z2[:, o]).sum() / around, rel=1e-9
        )
        assert equation.explained == pytest.approx(
            1 - np.square(whole - z2[:, o]).sum() / around, rel=1e-9
        )


def test_counts_say_how_many_weights_there_are_and_how_often_the_output_is_active():
    z1, z2, W, b = make_latents(2)
    for equation in told(z1, z2, W, b):
        o = equation.output
        assert equation.bias == b[o]
        assert equation.n_nonzero == (W[:, o] != 0).sum()
        assert equation.n_above == (np.abs(W[:, o]) > 0.1).sum()
        assert equation.n_further == equation.n_nonzero - len(equation.terms)
        assert equation.n_active == (z2[:, o] > 0).sum()
        assert equation.frequency == (z2[:, o] > 0).mean()
        assert equation.mean == pytest.approx(z2[z2[:, o] > 0, o].mean(), rel=1e-12)


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
