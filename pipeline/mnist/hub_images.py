"""Images from a dataset of the hub, at the commit that its main branch has now."""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from pipeline.errors import ConfigError
from pipeline.hub_errors import explained

_TIMEOUT = 10.0  # seconds until the hub counts as unreachable
_SPLITS = ("train", "test")

Set = tuple[UInt8[np.ndarray, "n height width"], Int64[np.ndarray, " n"]]


def load_hub_images(name: str) -> dict[str, Set]:
    """Gray pixels and labels of the splits `train` and, if there is one, `test`.

    No code that comes with a dataset is ever run.

    Raises:
        ConfigError: the hub cannot be reached or has no such dataset, or it holds no images with
            labels.
    """
    import datasets
    from huggingface_hub import HfApi

    datasets.disable_progress_bars()
    with _explained(name):
        commit = HfApi().dataset_info(name, timeout=_TIMEOUT).sha
        found: Any = datasets.load_dataset(name, revision=commit)
        sets = {split: read_split(found[split], where=name) for split in _SPLITS if split in found}
    if "train" not in sets:
        raise ConfigError(f"dataset {name} has no split train; it has {', '.join(found)}")
    return sets


def read_split(dataset: Any, *, where: str) -> Set:  # noqa: ANN401 its class is imported late
    """The images of a split as one array, and their labels.

    Raises:
        ConfigError: it has no such columns, or images of several sizes.
    """
    if not {"image", "label"} <= set(dataset.column_names):
        columns = ", ".join(map(repr, dataset.column_names)) or "none"
        raise ConfigError(
            f"dataset {where} has no columns 'image' and 'label'; its columns are {columns}"
        )
    pixels = [np.asarray(image.convert("L")) for image in dataset["image"]]
    sizes = {image.shape for image in pixels}
    if len(sizes) != 1:
        raise ConfigError(f"dataset {where} has images of {len(sizes)} sizes: one is needed")
    labels: Iterable[int] = dataset["label"]
    return np.stack(pixels), np.array([*labels], np.int64)


@contextmanager
def _explained(name: str) -> Generator[None]:
    """Turn what the hub's clients raise into one line each."""
    from huggingface_hub import errors

    with explained(f"dataset {name}", raises=ConfigError):
        try:
            yield
        except (errors.HFValidationError, errors.LocalEntryNotFoundError):
            raise
        except (FileNotFoundError, ValueError, RuntimeError) as error:
            first = str(error).strip().partition("\n")[0] or type(error).__name__
            raise ConfigError(f"dataset {name} cannot be read: {first}") from error
