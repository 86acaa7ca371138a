"""Sums over millions of tokens that do not lose the last ones, context by context."""

from collections import defaultdict
from typing import final

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

Columns = dict[str, np.ndarray]
"""`[contexts]` sums in float64, by name."""


def exact(values: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """These values in float64: on their own device, or on the CPU where it has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def zeros(*shape: int, device: torch.device) -> Float64[Tensor, "..."]:
    """A float64 accumulator, where `exact` puts its values."""
    return exact(torch.zeros(shape, device=device))


def sum_kept(
    values: Float[Tensor, "contexts rows"], kept: Bool[Tensor, "contexts rows"]
) -> Float64[Tensor, " contexts"]:
    """Sums over the rows of each context that are kept, whatever the others hold."""
    wide = exact(values)
    return wide.where(kept.to(wide.device), 0.0).sum(-1)


@final
class ContextSums:
    """Sums of each context, batch after batch: 8 bytes a name and context, on the CPU."""

    def __init__(self) -> None:
        self._parts: defaultdict[str, list[Tensor]] = defaultdict(list)

    def add(self, name: str, values: Float64[Tensor, " contexts"]) -> None:
        """Take in the sums of the next contexts."""
        self._parts[name].append(values.cpu())

    def all(self) -> Columns:
        """What was taken in so far."""
        return {name: torch.cat(parts).numpy() for name, parts in self._parts.items()}
