from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.connect.connector import Connector
from pipeline.mnist.classifier import (
    Classifier,
    Dropout,
    accuracy,
    quality,
    store_activations,
    train_classifier,
)
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.figures import digit_shares, pixel_slope, told
from pipeline.mnist.network import (
    FeatureNetwork,
    above,
    connector_figures,
    cut,
    fvu,
    network_figures,
    refit,
    refit_all,
    refit_together,
    sae_figures,
)
from pipeline.mnist.result import fvu_words
from tests.helpers.images import SIDE, make_labelled, make_network
from tests.helpers.stores import column


def numbers(module) -> dict[str, np.ndarray]:
    return {name: p.detach().double().numpy() for name, p in module.state_dict().items()}


def relu(x: np.ndarray) -> np.ndarray:
    return np.maximum(x, 0)


class Plain:
    """The same network in float64, as its formulas say."""

    def __init__(self, network):
        self.layers = [numbers(layer) for layer in network.net.linear]
        self.coders = [numbers(coder) for coder in network.saes]
        self.connectors = [numbers(connector) for connector in network.connectors]

    def hidden(self, x: np.ndarray) -> list[np.ndarray]:
        found = []
        for i in range(3):
            x = self.layer(i, x)
            found.append(x)
        return found

    def encode(self, i: int, h: np.ndarray) -> np.ndarray:
        c = self.coders[i]
        return relu((h - c["b_dec"]) @ c["W_enc"] + c["b_enc"])

    def decode(self, i: int, z: np.ndarray) -> np.ndarray:
        return z @ self.coders[i]["W_dec"] + self.coders[i]["b_dec"]

    def reconstructed(self, i: int, h: np.ndarray) -> np.ndarray:
        return self.decode(i, self.encode(i, h))

    def connect(self, i: int, z: np.ndarray) -> np.ndarray:
        return relu(z @ self.connectors[i]["W"] + self.connectors[i]["b"])

    def last(self, h3: np.ndarray) -> np.ndarray:
        return h3 @ self.layers[3]["weight"].T + self.layers[3]["bias"]

    def layer(self, i: int, h: np.ndarray) -> np.ndarray:
        return relu(h @ self.layers[i]["weight"].T + self.layers[i]["bias"])


@pytest.fixture
def scene():
    network, images = make_network(), make_labelled()
    x, labels = images.tensors(torch.device("cpu"))
    return network, Plain(network), x, labels


def close(found: torch.Tensor, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-4, atol=1e-5)


def test_the_simulated_network_encodes_once_and_never_computes_neurons_again(scene):
    network, plain, x, _ = scene
    z1 = plain.encode(0, plain.hidden(x.double().numpy())[0])
    z2 = plain.connect(0, z1)
    z3 = plain.connect(1, z2)
    for found, wanted in zip(network.simulated_latents(x), (z1, z2, z3), strict=True):
        close(found, wanted)
    close(network.simulated(x), plain.last(plain.decode(2, z3)))


def test_a_replaced_layer_comes_from_true_features_and_later_layers_are_neurons(scene):
    network, plain, x, _ = scene
    h1, h2, _ = plain.hidden(x.double().numpy())
    second = plain.decode(1, plain.connect(0, plain.encode(0, h1)))
    close(network.replaced(x, layer=2), plain.last(plain.layer(2, second)))
    third = plain.decode(2, plain.connect(1, plain.encode(1, h2)))
    close(network.replaced(x, layer=3), plain.last(third))


def test_a_spliced_layer_is_its_own_reconstruction(scene):
    network, plain, x, _ = scene
    h1, h2, h3 = plain.hidden(x.double().numpy())
    second = plain.layer(1, plain.reconstructed(0, h1))
    close(network.spliced(x, layer=1), plain.last(plain.layer(2, second)))
    third = plain.layer(2, plain.reconstructed(1, h2))
    close(network.spliced(x, layer=2), plain.last(third))
    close(network.spliced(x, layer=3), plain.last(plain.reconstructed(2, h3)))


def test_cutting_leaves_what_is_counted_and_nothing_else():
    W = torch.tensor([[0.1, -0.1001, 0.0], [0.5, -0.05, -2.0]])
    connector = Connector(W, torch.tensor([1.0, 2.0, 3.0]), activation="linear")
    assert above(connector, 0.1).tolist() == [[False, True, False], [True, False, True]]
    left = cut(connector, 0.1)
    torch.testing.assert_close(left.W, torch.tensor([[0, -0.1001, 0], [0.5, 0, -2.0]]))
    assert left.b.tolist() == [1, 2, 3]
    assert left.activation == "linear"
    torch.testing.assert_close(connector.W, W)


