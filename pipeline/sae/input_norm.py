"""Rows normalised one by one, before they are encoded; and what was taken from them put back.

    layer_norm:     (x - mean) / (std + 1e-5)       x_hat * std + mean, std with n - 1
    constant_norm:  x sqrt(d) / |x|                 x_hat |x| / sqrt(d)

As SAELens does (`normalize_activations`: layer_norm, constant_norm_rescale), and OpenAI's SAEs do.
Ours are trained on rows as they are: an SAE that has this was imported.
"""

from typing import assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.config.architectures import InputNorm

EPS = 1e-5


def centre_of(norm: InputNorm, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]:
    """What is taken from each row."""
    if norm == "layer_norm":
        return x.mean(-1, keepdim=True)
    return torch.zeros_like(x[..., :1])


def scale_of(norm: InputNorm, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch 1"]:
    """What is written for a row is multiplied by."""
    match norm:
        case "none":
            return torch.ones_like(x[..., :1])
        case "layer_norm":
            return x.std(-1, keepdim=True)
        case "constant_norm":
            return torch.linalg.vector_norm(x, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        case _:
            assert_never(norm)


def normalised(norm: InputNorm, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
    """Rows as they are encoded."""
    if norm == "none":
        return x
    scale = scale_of(norm, x)
    if norm == "layer_norm":
        return (x - centre_of(norm, x)) / (scale + EPS)
    return x / scale.clamp_min(torch.finfo(x.dtype).tiny)


def restored(
    norm: InputNorm, x_hat: Float[Tensor, "*batch d_in"], x: Float[Tensor, "*batch d_in"]
) -> Float[Tensor, "*batch d_in"]:
    """What was reconstructed of the normalised rows of `x`, as rows like these."""
    if norm == "none":
        return x_hat
    return x_hat * scale_of(norm, x) + centre_of(norm, x)
