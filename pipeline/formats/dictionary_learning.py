"""dictionary_learning's `ae.pt`, with the `config.json` of its trainer where that lies beside.

Which class a file is of is told by `dict_class`, else by its tensors. What each computes:

    AutoEncoder, AutoEncoderTopK, BatchTopKSAE, MatryoshkaBatchTopKSAE, GatedAutoEncoder:
        the input less the decoder's bias is encoded
    AutoEncoderNew, JumpReluAutoEncoder: the input as it is

The file may hold more around it: `{"state_dict": ..., "cfg": ..., "act_mean": ...}`, where the mean
is what was taken from activations before; it becomes part of `b_dec`.
"""

import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

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
from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.files import Files, LocalFiles
from pipeline.formats.foreign_sae import (
    Asked,
    ForeignSAE,
    Weights,
    length_of,
    matryoshka_like,
    one_of,
    told,
    topk_like,
)
from pipeline.formats.tensor_files import read_settings, read_tensors
from pipeline.formats.writing import Exported, Leaving, pickle_bytes
from pipeline.lm.paths import site_in, site_of

WEIGHTS, SETTINGS = "ae.pt", "config.json"
CLASSES: dict[str, type[ArchConfig]] = {
    "AutoEncoder": ReluConfig,
    "AutoEncoderNew": ReluAprilConfig,
    "GatedAutoEncoder": GatedConfig,
    "AutoEncoderTopK": TopKConfig,
    "BatchTopKSAE": BatchTopKConfig,
    "MatryoshkaBatchTopKSAE": MatryoshkaConfig,
    "JumpReluAutoEncoder": JumpReluConfig,
}
_TRANSPOSED = {
    "encoder.weight": "W_enc", "decoder.weight": "W_dec",
}  # fmt: skip
_BIASES = {
    "encoder.bias": "b_enc", "b_enc": "b_enc",
    "decoder.bias": "b_dec", "bias": "b_dec", "decoder_bias": "b_dec", "b_dec": "b_dec",
}  # fmt: skip
_GATES = {"gate_bias": "b_gate", "r_mag": "r_mag", "mag_bias": "b_mag"}


def is_of(tensors: Mapping[str, Any]) -> bool:
    """Whether a file of these names is one of a class that we know."""
    return _class_of(unwrapped(tensors)[0]) != ""


