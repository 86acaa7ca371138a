"""S2's experiment: can features and sparse connectors stand in for the layers of a classifier?

A classifier of digits learns; its three hidden layers become a store; tied and untied SAEs learn
from the store, and connectors between them. Then the classifier is run by features alone. Whatever
is in the folder already, from the same config and images, is used again.
"""

import time
from dataclasses import replace

import torch

from pipeline.device import pick_device
from pipeline.mnist.classifier import LAYERS, accuracy, quality
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.images import Images, open_images
from pipeline.mnist.network import (
    FeatureNetwork,
    cut,
    network_figures,
    refit_all,
    refit_together,
    sae_figures,
)
from pipeline.mnist.page import Exhibit, show
from pipeline.mnist.result import (
    Form,
    MnistResult,
    SaeFigures,
    enter_experiment,
    finished_result,
    save_result,
)
from pipeline.mnist.train import Trained, baselines, train_everything
from pipeline.progress import OnProgress, Progress
from pipeline.runs.folder import training_in

Networks = dict[tuple[str, Form], FeatureNetwork]


def run_experiment(config: MnistConfig, *, on_progress: OnProgress | None = None) -> MnistResult:
    """Do all of it, into `config.out`; a complete experiment is read from there.

    Ctrl-C leaves what is done; the same call goes on.

    Raises:
        ConfigError: the images cannot be read, or `out` holds something else, or is worked on by
            another process.
        CheckpointError: something in `out` is damaged, or the disk fails.
        DataError: a training diverged.
        StoreError: a store in `out` is damaged, or the disk fails.
    """
    began = time.perf_counter()
    config = replace(config, out=config.out.resolve())
    images, device = open_images(config.images), pick_device(config.device)
    enter_experiment(config, images)
    done = finished_result(config.out)
    if done is not None:
        return replace(done, config=config, reused=True)
    with training_in(config.out):
        result = _made(config, images, device=device, tell=on_progress or (lambda _: None))
        result = replace(result, seconds=time.perf_counter() - began)
        save_result(config.out, result)
    return result


def _made(
    config: MnistConfig, images: Images, *, device: torch.device, tell: OnProgress
) -> MnistResult:
    trained = train_everything(config, images, device=device, tell=tell)
    tell(Progress(stage="figures", done=0, total=1, unit="pages"))
    networks = _networks(config, images, trained, device=device)
    result = _measured(config, images, trained, networks, device=device)
    show(Exhibit(images=images, trained=trained, networks=networks, result=result))
    return result


def _networks(
    config: MnistConfig, images: Images, trained: Trained, *, device: torch.device
) -> Networks:
    """Every set of connectors, and each that was trained in all its forms."""
    whole = FeatureNetwork(net=trained.net, saes=trained.saes[config.sae], connectors=())
    x, _ = images.train.tensors(device)
    latents, threshold = whole.latents(x), config.threshold
    networks: Networks = {}
    for name, these in trained.connectors.items():
        refitted = refit_all(these, latents, threshold=threshold, seed=config.seed)
        networks[name, "trained"] = replace(whole, connectors=these)
        networks[name, "cut"] = replace(
            whole, connectors=tuple(cut(one, threshold) for one in these)
        )
        each = replace(whole, connectors=refitted)
        networks[name, "refitted"] = refit_together(each, x, seed=config.seed)
    for name, these in baselines(config, trained, device=device).items():
        networks[name, "trained"] = replace(whole, connectors=these)
    return networks


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
    figures, hidden = list[SaeFigures](), trained.net.hidden(x)
    for kind, saes in trained.saes.items():
        network = FeatureNetwork(net=trained.net, saes=saes, connectors=())
        for i, layer in enumerate(LAYERS):
            spliced = accuracy(network.spliced(x, layer=i + 1), labels)
            figures.append(sae_figures(kind, layer, saes[i], hidden[i], accuracy_spliced=spliced))
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
        saes=tuple(figures),
        networks=tuple(
            network_figures(name, form, network, x, labels, threshold=config.threshold)
            for (name, form), network in networks.items()
        ),
        seconds=0.0,
    )
