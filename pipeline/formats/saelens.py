"""SAELens' folders: `cfg.json` and `sae_weights.safetensors`, of version 6 and of those before.

Read as `SAE.load_from_disk` of SAELens 6.54 reads them: settings of old versions by their old
names, what is not said as it is there by default. What it computes,

    z = f((norm(x) - b_dec) W_enc + b_enc)          x_hat = undo(z W_dec + b_dec)

with `b_dec` taken from the input unless `apply_b_dec_to_input` is false.
"""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from pipeline.config.architectures import (
    ArchConfig,
    BatchTopKConfig,
    GatedConfig,
    InputNorm,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluConfig,
    TopKConfig,
)
from pipeline.errors import CheckpointError
from pipeline.formats.files import Files
from pipeline.formats.foreign_sae import (
    GATES,
    Asked,
    ForeignSAE,
    Weights,
    length_of,
    matryoshka_like,
    one_of,
    relu_like,
    told,
    topk_like,
)
from pipeline.formats.tensor_files import read_settings, read_tensors
from pipeline.formats.writing import Exported, Leaving, tensor_bytes
from pipeline.lm.names import hook_of
from pipeline.lm.paths import site_of

SETTINGS, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
VERSION = "6.54.12"
"""Whose settings are written."""
KINDS: dict[str, type[ArchConfig]] = {
    "standard": ReluConfig,
    "gated": GatedConfig,
    "topk": TopKConfig,
    "batchtopk": BatchTopKConfig,
    "matryoshka_batchtopk": MatryoshkaConfig,
    "jumprelu": JumpReluConfig,
}
NORMS: dict[str, InputNorm] = {
    "none": "none",
    "expected_average_only_in": "none",
    "layer_norm": "layer_norm",
    "constant_norm_rescale": "constant_norm",
}
FIRST_K = 100
"""Where `topk` does not say it."""
NO_K = f"its settings do not say k: it is taken for {FIRST_K}, as SAELens takes it"
UNSCALED = (
    "it was trained on activations scaled to a mean norm (normalize_activations is "
    "expected_average_only_in), and no activation_scaler.json says by how much: its weights are "
    "taken as they are, as SAELens takes them"
)


def read(files: Files, asked: Asked) -> ForeignSAE:
    """The SAE of such a folder.

    Raises:
        CheckpointError: it is damaged, or of a kind that we do not have.
    """
    path = files.path(WEIGHTS)
    cfg = _settings(read_settings(files.path(SETTINGS)))
    tensors = read_tensors(path)
    kind = one_of(KINDS, str(cfg["architecture"]), source=path)
    weights = Weights(
        source=path,
        W_enc=_needed(tensors, "W_enc", path),
        W_dec=_needed(tensors, "W_dec", path),
        b_enc=None if kind == "gated" else _needed(tensors, "b_enc", path),
        b_dec=_needed(tensors, "b_dec", path),
        threshold=_threshold(tensors, kind, path),
        gates={name: tensors[name] for name in GATES if name in tensors} if kind == "gated" else {},
    )
    weights.require_widths(cfg, files.path(SETTINGS))
    notes = _scale(weights, tensors, cfg, files)
    if not cfg["apply_b_dec_to_input"]:
        weights.centre()
    arch, said = _arch(kind, cfg, weights, path)
    if cfg.get("rescale_acts_by_decoder_norm") and kind not in ("standard", "jumprelu", "gated"):
        threshold = weights.threshold
        weights.fold_norms(weights.norms())  # as they count among the latents
        weights.threshold = threshold  # which is in their unit already
    metadata = cfg["metadata"]
    hook = str(metadata.get("hook_name") or "")
    if metadata.get("hook_head_index") is not None:
        hook += f" of head {metadata['hook_head_index']}"
    if metadata.get("prepend_bos"):
        notes += ("its contexts began with a BOS token (prepend_bos), which ours do not",)
    return told(
        weights.made(arch),
        site=site_of(hook),
        hook=hook,
        model=model_of(str(metadata.get("model_name") or "")),
        text=str(metadata.get("dataset_path") or ""),
        ctx_len=length_of(metadata.get("context_size")),
        input_norm=NORMS[cfg["normalize_activations"]],
        notes=(*notes, *said),
    )


def _settings(cfg: dict[str, Any]) -> dict[str, Any]:
    """Those of any version by the names of version 6, with what it takes where they are silent."""
    given: object = cfg.get("metadata")
    metadata: dict[str, Any] = dict(given) if isinstance(given, Mapping) else {}
    version = str(cfg.get("sae_lens_version") or metadata.get("sae_lens_version") or "0")
    if not version.partition(".")[0].isdecimal() or int(version.partition(".")[0]) < 6:
        metadata = {**cfg, "hook_name": cfg.get("hook_name", cfg.get("hook_point"))}
        metadata["hook_head_index"] = cfg.get("hook_head_index", cfg.get("hook_point_head_index"))
        metadata.setdefault("prepend_bos", True)
        cfg = _of_before(cfg)
    found = {"architecture": "standard", "apply_b_dec_to_input": True, **cfg, "metadata": metadata}
    norm = found.get("normalize_activations")
    if isinstance(norm, bool):
        norm = "expected_average_only_in" if norm else "none"
    found["normalize_activations"] = norm = str(norm or "none")
    if norm not in NORMS:
        raise CheckpointError(
            f"its activations are normalised by {norm!r}, which ours have not: fold it into the "
            "weights first (SAELens: fold_activation_whitening)"
        )
    return found


