"""Matrices of a frozen model, their weights quantised to 8 or 4 bits by bitsandbytes.

    8bit    blocks of 256 weights, to the 256 values of dynamic quantisation (Dettmers et al. 2022)
    4bit    blocks of 64 weights, to the 16 values of NF4 (Dettmers et al. 2023, QLoRA)

A block is scaled by its largest weight, a float32. Products are of the weights that these stand
for, made anew for each and then dropped, in the numbers that the model computes in: activations are
not quantised, and their gradient is that of these weights.
"""

import logging
from collections.abc import Generator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast, final

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.config.stages import Quantize
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from torch.autograd.function import FunctionCtx

BLOCKS: dict[Quantize, int] = {"8bit": 256, "4bit": 64}
"""Weights that share a scale."""


def require_quantizer() -> None:
    """What quantises must be there.

    Raises:
        ConfigError: it is not installed.
    """
    if find_spec("bitsandbytes") is None:
        raise ConfigError(
            "quantised weights take bitsandbytes, which is not installed: type "
            "pip install 'saepipe[quantize]', or leave out --quantize"
        )


@cache
def _functions() -> Any:  # noqa: ANN401 - it has no types
    """Of bitsandbytes, which warns of kernels that are not used here as it is imported."""
    logger = logging.getLogger("bitsandbytes")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        from bitsandbytes import functional
    finally:
        logger.setLevel(before)
    return functional


@final
class QuantizedLinear(nn.Module):
    """`y = x W^T + b`, or `x W + b` of a family that keeps matrices so, with W in few bits.

    Args:
        plain: What it stands for, on torch's meta device: a `Linear`, or GPT-2's `Conv1D`.
        quantize: Of how many bits.

    Raises:
        ConfigError: what quantises is not installed.
    """

    def __init__(self, plain: nn.Module, quantize: Quantize) -> None:
        super().__init__()
        require_quantizer()
        weight = plain.get_parameter("weight")
        self._plain = [plain]  # in a list: it is no part of this module
        self._quantize: Quantize = quantize
        self.transposed = not isinstance(plain, nn.Linear)
        self.dtype, self.shape = weight.dtype, weight.shape
        n, block = weight.numel(), BLOCKS[quantize]
        self.bias = cast("nn.Parameter | None", plain.bias)
        self.packed: UInt8[Tensor, "bytes one"]
        self.scales: Float[Tensor, " blocks"]
        self.code: Float[Tensor, " values"]
        shape = weight.shape if quantize == "8bit" else (-(-n // 2), 1)
        self.register_buffer("packed", torch.empty(shape, dtype=torch.uint8, device="meta"))
        self.register_buffer("scales", torch.empty(-(-n // block), device="meta"))
        self.register_buffer("code", torch.empty(256 if quantize == "8bit" else 16, device="meta"))

    @torch.no_grad()
    def hold(self, weight: Float[Tensor, "rows columns"]) -> None:
        """Quantise these weights, where they are, and compute with them in their numbers."""
        bnb, block = _functions(), BLOCKS[self._quantize]
        if self._quantize == "8bit":
            self.packed, state = bnb.quantize_blockwise(weight, blocksize=block)
        else:
            self.packed, state = bnb.quantize_4bit(weight, blocksize=block, quant_type="nf4")
        self.scales, self.code, self.dtype = state.absmax, state.code, weight.dtype

    def weight_held(self) -> Float[Tensor, "rows columns"]:
        """The weights that the few bits stand for."""
        bnb, block = _functions(), BLOCKS[self._quantize]
        state = bnb.QuantState(
            self.scales, shape=self.shape, code=self.code, blocksize=block, dtype=self.dtype,
            quant_type=None if self._quantize == "8bit" else "nf4",
        )  # fmt: skip
        if self._quantize == "8bit":
            return bnb.dequantize_blockwise(self.packed, state)
        return bnb.dequantize_4bit(self.packed, state)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_out"]:
        """The product; for the gradient of `x` nothing is kept."""
        return _Product.apply(x, self)

    def plain(self) -> nn.Module:
        """A module of the class this stands for, with the weights it computes with."""
        made = deepcopy(self._plain[0])
        made.weight = nn.Parameter(self.weight_held(), requires_grad=False)
        made.register_parameter("bias", self.bias)
        return made


class _Product(torch.autograd.Function):
    """`x W^T + b`, and in the backward pass `g W`: W is made twice."""

    @staticmethod
    def forward(ctx: "FunctionCtx", x: Tensor, of: QuantizedLinear) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.of = of  # pyright: ignore[reportAttributeAccessIssue]
        W = of.weight_held()
        return F.linear(x, W.T if of.transposed else W, of.bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        (gradient,), W = grad_outputs, ctx.of.weight_held()
        return (gradient @ W.T if ctx.of.transposed else gradient @ W), None


@contextmanager
def plain_weights(module: nn.Module) -> Generator[None]:
    """Within the block, what is quantised in a module has its weights whole: they can be trained.

    The model computes the same; afterwards it is as it was.
    """
    found = {
        path: part for path, part in module.named_modules() if isinstance(part, QuantizedLinear)
    }
    try:
        for path, part in found.items():
            module.set_submodule(path, part.plain())
        yield
    finally:
        for path, part in found.items():
            module.set_submodule(path, part)
