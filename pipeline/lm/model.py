"""Language models, whole or only as far as a site needs. The only importer of transformers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pipeline.errors import ConfigError
from pipeline.lm.families import Shape, Site
from pipeline.lm.hub import ModelFiles
from pipeline.lm.weights import Weights

_HEAD = "lm_head.weight"


class LanguageModel:
    """A frozen causal language model: tokens to hidden states, hidden states to logits."""

    def __init__(self, module: Any, *, files: ModelFiles, shape: Shape) -> None:  # noqa: ANN401
        self.module = module
        self.body: nn.Module = module.base_model
        self.files = files
        self.shape = shape

    @property
    def name(self) -> str:
        """Hub id, local folder, or `builtin`."""
        return self.files.name

    @property
    def device(self) -> torch.device:
        """Where tokens must be."""
        return self.body.get_input_embeddings().weight.device  # pyright: ignore[reportCallIssue]

    @property
    def n_vocab(self) -> int:
        """Rows of the embedding; a tokenizer may use fewer."""
        return self.module.config.vocab_size

    def width(self, site: Site) -> int:
        """Width of the activations at this site."""
        return self.shape.width(site)

    def require_fits(self, site: Site, *, d_in: int, ctx_len: int, run: Path) -> None:
        """Refuse an SAE that cannot be spliced in.

        Raises:
            ConfigError: the model lacks the site, its width differs, or its context is too short.
        """
        self.shape.check(site, name=self.name)
        if self.width(site) != d_in:
            raise ConfigError(
                f"{run} is an SAE of {d_in} dimensions, but {site} of {self.name} has "
                f"{self.width(site)}: choose the model or the site it was trained on"
            )
        if ctx_len > self.shape.n_positions:
            raise ConfigError(
                f"contexts of {ctx_len} tokens do not fit into {self.name}, which takes "
                f"{self.shape.n_positions}"
            )

    def fingerprint(self) -> str:
        """What identifies the weights; see `ModelFiles.fingerprint`."""
        return self.files.fingerprint()

    def hidden(
        self, tokens: Int[Tensor, "batch position"]
    ) -> Float[Tensor, "batch position d_model"]:
        """Hidden states after the final norm."""
        return self.body(input_ids=tokens, use_cache=False).last_hidden_state

    def logits(self, hidden: Float[Tensor, "rows d_model"]) -> Float[Tensor, "rows n_vocab"]:
        """Next-token logits of these rows; slice the rows to bound the memory."""
        return self.module.get_output_embeddings()(hidden)


class _NoAttention(nn.Module):
    """Stands where an attention would run whose result nobody reads."""

    def forward(self, hidden: Tensor, **_: object) -> tuple[Tensor, None]:
        return hidden.new_zeros(()), None


def load_model(
    name: str, *, revision: str = "main", device: torch.device, dtype: torch.dtype
) -> LanguageModel:
    """A whole model, in evaluation mode, every weight frozen.

    Raises:
        ModelError: not found, not reached, damaged, or of an unknown family.
    """
    files = ModelFiles(name, revision)
    model = _empty(files)
    names = [key for key, _ in model.module.named_parameters(remove_duplicate=False)]
    return _fill(model, names, device=device, dtype=dtype)


def load_for_sites(
    name: str,
    sites: Sequence[Site],
    *,
    revision: str = "main",
    device: torch.device,
    dtype: torch.dtype,
) -> LanguageModel:
    """A model with only the weights that run before the last of these sites.

    What stays out holds no memory: it is on torch's meta device, and guarded against running.

    Raises:
        ModelError: as for `load_model`.
        ConfigError: the model has no such site.
    """
    files = ModelFiles(name, revision)
    shape = Shape.of(files.config, name=name)
    for site in sites:
        shape.check(site, name=name)
    model = _empty(files, n_layers=max(sites).layer + 1)
    if shape.skips_attention(sites):
        layer = model.body.get_submodule(f"{shape.family.layers}.{max(sites).layer}")
        norm, attention = shape.family.attention
        setattr(layer, norm, nn.Identity())
        setattr(layer, attention, _NoAttention())
    prefix = model.module.base_model_prefix
    roots = tuple(f"{prefix}.{path}." for path in shape.modules_for(sites))
    names = [key for key, _ in model.module.named_parameters() if key.startswith(roots)]
    return _fill(model, names, device=device, dtype=dtype)


def _empty(files: ModelFiles, *, n_layers: int | None = None) -> LanguageModel:
    """The model's modules without any memory for parameters."""
    import transformers

    shape = Shape.of(files.config, name=files.name)
    config = getattr(transformers, shape.family.config_class).from_dict(files.config)
    if n_layers is not None:
        config.num_hidden_layers = n_layers
    with torch.device("meta"):
        module = getattr(transformers, shape.family.model_class)(config)
    for path, part in list(module.named_modules()):  # rotary tables are computed, never saved
        if any(b.is_meta for b in part.buffers(recurse=False)):
            module.set_submodule(path, type(part)(config=config))
    return LanguageModel(module.eval().requires_grad_(False), files=files, shape=shape)


def _fill(
    model: LanguageModel, names: Sequence[str], *, device: torch.device, dtype: torch.dtype
) -> LanguageModel:
    """Read these parameters from the checkpoint straight to the device."""
    module, prefix = model.module, model.module.base_model_prefix
    weights = Weights.locate(model.files)
    wanted = list(names)
    tied = module.config.tie_word_embeddings and _HEAD in wanted
    if tied:
        wanted.remove(_HEAD)
    tensors = weights.load(wanted, prefix=prefix, device=device, dtype=dtype)
    module.load_state_dict(tensors, strict=False, assign=True)
    module.requires_grad_(False)
    if tied:
        module.get_output_embeddings().weight = module.get_input_embeddings().weight
    for part in module.modules():
        for key, buffer in part.named_buffers(recurse=False):
            setattr(part, key, buffer.to(device))
        if any(p.is_meta for p in part.parameters(recurse=False)):
            part.register_forward_hook(_refuse)  # not before: a site may be its input
    return model


def _refuse(module: nn.Module, _: object, __: object) -> None:
    """Torch may compute garbage, without an error, from a weight that holds no memory."""
    raise AssertionError(f"{module} was to stay out of this forward pass")
