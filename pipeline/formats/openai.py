"""OpenAI's SAEs of GPT-2 small.

A file of `pre_bias`, `encoder.weight`, `latent_bias`, `decoder.weight`, and its activation. Those
with TopK normalise each row as LayerNorm without weights does; those with ReLU take it as it is. A
path tells the rest: `resid_post_mlp_v5_32k/autoencoders/8.pt`.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.config.architectures import ArchConfig, TopKConfig
from pipeline.errors import CheckpointError
from pipeline.formats.files import Files
from pipeline.formats.foreign_sae import Asked, ForeignSAE, Weights, relu_like, told, topk_like
from pipeline.formats.tensor_files import read_tensors

_KINDS = {
    "mlp_post_act": "mlp_act", "resid_delta_mlp": "mlp_out", "resid_delta_attn": "attn_out",
    "resid_post_attn": "resid_mid", "resid_post_mlp": "resid_post",
}  # fmt: skip
_FOLDER = re.compile(rf"({'|'.join(_KINDS)})(?:_v\d\w*)?")


def is_of(tensors: Mapping[str, Any]) -> bool:
    """Whether a file of these names is one."""
    return {"pre_bias", "latent_bias", "encoder.weight"} <= {*tensors}


def read(files: Files, asked: Asked) -> ForeignSAE:
    """The SAE of such a file.

    Raises:
        CheckpointError: it is damaged, or of a kind that we do not have.
    """
    path = files.path(files.only)
    tensors = read_tensors(path)
    if not is_of(tensors):
        raise CheckpointError(f"{path} lacks pre_bias, latent_bias or encoder.weight")
    encoder = tensors["encoder.weight"]
    if not isinstance(encoder, Tensor) or encoder.ndim != 2:
        raise CheckpointError(f"{path}: encoder.weight is no matrix")
    decoder = tensors.get("decoder.weight")  # a tied one keeps none, or its encoder once more
    weights = Weights(
        source=path,
        W_enc=encoder.T,
        W_dec=decoder.T if isinstance(decoder, Tensor) and decoder.ndim == 2 else encoder,
        b_enc=tensors["latent_bias"],
        b_dec=tensors["pre_bias"],
    )
    arch = _arch(tensors, weights, path)
    *above, name = files.parts
    folder = next((found for part in reversed(above) if (found := _FOLDER.fullmatch(part))), None)
    layer = name.partition(".")[0]
    site = f"{_KINDS[folder[1]]}.{int(layer)}" if folder and layer.isdecimal() else ""
    return told(
        weights.made(arch),
        site=site,
        hook=folder[0] if folder else "",
        model="gpt2" if folder else "",
        input_norm="layer_norm" if isinstance(arch, TopKConfig) else "",
    )


def _arch(tensors: Mapping[str, Any], weights: Weights, path: object) -> ArchConfig:
    activation = tensors.get("activation", "ReLU")
    options: Any = tensors.get("activation_state_dict") or {}
    if activation == "ReLU":
        return relu_like(weights.norms())
    if activation != "TopK" or not isinstance(options, Mapping):
        raise CheckpointError(f"{path}: its activation is {activation!r}, known are ReLU and TopK")
    if (after := options.get("postact_fn", "ReLU")) != "ReLU":
        raise CheckpointError(f"{path}: {after} follows its TopK, where ours has ReLU")
    return topk_like(TopKConfig, options.get("k"), source=path)
