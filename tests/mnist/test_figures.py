import io

import numpy as np
from PIL import Image

from pipeline.mnist.figures import (
    accuracies_figure,
    arranged,
    epochs_animation,
    epochs_figure,
    mosaic,
    network_frontier_figure,
    pooled,
    reconstruction_figure,
    weights_figure,
)


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def sparse(n: int = 40, *, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    W = rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.05)
    return W.astype(np.float32)


class TestArranged:
    def test_alive_outputs_stand_in_the_order_of_their_strongest_inputs(self):
        W = np.zeros((4, 5))
        W[3, 0], W[0, 0], W[1, 2], W[0, 4], W[3, 4] = 1.0, 0.5, 0.3, -2.0, 1.5
        left = arranged(W, W)
        wanted = [[-2.0, 0, 0.5], [0, 0.3, 0], [1.5, 0, 1.0]]  # inputs 0, 1, 3; outputs 4, 2, 0
        np.testing.assert_array_equal(left, wanted)

    def test_earlier_weights_are_arranged_as_the_last_ones(self):
        early, last = sparse(seed=1), sparse(seed=2)
        left = arranged(early, last)
        assert left.shape == arranged(last, last).shape
        assert set(left.ravel()) <= set(early.ravel())

    def test_weights_that_are_all_zero_stay_as_they_are(self):
        W = sparse()
        np.testing.assert_array_equal(arranged(W, np.zeros_like(W)), W)


class TestPooled:
    def test_a_cell_shows_the_weight_of_largest_size_with_its_sign(self):
        W = np.zeros((320, 480))
        W[0, 0], W[1, 2], W[319, 479], W[318, 477] = 0.2, -0.9, 0.4, -0.1
        left = pooled(W)
        assert left.shape == (160, 160)
        assert left[0, 0] == -0.9
        assert left[159, 159] == 0.4
        assert np.count_nonzero(left) == 2

    def test_few_weights_are_all_shown(self):
        W = sparse()
        np.testing.assert_array_equal(pooled(W), W)


class TestEpochs:
    def epochs(self, n: int) -> dict[int, np.ndarray]:
        return {i: sparse() * i / n for i in range(1, n + 1)}

    def test_the_strip_shows_the_first_and_the_last_and_few_between(self):
        epochs = self.epochs(30)
        shown = titles(epochs_figure(epochs, threshold=0.1, names=("h1", "h2")))
        numbers = [int(title.split(":")[0].removeprefix("epoch ")) for title in shown]
        assert len(numbers) == 8
        assert (numbers[0], numbers[-1]) == (1, 30)
        assert numbers == sorted(set(numbers))
        assert shown[-1] == f"epoch 30: {(np.abs(epochs[30]) > 0.1).sum()}"

    def test_of_few_epochs_all_are_shown(self):
        assert len(titles(epochs_figure(self.epochs(3), threshold=0.1, names=("a", "b")))) == 3

    def test_the_animation_has_a_picture_an_epoch(self):
        picture = Image.open(io.BytesIO(epochs_animation(self.epochs(5), threshold=0.1)))
        assert picture.format == "GIF"
        assert picture.n_frames == 5


def test_weights_of_neurons_and_of_features_are_counted_in_their_titles():
    neurons, features = sparse(20), sparse(60, seed=1)
    figure = weights_figure(neurons, features, threshold=0.1, names=("h1", "h2"))
    for title, W in zip(titles(figure), (neurons, features), strict=True):
        assert f"{(np.abs(W) > 0.1).sum():,} of {W.size:,} above 0.1" in title


def test_large_activations_are_counted_above_their_bars():
    h, z = np.array([0.31, 0.29, 0.0]), np.array([0.0, 1.0, 0.3, 0.5])
    figure = reconstruction_figure(np.eye(4), h, h * 0.9, z, large=0.3, title="a test image: 4")
    assert titles(figure)[1:] == ["1 of 3 neurons above 0.3", "2 of 4 features above 0.3"]


def test_every_accuracy_is_written_at_its_point():
    found = {"classifier: as it is": 0.95, "SAE: h1": 0.9, "simulated: cut": 0.5}
    groups = ("classifier", "SAE", "connector", "simulated")
    axes = accuracies_figure(found, groups=groups).axes[0]
    assert [text.get_text() for text in axes.texts] == ["95.0%", "90.0%", "50.0%"]
    (points,) = (c for c in axes.collections if len(c.get_offsets()) == 3)
    np.testing.assert_array_equal(points.get_offsets()[:, 0], [0.95, 0.9, 0.5])


def test_networks_stand_where_their_weights_and_accuracies_are():
    lines = {"cut": [(300, 0.9, "0.01"), (100, 0.8, "0.1")]}
    figure = network_frontier_figure(
        lines, original=0.95, allowed=0.02, marks={"S2, one connector": 458}
    )
    (axes,) = figure.axes
    drawn = next(one for one in axes.lines if one.get_label() == "cut")
    np.testing.assert_array_equal(drawn.get_xydata(), [[100, 0.8], [300, 0.9]])
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["the classifier: 95.0%", "S2, one connector: 458", "cut"]
    assert [text.get_text() for text in axes.texts] == ["0.1", "0.01"]


def test_a_mosaic_has_each_image_at_its_place_and_blanks_where_there_is_none():
    one, two = np.ones((2, 2)), np.full((2, 2), 2.0)
    whole = mosaic([[one], [one, two]])
    assert whole.shape == (8, 8)
    np.testing.assert_array_equal(whole[1:3, 1:3], one)
    np.testing.assert_array_equal(whole[5:7, 5:7], two)
    assert whole.sum() == 2 * 4 + 8
