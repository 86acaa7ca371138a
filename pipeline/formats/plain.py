"""A file of matrices, of no library: safetensors, a pickle or npz; told by name and shape.

The encoder is told from the decoder by name. How they lie is told by shape: the longer side is that
of latents, or `b_enc` and `b_dec` say which it is.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pipeline.config.architectures import (
    ARCHS,
    ArchConfig,
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    TopKConfig,
)
from pipeline.errors import CheckpointError, ConfigError
from pipeline.formats.dictionary_learning import unwrapped
from pipeline.formats.files import Files
from pipeline.formats.foreign_sae import (
    GATES,
    Asked,
    ForeignSAE,
    Weights,
    relu_like,
    told,
    topk_like,
)
from pipeline.formats.tensor_files import read_tensors
from pipeline.lm.paths import site_in

_B_DEC = ("b_dec", "decoder.bias", "decoder_bias", "pre_bias", "b_pre", "bias", "b_D")
_B_ENC = ("b_enc", "encoder.bias", "encoder_bias", "latent_bias", "b_E")
_THRESHOLD = ("threshold", "thresholds", "theta", "activation.threshold", "jumprelu_threshold")
_ENCODERS, _DECODERS = ("enc", "w_e"), ("dec", "w_d")
_MATRIX = 2
KEEP_K = tuple(kind.kind for kind in (TopKConfig, BatchTopKConfig, MatryoshkaConfig))


def read(files: Files, asked: Asked) -> ForeignSAE:
    """The SAE of such a file.

    Raises:
        CheckpointError: it is damaged, or does not tell which matrix is which.
        ConfigError: what it is must be said with `arch`, or `k`.
    """
    path = files.path(files.only)
    tensors = _by_name(unwrapped(read_tensors(path))[0])
    matrices = {name: t for name, t in tensors.items() if t.ndim == _MATRIX}
    W_enc, W_dec = _both(matrices, path)
    b_enc, b_dec = _first(tensors, _B_ENC), _first(tensors, _B_DEC)
    W_enc, W_dec = _laid(W_enc, W_dec, b_enc, b_dec, path)
    weights = Weights(
        source=path, W_enc=W_enc, W_dec=W_dec, b_enc=b_enc, b_dec=b_dec,
        threshold=_first(tensors, _THRESHOLD),
        gates={
            name: gate
            for name in GATES
            if (gate := _first(tensors, (name, f"activation.{name}"))) is not None
        },
    )  # fmt: skip
    arch = _arch(asked, tensors, weights, path)
    if not isinstance(arch, GatedConfig):
        weights.gates = {}
    if not asked.centred:
        weights.centre()
    return told(weights.made(arch), site=site_in(files.parts))


def _by_name(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors, without the name of a module that all of them are in."""
    tensors = {name: t for name, t in found.items() if isinstance(t, Tensor)}
    heads = {name.partition(".")[0] for name in tensors}
    if len(heads) == 1 and all("." in name for name in tensors):
        return {name.partition(".")[2]: t for name, t in tensors.items()}
    return tensors


def _first(tensors: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor | None:
    return next((tensors[name] for name in names if name in tensors), None)


_LISTED = 8
"""Matrices that a message names; no SAE has more."""


def _both(matrices: Mapping[str, Tensor], path: object) -> tuple[Tensor, Tensor]:
    """The encoder and the decoder; a single matrix is both."""
    named = [f"{name} {list(t.shape)}" for name, t in matrices.items()]
    more = f" and {len(named) - _LISTED} more: it may be a model" if len(named) > _LISTED else ""
    listed = (", ".join(named[:_LISTED]) or "none") + more
    if len(matrices) == 1:
        (only,) = matrices.values()
        return only, only.T
    encoders, decoders = (
        [t for name, t in matrices.items() if any(word in name.lower() for word in words)]
        for words in (_ENCODERS, _DECODERS)
    )
    if len(encoders) != 1 or len(decoders) != 1:
        raise CheckpointError(
            f"{path} does not tell its encoder from its decoder by name: its matrices are {listed}"
        )
    return encoders[0], decoders[0]


def _laid(
    W_enc: Tensor, W_dec: Tensor, b_enc: Tensor | None, b_dec: Tensor | None, path: object
) -> tuple[Tensor, Tensor]:
    """The encoder as `[d_in, d_sae]`, the decoder as `[d_sae, d_in]`."""
    sides = {*W_enc.shape}
    if sides != {*W_dec.shape}:
        raise CheckpointError(
            f"{path}: its encoder is {list(W_enc.shape)} and its decoder {list(W_dec.shape)}: an "
            "SAE's have the same sides"
        )
    if len(sides) == 1:
        raise CheckpointError(
            f"{path}: its matrices are square, so that nothing tells how they lie: save them as "
            "SAELens does"
        )
    lengths = [None if b is None or b.ndim != 1 else len(b) for b in (b_enc, b_dec)]
    few = lengths[0] == min(sides) or lengths[1] == max(sides)
    F, d = sorted(sides) if few else sorted(sides, reverse=True)
    if lengths[0] not in (None, F) or lengths[1] not in (None, d):
        raise CheckpointError(
            f"{path}: biases of {lengths[0]} and {lengths[1]} values fit no matrices of "
            f"{list(W_enc.shape)}"
        )
    return (
        W_enc if tuple(W_enc.shape) == (d, F) else W_enc.T,
        W_dec if tuple(W_dec.shape) == (F, d) else W_dec.T,
    )


def _arch(
    asked: Asked, tensors: Mapping[str, Tensor], weights: Weights, path: object
) -> ArchConfig:
    k = tensors.get("k") if asked.k is None else asked.k
    known = weights.threshold is not None or bool(weights.gates)
    if asked.k is not None and (asked.arch not in KEEP_K if asked.arch else known):
        raise ConfigError(
            f"{path}: k is of {', '.join(KEEP_K)}: name one of these with --arch, or leave out --k"
        )
    if not asked.arch:
        if weights.threshold is not None and not weights.gates:
            return JumpReluConfig()
        if len(weights.gates) == len(GATES):
            return GatedConfig()
        if k is None:
            raise ConfigError(
                f"{path} does not say what its activation is: name it with --arch relu, topk, "
                "jumprelu or another"
            )
        return topk_like(TopKConfig, k, source=path)
    kind = ARCHS[asked.arch]
    if asked.arch in KEEP_K:
        if k is None:
            raise ConfigError(f"{path} does not say how many latents of a row are kept: name --k")
        return topk_like(kind, k, source=path)
    return relu_like(weights.norms()) if asked.arch == "relu" else kind()
