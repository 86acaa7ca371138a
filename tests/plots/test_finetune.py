from dataclasses import replace

import numpy as np
import pytest

from pipeline.plots import style as canvas
from pipeline.plots.finetune import effects_figure, scales_and_biases_figure
from tests.helpers.tunings import make_meaning


def test_the_smoothed_line_of_a_straight_line_is_that_line_until_it_ends():
    x = np.arange(200)
    _, y = canvas.smoothed(x, 3.0 * x)
    np.testing.assert_allclose(y[:-3], 3.0 * x[:-3])


def test_the_smoothed_line_is_a_mean_of_neighbours():
    values = np.random.default_rng(0).normal(size=300)
    _, y = canvas.smoothed(np.arange(300), values)
    half = round(0.03 * 300 / 2)
    assert y[100] == pytest.approx(values[100 - half : 100 + half + 1].mean())
    assert y[0] == values[0]


def test_scales_and_biases_ascend_and_their_shares_are_told():
    c, d = np.array([1.2, 0.5, 0.9, 1.0]), np.array([0.1, 0.3, -0.2, 0.0])
    left, right = scales_and_biases_figure(c, d, learned=np.full(4, True)).axes
    assert left.lines[0].get_ydata().tolist() == [0.5, 0.9, 1.0, 1.2]
    assert right.lines[0].get_ydata().tolist() == [-0.2, 0.0, 0.1, 0.3]
    assert [t.get_text() for t in left.texts] == ["25% above 1", "50% below 1"]
    assert [t.get_text() for t in right.texts] == ["50% above 0", "25% below 0"]
    assert left.get_xlabel() == "features, sorted by scale c"


def test_what_weight_decay_alone_moved_is_not_called_inhibited():
    c, d = np.array([1.2, 0.98, 0.98, 0.7]), np.array([0.1, 0.0, 0.0, -0.2])
    left, right = scales_and_biases_figure(c, d, learned=d != 0).axes
    assert left.lines[0].get_ydata().tolist() == [0.7, 1.2]
    assert right.lines[0].get_ydata().tolist() == [-0.2, 0.1]
    assert [t.get_text() for t in left.texts] == ["50% above 1", "50% below 1"]
    assert left.get_xlabel() == "features, sorted by scale c (2 were never active)"
    nothing = scales_and_biases_figure(c, 0 * d, learned=np.full(4, False))
    assert [t.get_text() for t in nothing.axes[0].texts] == ["0% above 1", "0% below 1"]


@pytest.mark.parametrize(("decayed", "lines"), [(1.0, [1, 1]), (0.96, [1, 1, 0.96, 0.96])])
def test_what_weight_decay_alone_makes_of_a_scale_is_a_line_if_it_does_anything(decayed, lines):
    c, d = np.array([1.2, 0.9]), np.array([0.1, -0.2])
    figure = scales_and_biases_figure(c, d, learned=np.full(2, True), decayed=decayed)
    left, right = figure.axes
    assert [y for line in left.lines[1:] for y in line.get_ydata()] == lines
    assert len(right.lines) == 2
    legend = left.get_legend()
    assert (legend is not None) == (decayed != 1)
    if legend is not None:
        assert [t.get_text() for t in legend.get_texts()] == ["weight decay alone: 0.96"]


def test_the_gain_that_is_kept_is_a_curve_and_effects_are_points():
    effects = make_meaning().effects
    left, right = effects_figure(effects).axes
    assert left.lines[0].get_xdata().tolist() == [1, 2, 4, 8]
    assert left.lines[0].get_ydata() == pytest.approx([1 / 3, 14 / 15, 74 / 75, 1])
    assert [t.get_text() for t in left.texts] == ["2 of 8 make 90%"]
    (points,) = right.collections
    told = [[one.c, one.effect] for one in effects.measured]
    np.testing.assert_allclose(points.get_offsets(), told)
    assert {t.get_text() for t in right.texts} <= {"1", "2", "3"}
    assert right.texts


def test_where_nothing_changed_or_was_gained_the_figure_says_so():
    effects = make_meaning().effects
    nothing = replace(effects, measured=(), n_changed=0, curve=effects.curve[:1])
    left, right = effects_figure(nothing).axes
    assert [t.get_text() for t in left.texts] == ["nothing was gained"]
    assert [t.get_text() for t in right.texts] == ["nothing changed"]
