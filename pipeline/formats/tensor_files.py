"""Tensors and settings out of files of strangers: nothing in them is run, nothing huge is made.

A pickle is opened by what torch has for weights alone. What an archive or a header claims is held
to the bytes that are there before memory is taken for it. All that is wrong is one line.
"""

import json
import math
import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, cast

import numpy as np
import torch
from numpy.lib import format as npy
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.errors import CheckpointError

SETTINGS_LIMIT = 2**24
"""Bytes of a file of settings, at most."""
SMALL = 2**24
"""Bytes that an archive may claim however small it is."""
RATIO = 20
"""Else so many times its own: weights that were learned hardly compress."""


def read_settings(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        CheckpointError: it holds none, or is far too large for settings.
    """
    try:
        if (size := path.stat().st_size) > SETTINGS_LIMIT:
            raise CheckpointError(f"{path} has {size:,} bytes, which are no settings of an SAE")
        told: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON that can be read: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if not isinstance(told, dict):
        raise CheckpointError(
            f"{path} must hold settings by name, and holds a {type(told).__name__}"
        )
    return told


def read_tensors(path: Path) -> dict[str, Any]:
    """What a file of weights holds by name: tensors, on the CPU, and what else stands beside them.

    Raises:
        CheckpointError: it cannot be read, is no such file, or claims more than it holds.
    """
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        if path.suffix == ".npz":
            return dict(_arrays(path))
        return _checked_pickle(path)
    except CheckpointError:
        raise
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is not there") from error
    except (
        OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, RuntimeError,
        MemoryError, RecursionError, IndexError, NotImplementedError, OverflowError,
        pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError, TokenError,
    ) as error:  # fmt: skip
        why = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(error, pickle.UnpicklingError):
            why = "its pickle holds more than weights, and nothing else is run"
        raise CheckpointError(f"{path} cannot be read as weights: {why}") from error


# --- numpy -----------------------------------------------------------------------------------


def _arrays(path: Path) -> Iterator[tuple[str, Tensor]]:
    with zipfile.ZipFile(path) as archive:
        _require_plausible(path, archive)
        for entry in archive.infolist():
            with archive.open(entry) as opened:
                yield entry.filename.removesuffix(".npy"), _array(opened, entry, path)


def _array(opened: IO[bytes], entry: zipfile.ZipInfo, path: Path) -> Tensor:
    """One member: its header must ask for just the bytes that follow it."""
    major, _ = npy.read_magic(opened)
    head = npy.read_array_header_1_0 if major == 1 else npy.read_array_header_2_0
    shape, fortran, dtype = head(opened)
    if dtype.kind not in "fiub":
        raise CheckpointError(f"{path} holds {entry.filename} of numpy's type {dtype}, no numbers")
    n_bytes = math.prod(shape) * dtype.itemsize
    if n_bytes != entry.file_size - opened.tell():
        raise CheckpointError(
            f"{path} claims {list(shape)} for {entry.filename}, which holds {entry.file_size:,} "
            "bytes"
        )
    values = np.frombuffer(opened.read(n_bytes), dtype)
    native = values.astype(dtype.newbyteorder("="))
    return torch.from_numpy(native.reshape(shape, order="F" if fortran else "C"))


def _require_plausible(path: Path, archive: zipfile.ZipFile) -> None:
    """Raise CheckpointError where an archive would unpack to far more than it is."""
    size, claimed = path.stat().st_size, sum(entry.file_size for entry in archive.infolist())
    if claimed > max(SMALL, RATIO * size):
        raise CheckpointError(
            f"{path} has {size:,} bytes and would unpack to {claimed:,}: weights do not compress "
            "like that"
        )


# --- torch -----------------------------------------------------------------------------------


def _checked_pickle(path: Path) -> dict[str, Any]:
    """A file of `torch.save`: a pickle that may name tensors, and nothing else is called.

    Of an archive, tensors stay in the file until they are used: what lies behind one is then never
    more than the file has.
    """
    is_archive = zipfile.is_zipfile(path)
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            _require_plausible(path, archive)
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{path} is compressed, which no file of torch.save is")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of how a file was written, which is not ours to change
        told: object = torch.load(path, map_location="cpu", weights_only=True, mmap=is_archive)
    if not isinstance(told, Mapping):
        raise CheckpointError(f"{path} holds a {type(told).__name__}, not tensors by name")
    size = path.stat().st_size
    for tensor in _tensors_in(told):
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{path} holds a tensor that is not an array of numbers")
        if (claimed := tensor.numel() * tensor.element_size()) > size:
            raise CheckpointError(
                f"{path} has {size:,} bytes, and {claimed:,} are claimed for a tensor of "
                f"{list(tensor.shape)}"
            )
    return {str(name): value for name, value in cast("Mapping[Any, Any]", told).items()}


def _tensors_in(value: object) -> Iterator[Tensor]:
    waiting, seen = [value], set[int]()
    while waiting:
        one: Any = waiting.pop()
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, Mapping | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            waiting += list(one.values()) if isinstance(one, Mapping) else list(one)
