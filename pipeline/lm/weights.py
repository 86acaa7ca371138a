"""The tensors of a checkpoint, read one by one from lazily opened safetensors files."""

import json
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pipeline.errors import ModelError
from pipeline.lm.hub import ModelFiles

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
HEADS = ("lm_head.weight", "embed_out.weight")
"""GPT-NeoX's head is the second in checkpoints like Pythia's, and in transformers 4."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Which file holds which tensor; no file is fetched before one of its tensors is wanted."""

    files: ModelFiles
    file_of: Mapping[str, str]

    @classmethod
    def locate(cls, files: ModelFiles) -> "Weights":
        """Read the index of a sharded checkpoint, or the header of a single file.

        Raises:
            ModelError: the model has no safetensors weights, or the file is damaged.
        """
        index = files.find(_INDEX)
        if index is not None:
            return cls(files=files, file_of=json.loads(index.read_text())["weight_map"])
        path = files.find(_SINGLE)
        if path is None:
            raise ModelError(
                f"model {files.name}, revision {files.revision}, has no {_SINGLE}, and pickled "
                "weights are not read: load it with transformers and save_pretrained() it once"
            )
        try:
            with safe_open(path, "pt") as file:
                return cls(files=files, file_of=dict.fromkeys(file.keys(), _SINGLE))
        except SafetensorError as error:
            raise ModelError(f"{path} is damaged: {error}") from error

    def load(
        self, wanted: Iterable[str], *, prefix: str, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Read tensors by their name in the model, with or without the base model's prefix.

        Raises:
            ModelError: a tensor is missing or a file is damaged.
        """
        by_file: dict[str, list[tuple[str, str]]] = {}
        for name in wanted:
            key = self._key(name, prefix=prefix)
            by_file.setdefault(self.file_of[key], []).append((name, key))
        loaded: dict[str, Tensor] = {}
        with ExitStack() as stack:
            for filename, pairs in by_file.items():
                path = self.files.need(filename)
                try:
                    file = stack.enter_context(safe_open(path, "pt"))
                    for name, key in pairs:
                        loaded[name] = file.get_tensor(key).to(device, dtype, copy=True)
                except SafetensorError as error:
                    raise ModelError(f"{path} is damaged: {error}") from error
        return loaded

    def _key(self, name: str, *, prefix: str) -> str:
        for key in _spellings(name, prefix=prefix):
            if key in self.file_of:
                return key
        raise ModelError(f"the checkpoint of {self.files.name} lacks the tensor {name}")


def _spellings(name: str, *, prefix: str) -> tuple[str, ...]:
    """A checkpoint saved from the base model lacks the prefix that the whole model has."""
    return (name, name.removeprefix(f"{prefix}."), *(HEADS if name in HEADS else ()))
