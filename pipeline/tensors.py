"""Tensors of a run in one safetensors file, by whose checksum the run is complete."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from actstore.files import write_file
from pipeline.errors import CheckpointError


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write them, whole or not at all; gives the file's SHA-256.

    Raises:
        OSError: the disk is full or fails.
    """
    data = save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()})
    write_file(path, [data])
    return hashlib.sha256(data).hexdigest()


def load_tensors(path: Path, *, sha256: str, advice: str) -> dict[str, Tensor]:
    """Read them, every byte checked.

    Args:
        path: The file.
        sha256: What its bytes must come to.
        advice: What to do where they do not.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        data = path.read_bytes()
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ValueError("its checksum does not match run.json")  # noqa: TRY301
        return load(data)
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{path} is missing or damaged ({error}): {advice}") from error