def unwrapped(found: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of a file, and what stood around them."""
    inner: object = found.get("state_dict")
    if isinstance(inner, Mapping):
        around = {name: value for name, value in found.items() if name != "state_dict"}
        return {str(name): value for name, value in inner.items()}, around
    return dict(found), {}


def _class_of(names: Mapping[str, Any]) -> str:
    """What has these tensors. TopK's and BatchTopK's have the same: the latter has a threshold."""
    have = {*names}
    if {"encoder.weight", "decoder.weight"} <= have:
        if {"gate_bias", "r_mag", "mag_bias", "decoder_bias"} <= have:
            return "GatedAutoEncoder"
        if "encoder.bias" in have:
            if "bias" in have:
                return "AutoEncoder"
            if "decoder.bias" in have:
                return "AutoEncoderNew"
            if {"b_dec", "k"} <= have:
                threshold = names.get("threshold")
                kept = isinstance(threshold, Tensor) and bool((threshold >= 0).all())
                return "BatchTopKSAE" if kept else "AutoEncoderTopK"
        return ""
    if {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"} <= have:
        if {"k", "group_sizes"} <= have:
            return "MatryoshkaBatchTopKSAE"
        return "JumpReluAutoEncoder" if have <= _JUMPRELU else ""
    return ""


_JUMPRELU = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold"}


def read(files: Files, asked: Asked) -> ForeignSAE:
    """The SAE of such a file.

    Raises:
        CheckpointError: it is damaged, or of a kind that we do not have.
    """
    path = files.path(files.only or WEIGHTS)
    tensors, around = unwrapped(read_tensors(path))
    trainer, buffer = _settings(files)
    kind, guessed = str(trainer.get("dict_class") or _class_of(tensors)), ()
    if asked.arch:
        kind = _class_asked(asked.arch, kind, said=bool(trainer.get("dict_class")), path=path)
    elif kind == "BatchTopKSAE" and not trainer:
        guessed = (
            "nothing beside it says whether its threshold is used: it is taken for a BatchTopKSAE, "
            "which does; name the architecture `topk` for an AutoEncoderTopK",
        )
    one_of(CLASSES, kind, source=path)
    weights = Weights(source=path, **_weights(tensors, kind, path))
    arch, notes = _arch(kind, asked, tensors, trainer, weights, path)
    if kind in ("AutoEncoderNew", "JumpReluAutoEncoder"):
        weights.centre()
    if kind == "AutoEncoder":
        norms = weights.norms()
        if not torch.allclose(norms.float(), torch.ones(())):
            weights.fold_norms(norms)
            notes += (
                "rows of its dictionary were brought to unit length, and latents scaled for it, as "
                "dictionary_learning does when it loads them",
            )
    if isinstance(mean := around.get("act_mean"), Tensor):
        weights.centre_on(mean)
        notes += ("the mean that its activations were given without is part of its b_dec",)
    hook = str(trainer.get("submodule_name") or "")
    notes += guessed
    return told(
        weights.made(arch),
        site=site_of(hook) or site_in(files.parts),
        hook=hook,
        model=str(trainer.get("lm_name") or ""),
        ctx_len=length_of(buffer.get("ctx_len")),
        notes=notes,
    )


_ALIKE = {"AutoEncoderTopK", "BatchTopKSAE"}
"""Classes of the same tensors."""


def _class_asked(arch: str, own: str, *, said: bool, path: object) -> str:
    """The class of an architecture that was named.

    Raises:
        ConfigError: the file is of another, or there is none.
    """
    kind = next((name for name, its in CLASSES.items() if its.kind == arch), "")
    if own and kind != own and (said or not {kind, own} <= _ALIKE):
        raise ConfigError(f"{path} is of the class {own}, and --arch {arch} is none: leave it out")
    if not kind:
        raise ConfigError(f"{path}: dictionary_learning has nothing like the architecture {arch}")
    return kind


def _settings(files: Files) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Of the trainer and of its buffer, where they lie beside; what is not theirs is left."""
    if SETTINGS in files.names:
        told_by = files.path(SETTINGS)
    elif isinstance(files, LocalFiles) and files.folder.name == "checkpoints":
        told_by = files.folder.parent / SETTINGS
    else:
        return {}, {}
    if not told_by.is_file():
        return {}, {}
    cfg = read_settings(told_by)
    trainer, buffer = (cfg.get(name) for name in ("trainer", "buffer"))
    return tuple(
        cast("Mapping[str, Any]", one) if isinstance(one, Mapping) else {}
        for one in (trainer, buffer)
    )  # pyright: ignore[reportReturnType]


def _weights(tensors: Mapping[str, Any], kind: str, path: object) -> dict[str, Any]:
    """Under our names, and as ours lie."""
    found: dict[str, Any] = {}
    for name, ours in _TRANSPOSED.items():
        if isinstance(matrix := tensors.get(name), Tensor) and matrix.ndim == 2:
            found[ours] = matrix.T
    found |= {name: tensors[name] for name in ("W_enc", "W_dec") if name in tensors}
    found |= {ours: tensors[name] for name, ours in _BIASES.items() if name in tensors}
    if kind == "GatedAutoEncoder":
        found["gates"] = {ours: tensors[name] for name, ours in _GATES.items() if name in tensors}
    elif kind not in ("AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK"):
        found["threshold"] = tensors.get("threshold")
    needed = ("W_enc", "W_dec", "b_dec") + (() if kind == "GatedAutoEncoder" else ("b_enc",))
    if lacking := [name for name in needed if name not in found]:
        have = ", ".join(sorted(tensors)[:8]) or "nothing"
        raise CheckpointError(f"{path} lacks the {lacking[0]} of a {kind}: it holds {have}")
    return found


def _arch(
    kind: str,
    asked: Asked,
    tensors: Mapping[str, Any],
    trainer: Mapping[str, Any],
    weights: Weights,
    path: object,
) -> tuple[ArchConfig, tuple[str, ...]]:
    if kind not in ("AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        if asked.k is not None:
            raise ConfigError(f"{path} is of the class {kind}, which has no k: leave out --k")
        return CLASSES[kind](), ()
    kept = tensors.get("k", trainer.get("k"))
    if kept is None and asked.k is None:
        raise ConfigError(f"{path} does not say how many latents of a row are kept: name --k")
    if kept is not None and asked.k is not None:
        raise ConfigError(f"{path} says its k: leave out --k")
    kept = asked.k if kept is None else kept
    said = trainer.get("k", kept)
    if isinstance(kept, Tensor) and kept.numel() == 1 and said is not kept and kept.item() != said:
        raise CheckpointError(f"{path} has k = {kept.item()}, and its {SETTINGS} says {said!r}")
    if kind == "MatryoshkaBatchTopKSAE":
        sizes: Any = tensors.get("group_sizes")
        groups = [int(n) for n in sizes.flatten().tolist()] if isinstance(sizes, Tensor) else []
        return matryoshka_like(kept, groups, d_sae=len(weights.W_dec), source=path)
    return topk_like(CLASSES[kind], kept, source=path), ()


def write(sae: Leaving) -> Exported:
    """The files of an SAE of ours that `load_dictionary` opens.

    One with ReLU becomes an AutoEncoderNew, which is loaded as it is: an AutoEncoder's dictionary
    would be brought to unit length, and its latents scaled.
    """
    sae.require_plain("dictionary_learning")
    arch, (F, d) = sae.arch, sae.W_dec.shape
    k = max(1, round(getattr(arch, "k", 1)))
    by_row = {
        "encoder.weight": sae.W_enc.T,
        "decoder.weight": sae.W_dec.T,
    }
    direct = {"W_enc": sae.W_enc, "W_dec": sae.W_dec, "b_dec": sae.b_dec}
    counted = {"k": torch.tensor(k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
    match arch:
        case GatedConfig():
            kind = "GatedAutoEncoder"
            gates = {theirs: sae.gates[ours] for theirs, ours in _GATES.items()}
            tensors = {**by_row, "decoder_bias": sae.b_dec, **gates}
        case TopKConfig():
            kind = "AutoEncoderTopK"
            tensors = {**counted, **by_row, "encoder.bias": sae.b_enc, "b_dec": sae.b_dec}
        case BatchTopKConfig() if sae.threshold is not None:
            kind, counted["threshold"] = "BatchTopKSAE", sae.threshold
            tensors = {**counted, **by_row, "encoder.bias": sae.b_enc, "b_dec": sae.b_dec}
        case MatryoshkaConfig() if sae.threshold is not None:
            kind, counted["threshold"] = "MatryoshkaBatchTopKSAE", sae.threshold
            ends = [F >> i for i in range(arch.prefixes - 1, -1, -1)]
            sizes = [end - start for start, end in zip([0, *ends], ends, strict=False)]
            groups = {"group_sizes": torch.tensor(sizes)}
            tensors = {**counted, **groups, **direct, "b_enc": sae.b_enc}
        case JumpReluConfig() if sae.threshold is not None:
            kind = "JumpReluAutoEncoder"
            tensors = {**direct, "b_enc": sae.uncentred, "threshold": sae.threshold.expand(F)}
        case ReluConfig() | ReluAprilConfig():
            kind = "AutoEncoderNew"
            tensors = {**by_row, "encoder.bias": sae.uncentred, "decoder.bias": sae.b_dec}
        case _:
            raise ConfigError(f"dictionary_learning has nothing like the architecture {arch.kind}")
    trainer = {
        "dict_class": kind,
        "activation_dim": d,
        "dict_size": F,
        **({"k": k} if "k" in tensors else {}),
        "lm_name": sae.model or None,
        "layer": int(sae.site.partition(".")[2]) if sae.site else None,
        "submodule_name": sae.site or None,
    }
    cfg = {"trainer": trainer, "buffer": {"d_submodule": d, "ctx_len": sae.ctx_len}}
    notes = ()
    if getattr(arch, "k", k) != k:
        notes = (f"its k of {getattr(arch, 'k', k)} is {k} there, where k is whole",)
    files = {
        WEIGHTS: pickle_bytes(tensors),
        SETTINGS: (json.dumps(cfg, indent=2) + "\n").encode(),
    }
    return Exported(files=files, notes=notes)
