import numpy as np
import pytest

from pipeline.plots import style as canvas
from pipeline.plots.finetune import scales_and_biases_figure


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
