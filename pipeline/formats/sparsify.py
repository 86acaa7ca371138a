"""sparsify's folders: `cfg.json` and `sae.safetensors`, in a folder named after the module."""

import json
from collections.abc import Mapping
from typing import Any

import torch

from pipeline.config.architectures import TopKConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.files import Files, LocalFiles
from pipeline.formats.foreign_sae import (
    Asked,
    ForeignSAE,
    Weights,
    length_of,
    one_of,
    told,
    topk_like,
)
from pipeline.formats.tensor_files import read_settings, read_tensors
from pipeline.formats.writing import Exported, Leaving, tensor_bytes
from pipeline.lm.paths import site_in, site_of

SETTINGS, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "config.json"
FIRST_K = 32
"""Where its settings do not say it."""
NO_K = f"its settings do not say k: it is taken for {FIRST_K}, as sparsify takes it"


def read(files: Files, asked: Asked) -> ForeignSAE:
    """The SAE of such a folder.

    Raises:
        CheckpointError: it is damaged, or of a kind that we do not have.
    """
    path = files.path(WEIGHTS)
    cfg, tensors = read_settings(files.path(SETTINGS)), read_tensors(path)
    if cfg.get("transcode") or cfg.get("skip_connection") or "W_skip" in tensors:
        one_of({}, "transcoder", source=path)
    if cfg.get("signed"):  # as an earlier version could be told
        one_of({}, "abstopk", source=path)
    one_of({"topk": TopKConfig}, str(cfg.get("activation") or "topk"), source=path)
    names = {"encoder.weight": "W_enc", "encoder.bias": "b_enc", "W_dec": "W_dec", "b_dec": "b_dec"}
    if lacking := [name for name in names if name not in tensors]:
        have = ", ".join(sorted(tensors)[:8]) or "nothing"
        raise CheckpointError(f"{path} lacks {lacking[0]}: it holds {have}")
    given: dict[str, Any] = {ours: tensors[theirs] for theirs, ours in names.items()}
    weights = Weights(source=path, **(given | {"W_enc": given["W_enc"].T}))
    said = {"d_in": cfg.get("d_in"), "d_sae": cfg.get("num_latents") or None}
    weights.require_widths(said, files.path(SETTINGS))
    hook, run = str(cfg.get("site") or ""), _run(files)
    return told(
        weights.made(topk_like(TopKConfig, cfg.get("k", FIRST_K), source=path)),
        site=site_of(hook) or site_in(files.parts),
        hook=hook or files.parts[-1],
        model=str(cfg.get("model") or run.get("model") or ""),
        text=str(run.get("dataset") or ""),
        ctx_len=length_of(run.get("ctx_len")),
        notes=() if "k" in cfg else (NO_K,),
    )


def _run(files: Files) -> Mapping[str, Any]:
    """The settings of the training that a local folder is one of, above it; else nothing."""
    if not isinstance(files, LocalFiles):
        return {}
    above = files.folder.absolute().parents[:2]
    told = next((place / RUN for place in above if (place / RUN).is_file()), None)
    if told is None:
        return {}
    try:
        settings = read_settings(told)
    except CheckpointError:  # of something else
        return {}
    return settings if "hookpoints" in settings or "sae" in settings else {}


def write(sae: Leaving) -> Exported:
    """The files of an SAE of ours that `SparseCoder.load_from_disk` opens; of topk alone.

    Its settings may hold more than sparsify knows: where the SAE belongs stands there.
    """
    sae.require_plain("sparsify")
    arch = sae.arch
    if not isinstance(arch, TopKConfig):
        raise ConfigError(
            f"sparsify has topk alone, and this SAE is a {sae.kind} one: type --to saelens, or "
            "--to dictionary-learning"
        )
    F, d = sae.W_dec.shape
    norms = sae.W_dec.norm(dim=-1)
    cfg = {
        "activation": "topk",
        "expansion_factor": max(1, F // d),
        "normalize_decoder": torch.allclose(norms, torch.ones_like(norms), atol=1e-3),
        "num_latents": F,
        "k": int(arch.k),
        "multi_topk": False,
        "skip_connection": False,
        "transcode": False,
        "d_in": d,
        "site": sae.site,
        "model": sae.model,
    }
    tensors = {
        "encoder.weight": sae.W_enc.T,
        "encoder.bias": sae.b_enc,
        "W_dec": sae.W_dec,
        "b_dec": sae.b_dec,
    }
    files = {
        SETTINGS: (json.dumps(cfg, indent=2) + "\n").encode(),
        WEIGHTS: tensor_bytes(tensors),
    }
    return Exported(files=files)
