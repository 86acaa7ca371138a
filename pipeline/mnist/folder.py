"""The experiment's folder: what it was begun with, the classifier, and the result.

experiment.json                config and images that everything in the folder is made from
classifier/layer-1.safetensors `weight` [out, in] and `bias`, and so on to 4
train.actstore  test.actstore  hidden layers h1, h2, h3
saes/  connectors/             runs, as saepipe train makes them
result.json                    written last: the experiment is complete
*.png  epochs.gif  report.html
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from actstore.files import make_folder, write_file, write_json
from pipeline.codec import from_json, to_json
from pipeline.errors import CheckpointError, ConfigError
from pipeline.mnist.classifier import Classifier, layer_file
from pipeline.mnist.config import MnistConfig
from pipeline.mnist.images import Images
from pipeline.mnist.result import MnistResult

EXPERIMENT, RESULT = "experiment.json", "result.json"
_FREE = {"out", "device"}
_WHOLE = "classifier.json"


@dataclass(frozen=True, kw_only=True)
class _Document:
    """experiment.json."""

    config: MnistConfig
    images_fingerprint: str


@dataclass(frozen=True, kw_only=True)
class _Checksums:
    """classifier/classifier.json, written after the layers."""

    sha256: tuple[str, ...]


def enter_experiment(config: MnistConfig, images: Images) -> None:
    """Make the folder, or find that it is this experiment's.

    Raises:
        ConfigError: it holds another experiment or something else.
        CheckpointError: its experiment.json is damaged.
    """
    file = config.out / EXPERIMENT
    now = _Document(config=config, images_fingerprint=images.fingerprint)
    if not file.exists():
        if config.out.exists() and (not config.out.is_dir() or any(config.out.glob("[!.]*"))):
            raise ConfigError(
                f"{config.out} exists and is no experiment of saepipe mnist: choose another --out"
            )
        make_folder(config.out)
        write_json(file, to_json(now))
        return
    found = _read(file)
    before, after = (cast("dict[str, object]", to_json(one.config)) for one in (found, now))
    changed = [
        f"{name}: {before[name]} there, {after[name]} now"
        for name in after
        if before[name] != after[name] and name not in _FREE
    ]
    if changed:
        raise ConfigError(
            f"{config.out} holds an experiment of another configuration ({'; '.join(changed)}): "
            "choose another --out"
        )
    if found.images_fingerprint != now.images_fingerprint:
        raise ConfigError(
            f"{config.out} holds an experiment on other images than {config.images} has now: "
            "choose another --out"
        )


def finished_result(out: Path) -> MnistResult | None:
    """The result that is there already.

    Raises:
        CheckpointError: result.json is damaged.
    """
    file = out / RESULT
    if not file.exists():
        return None
    try:
        return from_json(MnistResult, json.loads(file.read_bytes()), where=RESULT)
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(
            f"{file} is damaged ({error}): delete it, and the same command makes it again"
        ) from error


def save_result(out: Path, result: MnistResult) -> None:
    """Write it: from here on the experiment is complete.

    Raises:
        OSError: the disk is full or fails.
    """
    write_json(out / RESULT, to_json(result))


def save_classifier(folder: Path, net: Classifier) -> None:
    """Write each layer, and then that they are whole.

    Raises:
        OSError: the disk is full or fails.
    """
    make_folder(folder)
    checksums = list[str]()
    for index, layer in enumerate(net.linear, start=1):
        tensors = {"weight": layer.weight, "bias": layer.bias}
        data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()})
        write_file(layer_file(folder, index), [data])
        checksums.append(hashlib.sha256(data).hexdigest())
    write_json(folder / _WHOLE, to_json(_Checksums(sha256=tuple(checksums))))


def load_classifier(folder: Path, *, d_in: int, hidden: int) -> Classifier | None:
    """The classifier that is there; None where none was finished.

    Raises:
        CheckpointError: it is damaged.
    """
    if not (folder / _WHOLE).exists():
        return None
    net = Classifier(d_in, hidden)
    try:
        sums = from_json(_Checksums, json.loads((folder / _WHOLE).read_bytes()), where=_WHOLE)
        for index, (layer, sha256) in enumerate(zip(net.linear, sums.sha256, strict=True), start=1):
            data = layer_file(folder, index).read_bytes()
            if hashlib.sha256(data).hexdigest() != sha256:
                raise ValueError("a checksum does not match")  # noqa: TRY301
            layer.load_state_dict(load(data))
    except (OSError, ValueError, SafetensorError, ConfigError) as error:
        raise CheckpointError(
            f"the classifier in {folder} is damaged ({error}): choose another --out"
        ) from error
    return net.requires_grad_(False)


def fingerprint(net: Classifier) -> str:
    """SHA-256 of its weights."""
    digest = hashlib.sha256()
    for value in parameters(net):
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def parameters(net: Classifier) -> Sequence[torch.Tensor]:
    """Weights and biases, first layer to last."""
    return [p.detach() for layer in net.linear for p in (layer.weight, layer.bias)]


def _read(file: Path) -> _Document:
    try:
        return from_json(_Document, json.loads(file.read_bytes()), where=EXPERIMENT)
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{file} is damaged: {error}") from error
