"""S2's experiment: can features and sparse connectors stand in for the layers of a classifier?

A classifier of digits learns; its three hidden layers become a store; tied and untied SAEs learn
from the store, and connectors between them. Then the classifier is run by features alone. Whatever
is in the folder already, from the same config and images, is used again.
"""

import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pipeline.connect.connector import Connector
from pipeline.device import pick_device
from pipeline.mnist.classifier import LAYERS, quality
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.figures import Scene, draw
from pipeline.mnist.images import Images, open_images
from pipeline.mnist.network import (
    FeatureNetwork,
    accuracy,
    cut,
    network_figures,
    refit_all,
    sae_figures,
)
from pipeline.mnist.page import write_mnist_page
from pipeline.mnist.result import (
    Form,
    MnistResult,
    SaeFigures,
    enter_experiment,
    finished_result,
    save_result,
)
from pipeline.mnist.train import (
    KINDS,
    PAIRS,
    MnistProgress,
    OnProgress,
    Trained,
    baseline_connectors,
    train_everything,
)

Networks = dict[tuple[str, Form], FeatureNetwork]


def run_experiment(config: MnistConfig, *, on_progress: OnProgress | None = None) -> MnistResult:
    """Do all of it, into `config.out`; a complete experiment is read from there.

    Ctrl-C leaves what is done; the same call goes on.

    Raises:
        ConfigError: the images cannot be read, or `out` holds something else.
        CheckpointError: something in `out` is damaged, or the disk fails.
        DataError: a training diverged.
        StoreError: a store in `out` is damaged, or the disk fails.
    """
    began = time.perf_counter()
    config = replace(config, out=config.out.resolve())
    images, device = open_images(config.images), pick_device(config.device)
    enter_experiment(config, images)
    found = finished_result(config.out)
    if found is not None:
        return replace(found, config=config, reused=True)

    def tell(progress: MnistProgress) -> None:
        if on_progress is not None:
            on_progress(progress)

    trained = train_everything(config, images, device=device, tell=tell)
    tell(MnistProgress(stage="figures", step=0, n_steps=1))
    networks: Networks = {
        (name, form): network
        for name, form, network in _networks(config, images, trained, device=device)
    }
    result = _measured(config, images, trained, networks, device=device)
    result = replace(result, seconds=time.perf_counter() - began)
    scene = Scene(config=config, images=images, trained=trained, networks=networks, result=result)
    write_mnist_page(scene, draw(scene))
    save_result(config.out, result)
    return result


def _networks(
    config: MnistConfig, images: Images, trained: Trained, *, device: torch.device
) -> Iterator[tuple[str, Form, FeatureNetwork]]:
    """Every set of connectors, and each that was trained in all its forms."""
    whole = FeatureNetwork(
        net=trained.net,
        coders=tuple(trained.coders[config.sae, layer] for layer in LAYERS),
        connectors=(),
    )
    x, _ = images.train.tensors(device)
    latents = whole.latents(x)
    for name, connectors in _connectors(config, trained).items():
        shapes: dict[Form, tuple[Connector, ...]] = {
            "trained": connectors,
            "cut": tuple(cut(one, config.threshold) for one in connectors),
            "refitted": refit_all(
                connectors, latents, threshold=config.threshold, seed=config.seed
            ),
        }
        for form, these in shapes.items():
            yield name, form, replace(whole, connectors=these)
    for name, these in baseline_connectors(config, trained.store, device=device).items():
        yield name, "trained", replace(whole, connectors=these)


def _connectors(config: MnistConfig, trained: Trained) -> dict[str, tuple[Connector, ...]]:
    """Trained connectors of all pairs by the name of what sets them apart."""
    found: dict[str, list[Connector]] = {}
    for planned, connector in trained.connectors:
        found.setdefault(planned.name, []).append(connector)
    assert all(len(connectors) == len(PAIRS) for connectors in found.values())
    return {name: tuple(connectors) for name, connectors in found.items()}


def _measured(
    config: MnistConfig,
    images: Images,
    trained: Trained,
    networks: Networks,
    *,
    device: torch.device,
) -> MnistResult:
    x, labels = images.test.tensors(device)
    loss, right = quality(trained.net, images.test)
    between = [layer.weight for layer in trained.net.linear[1:-1]]
    return MnistResult(
        config=config,
        images=images.name,
        images_fingerprint=images.fingerprint,
        n_train=len(images.train),
        n_test=len(images.test),
        loss=loss,
        accuracy=right,
        train_accuracy=quality(trained.net, images.train)[1],
        neuron_weights=tuple(int((W.abs() > config.threshold).sum()) for W in between),
        n_neuron_weights=between[0].numel(),
        saes=tuple(_saes(trained, x, labels)),
        networks=tuple(
            network_figures(name, form, network, x, labels, threshold=config.threshold)
            for (name, form), network in networks.items()
        ),
        seconds=0.0,
    )


def _saes(
    trained: Trained, x: Float[Tensor, "n d_in"], labels: Int[Tensor, " n"]
) -> Iterator[SaeFigures]:
    for kind in KINDS:
        coders = tuple(trained.coders[kind, layer] for layer in LAYERS)
        network = FeatureNetwork(net=trained.net, coders=coders, connectors=())
        hidden = trained.net.hidden(x)
        for i, layer in enumerate(LAYERS):
            right = accuracy(network.spliced(x, layer=i + 1), labels)
            yield sae_figures(kind, layer, coders[i], hidden[i], accuracy_spliced=right)
