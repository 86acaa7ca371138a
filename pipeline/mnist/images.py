"""Labelled images of digits: what `--images` means.

    digits          scikit-learn's 1,797 images of 8 x 8 pixels, which come with it
    org/name        a dataset of the hub with columns `image` and `label`, as ylecun/mnist
    PATH            IDX files: a folder of them, or one file of images with its labels beside it

Where there are images for testing they are used for nothing else. Where there is one set alone, a
fifth of it is set apart by an order that is the same for every seed of the experiment.
"""

import gzip
import hashlib
import math
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from torch import Tensor

from pipeline.errors import ConfigError
from pipeline.text.hub import dataset_explained

DIGITS = "digits"
N_CLASSES = 10
TEST_SHARE = 5
"""One image in so many is for testing, where the source does not say which are."""
_ORDER = 0
"""Seed of which they are."""
_DIGITS_SIDE, _DIGITS_INK = 8, 16
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+", re.ASCII)
_TIMEOUT = 10.0  # seconds until the hub counts as unreachable
_SPLITS = ("train", "test")
_UNSIGNED_BYTES = 8


@dataclass(frozen=True, kw_only=True, eq=False)
class Labelled:
    """Images in a fixed order, each with the digit that it shows."""

    pixels: Float32[np.ndarray, "n side side"]
    """From 0 to 1."""
    labels: Int64[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def rows(self) -> Float32[np.ndarray, "n d_in"]:
        """Each image as one row."""
        return self.pixels.reshape(len(self), -1)

    def tensors(
        self, device: torch.device
    ) -> tuple[Float32[Tensor, "n d_in"], Int64[Tensor, " n"]]:
        """Rows and labels."""
        return torch.from_numpy(self.rows).to(device), torch.from_numpy(self.labels).to(device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Images:
    """Images to learn from, and others to measure on."""

    name: str
    train: Labelled
    test: Labelled

    @property
    def side(self) -> int:
        """Pixels of an image's edge."""
        return self.train.pixels.shape[1]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all pixels and labels."""
        digest = hashlib.sha256()
        for part in (self.train, self.test):
            digest.update(part.pixels.tobytes())
            digest.update(part.labels.tobytes())
        return digest.hexdigest()


def open_images(name: str) -> Images:
    """The images of this name.

    Raises:
        ConfigError: there are none of this name, or they cannot be read.
    """
    path = Path(name).expanduser()
    if name == DIGITS:
        sets = {"train": _digits()}
    elif path.exists():
        sets = _read_idx_sets(path)
    elif _HUB_ID.fullmatch(name):
        sets = load_hub_images(name)
    else:
        raise ConfigError(
            f"there are no images {name!r}: --images takes {DIGITS}, the path of IDX files, or a "
            "hub dataset as ylecun/mnist"
        )
    if len(sets) == 1:
        sets = _split(*sets.values())
    train, test = sets["train"], sets["test"]
    if not len(train) or not len(test):
        raise ConfigError(
            f"{name} has {len(train)} images to learn from and {len(test)} to test on: some of "
            "each are needed"
        )
    if train.pixels.shape[1:] != test.pixels.shape[1:]:
        raise ConfigError(f"{name} has images of two sizes: they must be of one")
    return Images(name=name, train=train, test=test)


def labelled(
    pixels: UInt8[np.ndarray, "n height width"], labels: Int64[np.ndarray, " m"], *, where: str
) -> Labelled:
    """Bytes as pixels from 0 to 1, each with its label."""
    n, height, width = pixels.shape
    if height != width:
        raise ConfigError(f"{where} has images of {height} x {width} pixels: they must be square")
    if n != len(labels):
        raise ConfigError(f"{where} has {n} images and {len(labels)} labels: as many are needed")
    if n and not 0 <= labels.min() <= labels.max() < N_CLASSES:
        raise ConfigError(
            f"{where} has labels from {labels.min()} to {labels.max()}: they must be 0 to 9"
        )
    return Labelled(pixels=pixels.astype(np.float32) / 255, labels=labels)


def _split(whole: Labelled) -> dict[str, Labelled]:
    """One set as two: every fifth image of a fixed order is for testing."""
    order = np.random.default_rng(_ORDER).permutation(len(whole))
    n_test = len(whole) // TEST_SHARE
    places = {"train": np.sort(order[n_test:]), "test": np.sort(order[:n_test])}
    return {
        part: Labelled(pixels=whole.pixels[rows], labels=whole.labels[rows])
        for part, rows in places.items()
    }


def _digits() -> Labelled:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            f"--images {DIGITS} needs scikit-learn: pip install 'saepipe[mnist]'"
        ) from error
    rows, labels = load_digits(return_X_y=True)
    pixels = np.asarray(rows, np.float32).reshape(-1, _DIGITS_SIDE, _DIGITS_SIDE) / _DIGITS_INK
    return Labelled(pixels=pixels, labels=np.asarray(labels, np.int64))


def _read_idx_sets(path: Path) -> dict[str, Labelled]:
    """From a file of images, or from a folder with one such file, or one for each purpose."""
    files = [path] if path.is_file() else sorted(path.glob("*images*idx3*"))
    sets = {
        "test" if file.name.startswith(("t10k", "test")) else "train": _read_set(file)
        for file in files
    }
    if len(files) not in (1, 2) or len(files) != len(sets):
        raise ConfigError(
            f"{path} has {len(files)} files of images by name (*images*idx3*): name one file, or "
            "a folder with train-images-idx3-ubyte.gz, t10k-images-idx3-ubyte.gz or both"
        )
    return sets


def _read_set(file: Path) -> Labelled:
    beside = file.with_name(file.name.replace("images", "labels").replace("idx3", "idx1"))
    if beside == file or not beside.exists():
        raise ConfigError(
            f"the labels of {file} are not there: they must lie beside it, as {beside.name}"
            if beside != file
            else f"the labels of {file} cannot be found: its name must hold images and idx3, as in "
            "train-images-idx3-ubyte.gz"
        )
    labels = read_idx(beside, n_dims=1).astype(np.int64)
    return labelled(read_idx(file, n_dims=3), labels, where=str(file))


def read_idx(path: Path, *, n_dims: int) -> UInt8[np.ndarray, "..."]:
    """The array of bytes in an IDX file, the format of MNIST, gzipped if its name ends in .gz.

    Two zero bytes, a type (8 is unsigned bytes), the number of dimensions, the size of each as 32
    bits with the high byte first, then the values (LeCun, Cortes and Burges, "The MNIST database").
    Images have 3 dimensions, labels 1.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error
    head = 4 + 4 * n_dims
    if len(data) < head or data[:4] != bytes((0, 0, _UNSIGNED_BYTES, n_dims)):
        raise ConfigError(
            f"{path} is no IDX file of bytes in {n_dims} dimensions: it begins with "
            f"{data[:4].hex(' ') or 'nothing'}, not with 00 00 08 {n_dims:02x}"
        )
    shape = tuple(int(size) for size in np.frombuffer(data, ">u4", n_dims, offset=4))
    expected, found = math.prod(shape), len(data) - head
    if found != expected:
        what = " x ".join(map(str, shape))
        raise ConfigError(f"{path} is damaged: {what} are {expected} bytes, and it holds {found}")
    return np.frombuffer(data, np.uint8, offset=head).reshape(shape)


def load_hub_images(name: str) -> dict[str, Labelled]:
    """The splits `train` and, if there is one, `test`, as they are now.

    No code that comes with a dataset is ever run.
    """
    import datasets
    from huggingface_hub import HfApi

    datasets.disable_progress_bars()
    with dataset_explained(name, name=name, raises=ConfigError):
        commit = HfApi().dataset_info(name, timeout=_TIMEOUT).sha
        found: Any = datasets.load_dataset(name, revision=commit)
        sets = {split: read_split(found[split], where=name) for split in _SPLITS if split in found}
    if "train" not in sets:
        raise ConfigError(f"dataset {name} has no split train; it has {', '.join(found)}")
    return sets


def read_split(dataset: Any, *, where: str) -> Labelled:  # noqa: ANN401 its class is imported late
    """The images of a split, in gray."""
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
    return labelled(np.stack(pixels), np.array([*labels], np.int64), where=where)
