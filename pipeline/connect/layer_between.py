"""The layer between the two sites as one affine map, `x2 = x1 @ A + a`: given, or fitted."""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float64
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.connect.least_squares import least_squares
from pipeline.connect.moments import Products
from pipeline.errors import ConfigError

RIDGE = 1e-7
"""So that the fit exists where activations are linearly dependent; elsewhere it is not felt."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Layer:
    """`x2 = x1 @ A + a`."""

    A: Float64[Tensor, "d_1 d_2"]
    a: Float64[Tensor, " d_2"]


def read_layer(path: Path, *, d_1: int, d_2: int) -> Layer:
    """The layer of a safetensors file as `nn.Linear` saves it: `weight` `[d_2, d_1]`, `bias`.

    A file without `bias` has none.

    Raises:
        ConfigError: There is no such file, or it holds no such layer.
    """
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"layer {path} cannot be read as safetensors: {error}") from error
    if "weight" not in tensors:
        held = ", ".join(sorted(tensors)) or "nothing"
        raise ConfigError(f"layer {path} needs a tensor named weight, and holds {held}")
    weight = tensors["weight"]
    bias = tensors.get("bias", torch.zeros(d_2))
    if weight.shape != (d_2, d_1) or bias.shape != (d_2,):
        raise ConfigError(
            f"layer {path} has a weight of {list(weight.shape)} and a bias of {list(bias.shape)}: "
            f"between sites of width {d_1} and {d_2} they are [{d_2}, {d_1}] and [{d_2}]"
        )
    return Layer(A=weight.T.double(), a=bias.double())


def fit_layer(activations: Products) -> Layer:
    """The affine map with the least squared error in `x2` over the sample.

    On the way from one point of a residual stream to a later one it is near the identity.
    """
    A, a = least_squares(activations, ridge=RIDGE)
    return Layer(A=A, a=a)
