"""Sums over millions of tokens that do not lose the last ones."""

import torch
from jaxtyping import Float, Float64
from torch import Tensor


def exact(values: Float[Tensor, "*shape"]) -> Float64[Tensor, "*shape"]:
    """These values in float64: on their own device, or on the CPU where it has no float64."""
    return (values.cpu() if values.device.type == "mps" else values).double()


def zeros(n: int, *, device: torch.device) -> Float64[Tensor, " n"]:
    """A float64 accumulator of `n` sums, where `exact` puts its values."""
    return exact(torch.zeros(n, device=device))


def ratio(above: float, below: float) -> float | None:
    """`above / below`; None where `below` is zero."""
    return above / below if below else None