class TestFigures:
    def test_every_figure_of_an_sae_is_its_formula_in_float64(self, scene):
        network, plain, x, _ = scene
        h = plain.hidden(x.double().numpy())[0]
        z = plain.encode(0, h)
        error = (h - plain.decode(0, z)) ** 2
        figures = sae_figures(
            "relu", "h1", network.saes[0], network.net.hidden(x)[0], accuracy_spliced=0.5
        )
        rms = np.sqrt((h**2).mean())
        means = {
            "rms": rms,
            "l1": z.mean(),
            "mse": error.mean(),
            "l1_scaled": z.mean() / rms,
            "mse_scaled": error.mean() / rms**2,
            "fvu": error.sum() / ((h - h.mean(0)) ** 2).sum(),
        }
        counts = {
            "n_alive": (z > 0).any(0).sum(),
            "l0": (z > 0).sum(1).mean(),
            "neurons_large": (h > 0.3).sum(1).mean(),
            "features_large": (z > 0.3).sum(1).mean(),
        }
        for wanted, rel in ((means, 1e-5), (counts, None)):
            found = {name: getattr(figures, name) for name in wanted}
            assert found == pytest.approx(wanted, rel=rel)
        assert figures.n_alive < z.shape[1] and figures.accuracy == 0.5

    def test_every_figure_of_connectors_is_its_formula_in_float64(self, scene):
        network, plain, x, _ = scene
        hidden = plain.hidden(x.double().numpy())
        z = [plain.encode(i, h) for i, h in enumerate(hidden)]
        network.connectors[0].W[:3] = 0
        plain = Plain(network)
        figures = connector_figures(network.connectors, network.latents(x), threshold=0.2)
        for i, one in enumerate(figures):
            W = plain.connectors[i]["W"]
            error = (z[i + 1] - plain.connect(i, z[i])) ** 2
            spread = ((z[i + 1] - z[i + 1].mean(0)) ** 2).sum()
            assert (one.source, one.target) == (f"h{i + 1}", f"h{i + 2}")
            assert one.l1 == pytest.approx(np.abs(W).mean(), rel=1e-5)
            assert one.mse == pytest.approx(error.mean(), rel=1e-4)
            assert one.fvu == pytest.approx(error.sum() / spread, rel=1e-4)
            assert one.n_above == (np.abs(W) > 0.2).sum()
            assert one.n_nonzero == (W != 0).sum() == W.size - (1 - i) * 3 * W.shape[1]

    def test_accuracies_are_those_of_each_way_to_run_the_network(self, scene):
        network, _, x, labels = scene
        figures = network_figures("l1=1", "cut", network, x, labels, threshold=0.1)
        right = [accuracy(network.simulated(x), labels)]
        right += [accuracy(network.replaced(x, layer=layer), labels) for layer in (2, 3)]
        assert [figures.accuracy, *figures.accuracy_replaced] == right
        assert (figures.name, figures.form) == ("l1=1", "cut")
        assert figures.n_above == sum(one.n_above for one in figures.connectors)

    def test_accuracy_is_the_share_of_largest_logits(self):
        logits = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.0, 5.0]])
        assert accuracy(logits, torch.tensor([1, 0, 0])) == pytest.approx(2 / 3)

    def test_of_what_is_constant_no_share_is_defined(self):
        constant = torch.ones(3, 2)
        assert fvu(constant, constant) is None
        silent = Connector(torch.zeros(2, 2), torch.zeros(2))
        with torch.no_grad():
            told = connector_figures([silent], [constant, constant], threshold=0.1)
        assert fvu_words([*told, *told], between=" ", digits=2) == "- -"


