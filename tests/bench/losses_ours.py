"""Our losses and gradients for given weights and rows, by the names that the peers answer in."""

from dataclasses import dataclass

import numpy as np
import torch
from losses_given import AUX, D_IN, D_SAE, L1, WIDTHS, Arrays

from pipeline.config.architectures import (
    ArchConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    ReluConfig,
    TopKConfig,
)
from pipeline.sae.architecture import architecture_of
from pipeline.sae.sae import SAE
from pipeline.sae.stack import Stack, stacked


@dataclass(frozen=True, kw_only=True)
class Learned:
    """A loss and its gradients, by our names."""

    loss: float
    grads: Arrays

    def __sub__(self, other: "Learned") -> "Learned":
        grads = {name: g - other.grads[name] for name, g in self.grads.items()}
        return Learned(loss=self.loss - other.loss, grads=grads)

    def times(self, share: float) -> "Learned":
        grads = {name: share * g for name, g in self.grads.items()}
        return Learned(loss=share * self.loss, grads=grads)


def arch_of(case: str, given: Arrays) -> ArchConfig:
    k, bandwidth = int(given["k"]), float(given["bandwidth"])
    coefficient = float(given["coefficient"]) / D_IN  # ours is per squared norm of a row
    return {
        "relu": ReluConfig(l1=L1),
        "relu-april": ReluAprilConfig(l1=L1),
        "gated": GatedConfig(l1=L1),
        "topk": TopKConfig(k=k, aux_coefficient=AUX),
        "batchtopk": BatchTopKConfig(k=k, aux_coefficient=AUX),
        "matryoshka": MatryoshkaConfig(k=k, prefixes=len(WIDTHS), aux_coefficient=AUX),
        "jumprelu": JumpReluConfig(coefficient=coefficient, bandwidth=bandwidth),
    }[case]


def stack_of(arch: ArchConfig, given: Arrays, dtype: torch.dtype) -> Stack:
    """One coder with the given weights, by way of its state as it would be loaded."""
    coder = SAE(arch, d_in=D_IN, d_sae=D_SAE).to(dtype)
    state = coder.state_dict()
    for name, held in state.items():
        weight = given[name.removeprefix("activation.")]
        if weight.shape == held.shape:  # not the one threshold of BatchTopK
            held.copy_(torch.from_numpy(weight))
    if arch.kind == "gated":
        state["b_enc"].zero_()
    kind = architecture_of(arch, d_in=D_IN, d_sae=D_SAE)
    return Stack(stacked([coder], kind), kind)


def learn(
    arch: ArchConfig, given: Arrays, *, penalised: bool = False, dead: np.ndarray | None = None
) -> tuple[list[Learned], np.ndarray]:
    """By all pairs in float64 and by the active ones in float32; and `x_hat - x` of the former."""
    found: list[Learned] = []
    residuals: list[np.ndarray] = []
    for dtype, sparse in ((torch.float64, False), (torch.float32, True)):
        stack = stack_of(arch, given, dtype)
        parts = stack.learn(
            torch.from_numpy(given["x"]).to(dtype),
            coefficient=torch.tensor([stack.arch.coefficient * penalised], dtype=dtype),
            dead=None if dead is None else torch.from_numpy(dead)[None],
            sparse=sparse,
        )
        grads = {name: stack.grads[name][0].double().numpy() for name in stack.arch.trained}
        grads["W_enc"] = grads.pop("E").T
        if "log_threshold" in grads:
            grads["threshold"] = grads.pop("log_threshold") / given["threshold"]
        found.append(Learned(loss=parts.total.item(), grads=grads))
        residuals.append(parts.residual[0].numpy())
    return found, residuals[0]
