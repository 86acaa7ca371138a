"""Llama Scope's folders, and those of its library, Language-Model-SAEs, now Llamascopium.

    hyperparams.json, checkpoints/final.safetensors     as published for Llama 3.1 8B
    config.json, sae_weights.safetensors                as the library writes

Rows are scaled to a mean norm of the square root of their width; that is folded into the weights,
so that latents are as large as in training. `b_dec` is only added. The threshold of the published
ones is one number, in the unit of latents of rows that are not scaled.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config.architectures import ArchConfig, JumpReluConfig, ReluConfig, TopKConfig
from pipeline.errors import CheckpointError
from pipeline.formats.files import Files
from pipeline.formats.foreign_sae import (
    Asked,
    ForeignSAE,
    Weights,
    one_of,
    relu_like,
    told,
    topk_like,
)
from pipeline.formats.tensor_files import read_settings, read_tensors
from pipeline.lm.paths import site_of

PUBLISHED = ("hyperparams.json", "checkpoints/final.safetensors")
WRITTEN = ("config.json", "sae_weights.safetensors")
KINDS: dict[str, type[ArchConfig]] = {
    "relu": ReluConfig, "jumprelu": JumpReluConfig, "topk": TopKConfig,
}  # fmt: skip
_NAMES = {
    "W_E": "W_enc", "W_D": "W_dec", "b_E": "b_enc", "b_D": "b_dec",
    "encoder.bias": "b_enc", "decoder.bias": "b_dec",
}  # fmt: skip
_MEAN = "dataset_average_activation_norm"


def read(files: Files, asked: Asked) -> ForeignSAE:
    """The SAE of such a folder.

    Raises:
        CheckpointError: it is damaged, or of a kind that we do not have.
    """
    published = PUBLISHED[0] in files.names
    settings, file = PUBLISHED if published else WRITTEN
    path = files.path(file)
    cfg, tensors = read_settings(files.path(settings)), read_tensors(path)
    hook = str(cfg.get("hook_point_in") or "")
    if (
        cfg.get("hook_point_out", hook) != hook
        or str(cfg.get("sae_type") or "sae") != "sae"
        or cfg.get("use_glu_encoder")
    ):
        one_of({}, "transcoder", source=path)
    kind = one_of(KINDS, str(cfg.get("act_fn") or "jumprelu").lower(), source=path)
    found: dict[str, Any] = {
        ours: tensors[name] for name, ours in _NAMES.items() if name in tensors
    }
    for name, ours in (("encoder.weight", "W_enc"), ("decoder.weight", "W_dec")):
        if isinstance(matrix := tensors.get(name), Tensor) and matrix.ndim == 2:
            found[ours] = matrix.T
    if lacking := [name for name in ("W_enc", "W_dec", "b_enc") if name not in found]:
        have = ", ".join(sorted(tensors)[:8]) or "nothing"
        raise CheckpointError(f"{path} lacks what is {lacking[0]} here: it holds {have}")
    weights = Weights(source=path, **found)
    scale = _scale(cfg, tensors, d_in=weights.W_dec.shape[1], path=path)
    if kind == "jumprelu":
        weights.threshold = _threshold(cfg, tensors, weights, scale, path)
    if cfg.get("apply_decoder_bias_to_pre_encoder") is not True:
        weights.centre()
    notes = _norms(cfg, kind, weights)
    weights.scale_input(scale)
    arch = relu_like(weights.norms()) if kind == "relu" else KINDS[kind]()
    if kind == "topk":
        arch = topk_like(TopKConfig, cfg.get("top_k"), source=path)
    return told(
        weights.made(arch),
        site=site_of(hook),
        hook=hook,
        model="meta-llama/Llama-3.1-8B" if published else str(cfg.get("model_name") or ""),
        notes=notes,
    )


def _scale(cfg: Mapping[str, Any], tensors: Mapping[str, Any], *, d_in: int, path: object) -> float:
    """What rows are multiplied by before they are encoded."""
    if (norm := cfg.get("norm_activation", "dataset-wise")) == "inference":
        return 1.0
    means: Any = cfg.get(_MEAN)
    mean: Any = means.get("in") if isinstance(means, Mapping) else means
    kept = tensors.get(f"{_MEAN}.{cfg.get('hook_point_in')}")
    mean = float(kept) if isinstance(kept, Tensor) and kept.numel() == 1 else mean
    good = isinstance(mean, int | float) and not isinstance(mean, bool) and 0 < mean < math.inf
    if norm != "dataset-wise" or not good:
        raise CheckpointError(
            f"{path}: its rows are normalised {norm}, and their mean norm "
            f"({_MEAN}) is {mean!r}: save it with fold_activation_scale=True"
        )
    return d_in**0.5 / float(mean)


def _threshold(
    cfg: Mapping[str, Any], tensors: Mapping[str, Any], weights: Weights, scale: float, path: object
) -> Tensor:
    """In the unit of pre-activations of scaled rows."""
    names = ("activation_function.log_jumprelu_threshold", "log_jumprelu_threshold")
    log = next((tensors[name] for name in names if name in tensors), None)
    if isinstance(log, Tensor):
        threshold = log.double().exp()
    else:
        told = cfg.get("jump_relu_threshold")
        if isinstance(told, bool) or not isinstance(told, int | float):
            raise CheckpointError(f"{path}: its jump_relu_threshold is {told!r}")
        threshold = torch.tensor(float(told), dtype=torch.float64) * scale
    if _counts_norms(cfg):
        threshold = threshold / weights.norms()
    return threshold


def _counts_norms(cfg: Mapping[str, Any]) -> bool:
    """Whether latents are compared times the lengths of their rows; the published ones are not."""
    return bool(
        cfg.get("sparsity_include_decoder_norm", "hook_point_in" in cfg and "act_fn" in cfg)
    )


def _norms(cfg: Mapping[str, Any], kind: str, weights: Weights) -> tuple[str, ...]:
    """Where the largest latents are those times the lengths of their rows, let them be so."""
    if kind != "topk" or not _counts_norms(cfg):
        return ()
    weights.fold_norms(weights.norms())
    return ("its latents are times as large as their rows are long, which they are ranked by",)
