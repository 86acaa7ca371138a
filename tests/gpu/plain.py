"""What saepipe's steps are held against: the same architectures by autograd and fused Adam.

Whole matrices, no constraint on norms, no clipping, no dead latents, no schedule, no log. With
`torch.autocast` in bf16, else in float32. Each loss is that of a batch `x` `[B, d]`; `E` is
`[F, d]`, as `W`.
"""

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.functional import linear

K, L1, PRICE, THRESHOLD, BANDWIDTH = 32, 1e-3, 1e-3, 0.1, 0.5


def relu(x: Tensor, E: Tensor, b_enc: Tensor, W: Tensor, b_dec: Tensor, _: Tensor) -> Tensor:
    z = torch.relu(linear(x - b_dec, E, b_enc))
    return error(z, x, W, b_dec) + L1 * z.sum(1).mean()


def topk(x: Tensor, E: Tensor, b_enc: Tensor, W: Tensor, b_dec: Tensor, _: Tensor) -> Tensor:
    pre = torch.relu(linear(x - b_dec, E, b_enc))
    values, places = pre.topk(min(K, pre.shape[1]), dim=1, sorted=False)
    return error(torch.zeros_like(pre).scatter_(1, places, values), x, W, b_dec)


def batchtopk(x: Tensor, E: Tensor, b_enc: Tensor, W: Tensor, b_dec: Tensor, _: Tensor) -> Tensor:
    pre = torch.relu(linear(x - b_dec, E, b_enc))
    values, places = pre.flatten().topk(K * len(x), sorted=False)
    z = torch.zeros_like(pre).flatten().scatter_(0, places, values).view_as(pre)
    return error(z, x, W, b_dec)


class Jump(torch.autograd.Function):
    """1 above the threshold, which gets the estimated gradient of Rajamanoharan et al. (2024)."""

    @staticmethod
    def forward(ctx, pre: Tensor, threshold: Tensor) -> Tensor:
        ctx.save_for_backward(pre, threshold)
        return (pre > threshold).to(pre.dtype)

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> tuple[None, Tensor]:
        pre, threshold = ctx.saved_tensors
        near = (pre - threshold).abs() < BANDWIDTH / 2
        return None, -(grad_outputs[0] * near).sum(0).to(threshold.dtype) / BANDWIDTH


def jumprelu(x: Tensor, E: Tensor, b_enc: Tensor, W: Tensor, b_dec: Tensor, log: Tensor) -> Tensor:
    pre = linear(x - b_dec, E, b_enc)
    on = Jump.apply(pre, log.exp())
    return error(pre * on, x, W, b_dec) + PRICE * on.sum(1).mean()


def error(z: Tensor, x: Tensor, W: Tensor, b_dec: Tensor) -> Tensor:
    """Mean over rows of the squared error."""
    return (torch.addmm(b_dec, z, W) - x).float().square().sum(1).mean()


LOSSES = {"relu": relu, "topk": topk, "batchtopk": batchtopk, "jumprelu": jumprelu}


def stepper(kind: str, d: int, F: int, *, device: torch.device, bf16: bool) -> Callable[..., None]:
    """A function that takes one step on a batch."""
    W = torch.nn.functional.normalize(torch.randn(F, d, device=device), dim=1)
    zero, low = torch.zeros(F, device=device), torch.full((F,), THRESHOLD, device=device).log()
    params = [W.clone(), zero, W, torch.zeros(d, device=device), low]
    for p in params if kind == "jumprelu" else params[:-1]:
        p.requires_grad_()
    trained = [p for p in params if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-4, fused=True)

    def step(x: Tensor) -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext():
            loss = LOSSES[kind](x, *params)
        loss.backward()
        optimizer.step()

    return step