class TestRefit:
    def rows(self, *, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        z = torch.rand(512, 6, generator=generator)
        return z * (torch.rand(512, 6, generator=generator) < 0.4)

    def test_shrunken_weights_come_back_and_none_is_added(self):
        true = torch.zeros(6, 4)
        true[0, 0], true[1, 1], true[2, 1], true[5, 3] = 1.0, 0.8, -0.5, 0.6
        z1 = self.rows()
        z2 = (z1 @ true).relu()
        start = Connector(0.6 * true + 0.05, torch.zeros(4))  # small weights where none belong
        again = refit(start, z1, z2, threshold=0.2)
        torch.testing.assert_close(again.W, true, atol=0.01, rtol=0)
        assert torch.equal(again.W != 0, true != 0)
        assert not again.W.requires_grad

    def test_each_is_fitted_to_what_the_one_before_predicts(self):
        z1 = self.rows()
        z2 = torch.cat([z1[:, :3], self.rows(seed=1)[:, :3]], 1)  # the last three no one can tell
        z3 = z1[:, :3] + z2[:, 3:]
        connected = torch.diag(torch.tensor([1.0, 1, 1, 0, 0, 0]))
        both = torch.cat([torch.eye(3), torch.eye(3)])
        connectors = [Connector(W, torch.zeros(W.shape[1])) for W in (connected, both)]
        first, second = refit_all(connectors, [z1, z2, z3], threshold=0.1)
        z2_hat = first(z1)
        assert float(z2_hat[:, 3:].std(0).max()) == 0  # a constant: nothing is connected there
        alone = refit(connectors[1], z2, z3, threshold=0.1)
        fitted, without = fvu(z3, second(z2_hat)), fvu(z3, alone(z2_hat))
        assert fitted is not None
        assert without is not None
        assert fitted < 0.9 * without
        assert torch.equal(second.W, refit(connectors[1], z2_hat, z3, threshold=0.1).W)

    def test_the_same_seed_gives_the_same_bits(self):
        z1 = self.rows()
        start = Connector(torch.full((6, 4), 0.5), torch.zeros(4))
        first, second = (refit(start, z1, z1[:, :4], threshold=0.1) for _ in range(2))
        assert torch.equal(first.W, second.W)
        assert torch.equal(start.W, torch.full((6, 4), 0.5))

    def test_together_they_give_the_logits_and_stay_what_they_are_named_after(self, monkeypatch):
        network, x = make_network(hidden=12), make_labelled(300).tensors(torch.device("cpu"))[0]
        connectors = tuple(cut(one, 0.1) for one in network.connectors)
        start = replace(network, connectors=connectors)
        clean, latents = network.net(x).log_softmax(-1), network.latents(x)

        def divergence(simulated: FeatureNetwork) -> float:
            found = simulated.simulated(x).detach().log_softmax(-1)
            return float((clean.exp() * (clean - found)).sum(-1).mean())

        def unexplained(simulated: FeatureNetwork) -> float:
            found = fvu(latents[1], simulated.simulated_latents(x)[1].detach())
            assert found is not None
            return found

        monkeypatch.setattr("pipeline.mnist.network.TOGETHER_STEPS", 500)
        faithful, twice = (refit_together(start, x) for _ in range(2))
        monkeypatch.setattr("pipeline.mnist.network.FEATURES", 0.0)
        free = refit_together(start, x)
        assert divergence(free) < 0.1 * divergence(start)
        assert unexplained(faithful) < 0.5 * unexplained(free)
        assert unexplained(faithful) < unexplained(start)
        for again in (free, faithful):
            for before, after in zip(connectors, again.connectors, strict=True):
                assert not (after.W[before.W == 0]).any()
                assert not after.W.requires_grad
        for a, b in zip(faithful.connectors, twice.connectors, strict=True):
            assert torch.equal(a.W, b.W)


class TestClassifier:
    def config(self, tmp_path, **changes) -> MnistConfig:
        settings = {"hidden": 16, "epochs": 12, "batch_size": 16, "lr": 5e-3, "dropout": 0.0}
        return MnistConfig(out=tmp_path, **(settings | changes))

    def test_it_learns_to_tell_patterns_apart(self, tmp_path):
        losses = []
        net = train_classifier(
            make_labelled(400), self.config(tmp_path), device=torch.device("cpu"),
            on_epoch=lambda epoch, loss: losses.append((epoch, loss)),
        )  # fmt: skip
        loss, right = quality(net, make_labelled(100, seed=1))
        assert right > 0.9
        assert [epoch for epoch, _ in losses] == list(range(1, 13))
        assert losses[-1][1] < 0.3 < losses[0][1]
        assert loss < 1

    def test_the_same_seed_gives_the_same_bits_and_another_does_not(self, tmp_path):
        torch.manual_seed(5)  # nothing is drawn from it

        def weights(**changes):
            config = self.config(tmp_path, epochs=2, **changes)
            net = train_classifier(make_labelled(), config, device=torch.device("cpu"))
            return net.linear[2].weight

        assert torch.equal(weights(dropout=0.3), weights(dropout=0.3))
        assert not torch.equal(weights(), weights(seed=1))
        assert not torch.equal(weights(), weights(dropout=0.3))
        assert not torch.equal(weights(), weights(weight_decay=5.0))

    def test_it_is_adamw_at_a_rate_that_falls_to_nothing(self, tmp_path):
        images, config = make_labelled(64), self.config(tmp_path, epochs=3)
        learned = train_classifier(images, config, device=torch.device("cpu"))
        x, labels = images.tensors(torch.device("cpu"))
        net, order = Classifier(SIDE**2, 16, seed=0), torch.Generator().manual_seed(0)
        adam = torch.optim.AdamW(net.parameters(), config.lr, weight_decay=config.weight_decay)
        falls = torch.optim.lr_scheduler.LambdaLR(adam, lambda epoch: 1 - epoch / 3)
        for _ in range(3):
            for rows in torch.randperm(64, generator=order).split(16):
                adam.zero_grad()
                torch.nn.functional.cross_entropy(net(x[rows]), labels[rows]).backward()
                adam.step()
            falls.step()
        torch.testing.assert_close(learned.state_dict(), net.state_dict())

    def test_neurons_that_dropout_leaves_make_up_for_the_others(self):
        h = torch.ones(400, 100)
        left = Dropout(0.3, seed=0, device=torch.device("cpu"))(h)
        assert float((left == 0).float().mean()) == pytest.approx(0.3, abs=0.01)
        assert float(left.mean()) == pytest.approx(1.0, abs=0.01)

    def test_its_quality_is_the_mean_cross_entropy_and_the_share_of_right_answers(self):
        net, images = Classifier(SIDE**2, 6, seed=1).requires_grad_(False), make_labelled()
        logits = net(torch.from_numpy(images.rows)).double().numpy()
        log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        loss, right = quality(net, images)
        assert loss == pytest.approx(-log_p[np.arange(len(images)), images.labels].mean())
        assert right == pytest.approx((logits.argmax(1) == images.labels).mean())

    def test_the_store_holds_each_hidden_layer_of_each_image_beside_its_digit(self, tmp_path):
        net, images = Classifier(SIDE**2, 6).requires_grad_(False), make_labelled(50)
        path = tmp_path / "a.actstore"
        for _ in range(2):  # the second finds it whole
            store = store_activations(path, net, images, name="here")
        place = column(store, "context_id")
        assert store.spec.source["text"] == "here"
        hidden = net.hidden(torch.from_numpy(images.rows))
        for layer, h in zip(("h1", "h2", "h3"), hidden, strict=True):
            np.testing.assert_array_equal(column(store, layer), h.numpy()[place])
        np.testing.assert_array_equal(column(store, "token_id"), images.labels[place])


class TestPictures:
    def test_the_slope_is_what_a_little_more_of_a_pixel_adds(self, scene):
        network, _, x, _ = scene
        net, coder = network.net.double(), network.saes[1].double()
        x = x[:5].double()
        for feature in (1, 2, 3):
            found = pixel_slope(net, coder, x, feature, layer=1)
            for pixel in (0, 12, 24):
                step = torch.zeros_like(x)
                step[:, pixel] = 1e-6
                up, down = (coder.pre(net.hidden(at)[1])[:, feature] for at in (x + step, x - step))
                assert found[pixel] == pytest.approx(float((up - down).mean()) / 2e-6, abs=1e-6)

    def test_shares_divide_each_features_activation_among_the_digits(self):
        z = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0], [0.0, 0.0, 6.0]])
        shares = digit_shares(z, np.array([7, 2, 7]))
        wanted = np.zeros((3, 10))
        wanted[0, 7], wanted[0, 2], wanted[2, 7] = 0.25, 0.75, 1.0
        np.testing.assert_allclose(shares, wanted)

    @pytest.mark.parametrize(
        ("shares", "words"),
        [({2: 0.75, 7: 0.25}, "2 (75%)"), ({1: 0.4, 4: 0.35, 9: 0.25}, "1, 4 (75%)"),
         ({}, "never active")],
    )  # fmt: skip
    def test_a_feature_is_named_by_the_digits_it_is_active_on(self, shares, words):
        share = np.zeros(10)
        for digit, value in shares.items():
            share[digit] = value
        assert told(share) == words
