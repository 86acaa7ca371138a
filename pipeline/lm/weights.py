"""The tensors of a checkpoint, read one by one from lazily opened safetensors files."""

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.lm.hub import ModelFiles, read_object

_SINGLE = "model.safetensors"
HEADS = ("lm_head.weight", "embed_out.weight")
"""GPT-NeoX's head is the second in checkpoints like Pythia's, and in transformers 4."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Which file holds which tensor; no file is fetched before one of its tensors is wanted."""

    files: ModelFiles
    file_of: Mapping[str, str]

    @classmethod
    def locate(cls, files: ModelFiles) -> "Weights":
        """Read the index of a sharded checkpoint, or the header of a single file."""
        index = files.find("model.safetensors.index.json")
        if index is not None:
            file_of = read_object(index).get("weight_map")
            if not isinstance(file_of, dict):
                raise ModelError(f"{index} does not say which file holds what: save it again")
            return cls(files=files, file_of=file_of)
        path = files.find(_SINGLE)
        if path is None:
            raise ModelError(
                f"model {files.name}, revision {files.revision}, has no {_SINGLE}, and pickled "
                "weights are not read: load it with transformers and save_pretrained() it once"
            )
        with _opened(path) as file:
            return cls(files=files, file_of=dict.fromkeys(file.keys(), _SINGLE))

    def load(
        self, wanted: Iterable[str], *, prefix: str, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Tensors by their name in the model."""
        return dict(self.read(wanted, prefix=prefix, device=device, dtype=dtype))

    def read(
        self, wanted: Iterable[str], *, prefix: str, device: torch.device, dtype: torch.dtype
    ) -> Iterator[tuple[str, Tensor]]:
        """Tensors with their name in the model, one by one.

        A file is opened again for each, since what was read of an open one counts as memory.
        """
        keys_in: dict[str, dict[str, str]] = {}
        for name in wanted:
            # A checkpoint saved from the base model lacks the prefix that the whole model has.
            spellings = (name, name.removeprefix(f"{prefix}."), *(HEADS if name in HEADS else ()))
            key = next((spelling for spelling in spellings if spelling in self.file_of), None)
            if key is None:
                raise ModelError(f"the checkpoint of {self.files.name} lacks the tensor {name}")
            keys_in.setdefault(self.file_of[key], {})[name] = key
        for filename, keys in keys_in.items():
            path = self.files.need(filename)
            for name, key in keys.items():
                with _opened(path) as file:
                    tensor = file.get_tensor(key).to(device, dtype, copy=True)
                yield name, tensor


@contextmanager
def _opened(path: Path) -> Generator[Any]:
    try:
        with path.open("rb"):  # safetensors says of what may not be read that it is not there
            pass
    except PermissionError as error:
        raise ModelError(
            f"{path} may not be read ({error.strerror}): have its owner type chmod a+r {path}"
        ) from error
    try:
        with safe_open(path, "pt") as file:
            yield file
    except SafetensorError as error:
        raise ModelError(f"{path} is damaged: {error}") from error
