"""Gemma Scope's JumpReLU SAEs: `params.npz`, or of its second release `params.safetensors`.

Their input is taken as it is, and `b_dec` only added. Folders tell the rest:
`google/gemma-scope-2b-pt-res/layer_20/width_16k/average_l0_71`. Those of the embedding were trained
on rows divided by the square root of their width.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.architectures import JumpReluConfig
from pipeline.errors import CheckpointError
from pipeline.formats.files import Files
from pipeline.formats.foreign_sae import Asked, ForeignSAE, Weights, one_of, told
from pipeline.formats.tensor_files import read_settings, read_tensors
from pipeline.lm.paths import site_of

WEIGHTS = ("params.npz", "params.safetensors")
SETTINGS = "config.json"
_KINDS = {
    "res": "resid_post", "mlp": "mlp_out", "att": "attn_z",
    "resid_post": "resid_post", "mlp_out": "mlp_out", "attn_out": "attn_z",
}  # fmt: skip
"""By the end of a repository's name, and in the second release by a folder in it."""
_REPO = re.compile(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)")


def is_of(tensors: Mapping[str, Any]) -> bool:
    """Whether a file of these names is one."""
    names = {name.replace("w_", "W_") for name in tensors}
    return names == {"W_enc", "W_dec", "b_enc", "b_dec", "threshold"}


def read(files: Files, asked: Asked) -> ForeignSAE:
    """The SAE of such a folder.

    Raises:
        CheckpointError: it is damaged, or a transcoder.
    """
    name = files.only or next(name for name in WEIGHTS if name in files.names)
    path = files.path(name)
    tensors = {key.replace("w_", "W_"): value for key, value in read_tensors(path).items()}
    parts = files.parts
    if "affine_skip_connection" in tensors or any(
        word in part for part in parts for word in ("transcoder", "clt")
    ):
        one_of({}, "transcoder", source=path)
    wanted = ("W_enc", "W_dec", "b_enc", "b_dec", "threshold")
    if lacking := [key for key in wanted if key not in tensors]:
        have = ", ".join(sorted(tensors)[:8]) or "nothing"
        raise CheckpointError(f"{path} lacks {lacking[0]}: it holds {have}")
    weights = Weights(source=path, **{key: tensors[key] for key in wanted})
    weights.centre()
    if "embedding" in parts:
        weights.scale_input(weights.W_dec.shape[1] ** -0.5)
    return told(weights.made(JumpReluConfig()), **_about(files, parts))


def _about(files: Files, parts: Sequence[str]) -> dict[str, Any]:
    """Where it belongs, by the names of folders, and by settings where there are any."""
    repo = next((found for part in parts if (found := _REPO.fullmatch(part))), None)
    layers = [found for part in parts if (found := re.match(r"layer_(\d+)", part))]
    kinds = [_KINDS[part] for part in parts if part in _KINDS]
    kind = _KINDS[repo[3]] if repo else (kinds or [""])[-1]
    site = f"{kind}.{int(layers[-1][1])}" if kind and layers else ""
    model = f"google/gemma-2-{repo[1]}{'-it' if repo[2] == 'it' else ''}" if repo else ""
    hook = "/".join(parts[-3:])
    if SETTINGS in files.names:
        cfg = read_settings(files.path(SETTINGS))
        hook = str(cfg.get("hf_hook_point_in") or hook)
        site = site or site_of(hook)
        model = str(cfg.get("model_name") or model)
        model = model if "/" in model or not model else f"google/{model.replace('-v3', '-3')}"
    note = "its contexts began with a BOS token, which ours do not"
    return {"site": site, "hook": hook, "model": model, "notes": (note,)}