def _of_before(cfg: dict[str, Any]) -> dict[str, Any]:
    """Settings of before version 6, where an activation made of `standard` what it was."""
    cfg = dict(cfg)
    activation = cfg.get("activation_fn_str", cfg.get("activation_fn", "relu"))
    if activation == "topk":
        options: object = cfg.get("activation_fn_kwargs")
        k = options.get("k") if isinstance(options, Mapping) else None
        cfg |= {"architecture": "topk", **({} if k is None else {"k": k})}
    elif activation != "relu":
        raise CheckpointError(f"its activation is {activation!r}, and known are relu and topk")
    return cfg


def _needed(tensors: Mapping[str, Any], name: str, path: object) -> Tensor:
    if name not in tensors:
        have = ", ".join(sorted(tensors)[:8]) or "nothing"
        raise CheckpointError(f"{path} lacks {name}: it holds {have}")
    return tensors[name]


def _threshold(tensors: Mapping[str, Any], kind: str, path: object) -> Tensor | None:
    """Of kinds that have one; trainings keep it under other names."""
    if kind == "jumprelu" and "log_threshold" in tensors:
        return tensors["log_threshold"].double().exp()
    if kind in ("batchtopk", "matryoshka_batchtopk"):
        return _needed(tensors, "topk_threshold", path)
    return _needed(tensors, "threshold", path) if kind == "jumprelu" else None


def _scale(
    weights: Weights, tensors: Mapping[str, Any], cfg: Mapping[str, Any], files: Files
) -> tuple[str, ...]:
    """Fold what scales activations or latents; what cannot be is noted."""
    names = ("finetuning_scaling_factor", "scaling_factor")
    factor = next((tensors[name] for name in names if name in tensors), None)
    if isinstance(factor, Tensor) and not torch.allclose(factor.float(), torch.ones(())):
        if not cfg.get("finetuning_scaling_factor") or factor.shape != weights.W_dec.shape[:1]:
            raise CheckpointError(
                f"{weights.source} has a scaling_factor of {list(factor.shape)}, which its "
                "settings do not know of"
            )
        weights.W_dec = weights.W_dec * factor.double()[:, None]
    if cfg["normalize_activations"] != "expected_average_only_in":
        return ()
    if SCALER not in files.names:
        return (UNSCALED,)
    scale = read_settings(files.path(SCALER)).get("scaling_factor")
    if scale is None:
        return (UNSCALED,)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 1e30:
        raise CheckpointError(f"{files.path(SCALER)}: scaling_factor {scale!r} is none")
    weights.scale_input(float(scale))
    if cfg.get("rescale_acts_by_decoder_norm") and weights.threshold is not None:
        weights.threshold = weights.threshold / float(scale)
    return ()


def _arch(
    kind: str, cfg: Mapping[str, Any], weights: Weights, path: object
) -> tuple[ArchConfig, tuple[str, ...]]:
    if kind == "standard":
        return relu_like(weights.norms()), ()
    k, said = cfg.get("k", FIRST_K), () if "k" in cfg else (NO_K,)
    if kind == "matryoshka_batchtopk":
        widths: object = cfg.get("matryoshka_widths")
        ends = widths if isinstance(widths, list) else []
        if not all(type(end) is int for end in ends):
            raise CheckpointError(f"the settings of {path}: matryoshka_widths are no whole numbers")
        groups = [end - start for start, end in zip([0, *ends], ends, strict=False)]
        arch, notes = matryoshka_like(k, groups, d_sae=len(weights.W_dec), source=path)
        return arch, (*said, *notes)
    if kind in ("topk", "batchtopk"):
        return topk_like(KINDS[kind], k, source=path), said
    return KINDS[kind](), ()


def write(sae: Leaving) -> Exported:
    """The files of an SAE of ours that `SAE.load_from_disk` of SAELens opens."""
    arch, F = sae.arch, len(sae.W_dec)
    tensors, notes = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}, list[str]()
    settings: dict[str, Any] = {}
    if isinstance(arch, GatedConfig):
        kind, tensors = "gated", {**tensors, **sae.gates}
    else:
        tensors["b_enc"], kind = sae.b_enc, "standard"
    if isinstance(arch, TopKConfig):
        kind, settings = "topk", {"k": int(arch.k), "rescale_acts_by_decoder_norm": False}
    elif sae.threshold is not None:
        kind, tensors["threshold"] = "jumprelu", sae.threshold.expand(F)
        if arch.kind != "jumprelu":
            notes.append(
                f"SAELens loads no {arch.kind} SAE: it is a jumprelu one there, with the threshold "
                "that stands for the batch"
            )
    norms = {ours: theirs for theirs, ours in NORMS.items() if theirs != "expected_average_only_in"}
    cfg = {
        "d_in": sae.W_dec.shape[1],
        "d_sae": F,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": norms[sae.input_norm],
        "reshape_activations": "hook_z" if sae.site.startswith("attn_z.") else "none",
        "metadata": {
            "sae_lens_version": VERSION,
            "sae_lens_training_version": None,
            "model_name": sae.model or None,
            "hook_name": hook_of(sae.site) or None,
            "hook_head_index": None,
            "context_size": sae.ctx_len,
            "dataset_path": sae.text or None,
            "prepend_bos": False,
        },
        **settings,
        "architecture": kind,
    }
    files = {
        SETTINGS: (json.dumps(cfg, indent=2) + "\n").encode(),
        WEIGHTS: tensor_bytes(tensors),
    }
    return Exported(files=files, notes=tuple(notes))


def model_of(name: str) -> str:
    """The id on the hub of a model that TransformerLens calls `name`, where it is another."""
    known = {"gpt2-small": "gpt2", "gpt2": "gpt2"}
    if name in known or "/" in name:
        return known.get(name, name)
    owners = {"pythia": "EleutherAI", "gemma": "google", "Qwen": "Qwen", "Llama": "meta-llama"}
    owner = owners.get(name.partition("-")[0].partition("2")[0], "")
    return f"{owner}/{name}" if owner else name
