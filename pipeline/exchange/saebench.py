"""saebench(run): an SAE as SAEBench takes a custom one.

SAEBench (Karvonen et al. 2025, arXiv 2503.09532) asks a custom SAE for `encode`, `decode`,
`forward`, the four matrices, `device`, `dtype`, and a `cfg` that says where in which model it is
(`sae_bench/custom_saes/base_sae.py` and `custom_sae_config.py`, 0.6.0). It looks at names alone,
so that nothing of it need be installed here.
"""

from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.config.keywords import told_in_settings
from pipeline.device import pick_device
from pipeline.errors import ConfigError
from pipeline.evaluate.setup import LoadedSAE, load_sae
from pipeline.limits import limits_told
from pipeline.lm.names import hook_of
from pipeline.sae.sae import SAE, TunedSAE


@dataclass(kw_only=True)
class SAEBenchConfig:
    """Where an SAE belongs; SAEBench writes into it, and keeps it beside its results."""

    model_name: str
    """As TransformerLens calls it."""
    d_in: int
    d_sae: int
    hook_layer: int
    hook_name: str
    architecture: str
    context_size: int
    dtype: str
    device: str
    dataset_path: str = ""
    training_tokens: int
    prepend_bos: bool = False
    """Contexts here are those of the store: no token is put before them."""
    apply_b_dec_to_input: bool = True
    normalize_activations: str = "none"
    """What a run was trained with is part of its weights."""
    hook_head_index: int | None = None
    dataset_trust_remote_code: bool = False
    exclude_special_tokens: bool = False
    finetuning_scaling_factor: bool = False
    activation_fn_str: str = ""
    activation_fn_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    model_from_pretrained_kwargs: dict[str, Any] = field(default_factory=dict[str, Any])
    seqpos_slice: tuple[int | None, ...] = (None,)
    sae_lens_training_version: str | None = None
    neuronpedia_id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it, without what SAEBench adds."""
        return asdict(self)


@final
class SAEBenchSAE(nn.Module):
    """An SAE with the names that SAEBench asks for; it computes what the run does."""

    def __init__(self, sae: SAE, cfg: SAEBenchConfig) -> None:
        super().__init__()
        self.sae, self.cfg = sae, cfg
        self.W_enc, self.b_enc = sae.W_enc, sae.b_enc
        self.W_dec, self.b_dec = sae.W_dec, sae.b_dec
        for name, own in sae.activation.named_parameters():  # it looks for a gated SAE's `b_mag`
            self.register_parameter(name, own)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.W_dec.device

    @property
    def dtype(self) -> torch.dtype:
        """In which it computes."""
        return self.W_dec.dtype

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        """Latents of each row."""
        return self.sae.encode(x)

    def decode(self, feature_acts: Float[Tensor, "*batch d_sae"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction from latents."""
        return self.sae.decode(feature_acts)

    def forward(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_in"]:
        """Reconstruction of each row."""
        return self.decode(self.encode(x))

    def to(self, *args: Any, **kwargs: Any) -> "SAEBenchSAE":  # noqa: ANN401 - as torch takes them
        """Move or convert it; its config says so, too."""
        super().to(*args, **kwargs)
        self.cfg.device, self.cfg.dtype = str(self.device), _name(self.dtype)
        return self


@told_in_settings
@limits_told()
def saebench(
    run: str | PathLike[str],
    *,
    model_name: str | None = None,
    device: str = "auto",
    dtype: torch.dtype | None = None,
) -> SAEBenchSAE:
    """An SAE as a custom one of SAEBench, for its evaluations.

        from sae_bench.evals.core.main import multiple_evals

        multiple_evals([("topk", sp.saebench("runs/topk"))], ...)

    Args:
        run: Of an SAE; a fine-tuned one is folded.
        model_name: What TransformerLens calls the model; None takes the name that the run has.
        device: `cpu`, `cuda`, `mps`, or `auto` for the best that is there.
        dtype: That it computes in; None is float32.

    Raises:
        CheckpointError: the run is missing, unfinished or damaged.
        ConfigError: it says no model and none is named, or the device is not there.
    """
    run, dtype = Path(run), dtype or torch.float32
    subject = load_sae(run, device=pick_device(device))
    model = model_name or subject.model
    if not model:
        raise ConfigError(f"{run} does not say which model it is of: name it with model_name")
    source = subject.provenance
    cfg = SAEBenchConfig(
        model_name=model,
        d_in=subject.coder.d_in,
        d_sae=subject.coder.d_sae,
        hook_layer=subject.site.of_layer("sp.saebench").layer,
        hook_name=hook_of(str(subject.site)),
        architecture=subject.arch,
        context_size=source.ctx_len,
        dtype=_name(dtype),
        device=str(subject.coder.W_dec.device),
        dataset_path=source.text,
        training_tokens=source.n_rows,
    )
    return SAEBenchSAE(_plain(subject), cfg).to(dtype=dtype).eval()


def _plain(subject: LoadedSAE) -> SAE:
    coder = subject.coder
    return coder.fold() if isinstance(coder, TunedSAE) else cast("SAE", coder)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
