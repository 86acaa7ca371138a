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
from pipeline.lm.families import Family
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
        self, wanted: Iterable[str], *, family: Family, device: torch.device, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        """Tensors by their name in the model."""
        return dict(self.read(wanted, family=family, device=device, dtype=dtype))

    def read(
        self, wanted: Iterable[str], *, family: Family, device: torch.device, dtype: torch.dtype
    ) -> Iterator[tuple[str, Tensor]]:
        """Tensors with their name in the model, one by one, file by file.

        A file is opened again for each, since what was read of an open one counts as memory.
        """
        paths: dict[str, Path] = {}

        def tensor(key: str) -> Tensor:
            file = self.file_of[key]
            paths[file] = paths.get(file) or self.files.need(file)
            with _opened(paths[file]) as opened:
                return opened.get_tensor(key).to(device, dtype, copy=True)

        keys_of = {name: self._keys(name, family) for name in wanted}
        for name in sorted(keys_of, key=lambda name: self.file_of[keys_of[name][0][0]]):
            if keys_of[name] == [[key := keys_of[name][0][0]]]:
                yield name, tensor(key)
            else:
                yield (
                    name,
                    _stacked(
                        (torch.cat([*map(tensor, its)]) for its in keys_of[name]),
                        n=len(keys_of[name]),
                    ),
                )

    def _keys(self, name: str, family: Family) -> list[list[str]]:
        """What a tensor is called in the checkpoint; of one of all experts, the matrices of each.

        Transformers 5 holds the experts of a layer together, and checkpoints keep them apart.
        """
        spellings = list(_spellings(name, family))
        for key in spellings:
            if key in self.file_of:
                return [[key]]
        lacking = name
        for key in spellings:
            experts, _, matrix = key.rpartition(".")
            its = family.experts.get(matrix, ())
            keys: list[list[str]] = []
            while its and f"{experts}.{len(keys)}.{its[0]}.weight" in self.file_of:
                keys.append([f"{experts}.{len(keys)}.{one}.weight" for one in its])
            absent = [one for row in keys for one in row if one not in self.file_of]
            if keys and not absent:
                return keys
            lacking = absent[0] if absent else lacking
        raise ModelError(f"the checkpoint of {self.files.name} lacks the tensor {lacking}")


def _spellings(name: str, family: Family) -> Iterator[str]:
    """What checkpoints call a tensor of the model, the likeliest first."""
    inside = name.removeprefix(f"{family.prefix}.")
    yield name
    yield inside  # a checkpoint saved from the base model lacks the prefix
    if name != inside:
        yield from (f"{prefix}.{inside}" for prefix in family.other_prefixes)
    for now, before in family.renamed.items():
        if now in name:
            yield name.replace(now, before)
            yield inside.replace(now, before)
    if name in HEADS:
        yield from HEADS


def _stacked(tensors: Iterator[Tensor], *, n: int) -> Tensor:
    """One tensor of `n`, without a second copy of all of them."""
    first = next(tensors)
    stacked = first.new_empty(n, *first.shape)
    stacked[0] = first
    for i, one in enumerate(tensors, start=1):
        stacked[i] = one
    return stacked


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
