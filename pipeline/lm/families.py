"""Families of language models: how each names its parts, and what its config.json says of sizes.

All about a family is its entry of `FAMILIES`. Torch-free, so that a plan can be made before
anything heavy is imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.sites import ATTENTION, BRANCHES, KINDS, MLP, Site, SiteKind


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What a family's config.json calls the sizes of a model."""

    n_layers: str = "num_hidden_layers"
    d_model: str = "hidden_size"
    d_mlp: str = "intermediate_size"
    n_heads: str = "num_attention_heads"
    d_head: str = "head_dim"
    """Where it is not there, heads share `d_model`."""
    n_positions: str = "max_position_embeddings"
    parallel: str | None = None
    """Says that layers are parallel, as they are where it is not there; None where none are."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family of models names its parts; paths are inside the base model."""

    config_class: str
    model_class: str
    keys: Keys = Keys()
    mlp_ratio: int | None = None
    """`d_mlp / d_model` where config.json does not say; None if it always does."""
    embeddings: tuple[str, ...]
    layers: str
    parts: Mapping[str, str]
    """Paths inside a layer, by the names that kinds and branches use."""
    final_norm: str
    centered: bool
    """The norms subtract the mean: LayerNorm, not RMSNorm."""
    prefix: str
    """Of the base model's tensors in a checkpoint."""
    transposed: bool = False
    """Matrices are kept as `[in, out]`."""
    ties: bool = False
    """The unembedding is the embedding where config.json does not say."""

    def path(self, layer: int, part: str) -> str:
        """Path, inside the base model, of a part of a layer, or of the layer itself."""
        return f"{self.layers}.{layer}" + (f".{self.parts[part]}" if part else "")

    def module_path(self, site: Site) -> str:
        """Path, inside the base model, of the module that has the site at its input or output."""
        return self.path(site.layer, site.kind.part)


FAMILIES: dict[str, Family] = {
    "gpt_neox": Family(
        config_class="GPTNeoXConfig",
        model_class="GPTNeoXForCausalLM",
        keys=Keys(parallel="use_parallel_residual"),
        embeddings=("embed_in",),
        layers="layers",
        parts={
            "attention_norm": "input_layernorm",
            "attention": "attention",
            "attention_out": "attention.dense",
            "mlp_norm": "post_attention_layernorm",
            "mlp": "mlp",
            "mlp_in": "mlp.dense_h_to_4h",
            "mlp_out": "mlp.dense_4h_to_h",
        },
        final_norm="final_layer_norm",
        centered=True,
        prefix="gpt_neox",
    ),
    "gpt2": Family(
        config_class="GPT2Config",
        model_class="GPT2LMHeadModel",
        keys=Keys(
            n_layers="n_layer",
            d_model="n_embd",
            d_mlp="n_inner",
            n_heads="n_head",
            n_positions="n_positions",
        ),
        mlp_ratio=4,
        embeddings=("wte", "wpe"),
        layers="h",
        parts={
            "attention_norm": "ln_1",
            "attention": "attn",
            "attention_out": "attn.c_proj",
            "mlp_norm": "ln_2",
            "mlp": "mlp",
            "mlp_in": "mlp.c_fc",
            "mlp_out": "mlp.c_proj",
        },
        final_norm="ln_f",
        centered=True,
        prefix="transformer",
        transposed=True,
        ties=True,
    ),
    "llama": Family(
        config_class="LlamaConfig",
        model_class="LlamaForCausalLM",
        embeddings=("embed_tokens",),
        layers="layers",
        parts={
            "attention_norm": "input_layernorm",
            "attention": "self_attn",
            "attention_out": "self_attn.o_proj",
            "mlp_norm": "post_attention_layernorm",
            "mlp": "mlp",
            "mlp_in": "mlp.gate_proj",
            "mlp_gated": "mlp.up_proj",
            "mlp_out": "mlp.down_proj",
        },
        final_norm="norm",
        centered=False,
        prefix="model",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model's config.json says of its size."""

    family: Family
    n_layers: int
    d_model: int
    d_mlp: int
    d_attn: int
    """Of all heads together."""
    n_positions: int
    parallel: bool
    """Attention and MLP read the same input and are added together, as in Pythia."""

    @classmethod
    def of(cls, config: Mapping[str, Any], *, name: str) -> "Shape":
        """Read a config.json, of a family that saepipe knows."""
        model_type = config.get("model_type")
        if model_type not in FAMILIES:
            raise ModelError(
                f"{name} is a {model_type!r} model; saepipe knows {', '.join(FAMILIES)}"
            )
        family = FAMILIES[model_type]
        keys, ratio = family.keys, family.mlp_ratio

        def size(key: str, default: int | None = None) -> int:
            value = config.get(key)
            value = default if value is None else value
            if not isinstance(value, int):
                raise ModelError(f"config.json of {name} lacks {key!r}")
            return value

        d_model, n_heads = size(keys.d_model), size(keys.n_heads)
        return cls(
            family=family,
            n_layers=size(keys.n_layers),
            d_model=d_model,
            d_mlp=size(keys.d_mlp, ratio and ratio * d_model),
            d_attn=n_heads * size(keys.d_head, d_model // n_heads),
            n_positions=size(keys.n_positions),
            parallel=keys.parallel is not None and config.get(keys.parallel, True),
        )

    def width(self, site: Site) -> int:
        """Width of the activations at this site."""
        return getattr(self, site.kind.width)

    def kinds(self) -> list[SiteKind]:
        """The kinds of site that the layers of this model have."""
        return [kind for kind in KINDS.values() if self._why_not(kind) is None]

    def check(self, site: Site, *, name: str) -> None:
        """Refuse a site that this model does not have."""
        if site.layer >= self.n_layers:
            raise ConfigError(
                f"site {site} does not exist: {name} has layers 0 to {self.n_layers - 1}"
            )
        why_not = self._why_not(site.kind)
        if why_not is not None:
            others = [f"{kind}.{site.layer}" for kind in self.kinds() if kind.branch is None]
            raise ConfigError(
                f"site {site} does not exist: {name} {why_not}; use {' or '.join(others)}"
            )

    def _why_not(self, kind: SiteKind) -> str | None:
        """Why layers of this model have no such site; None if they have."""
        if self.parallel and kind.added not in ((), BRANCHES):
            return "adds attention and MLP to the residual stream together"
        if kind.part and kind.part not in self.family.parts:
            return f"is a {self.family.model_class}, in which no part is called {kind.part}"
        return None

    def skips_attention(self, sites: Sequence[Site]) -> bool:
        """Whether the last layer's attention can stay out: a parallel MLP does not read it."""
        last = max(sites)
        attended = any(s.layer == last.layer and s.kind.branch is ATTENTION for s in sites)
        return self.parallel and last.kind.branch is MLP and not attended

    def modules_for(self, sites: Sequence[Site]) -> tuple[str, ...]:
        """Paths of the modules of the base model that must run to reach all of these sites."""
        last, family, skips = max(sites), self.family, self.skips_attention(sites)
        needed = [
            part
            for kind in KINDS.values()
            if Site(last.layer, kind) <= last and not (skips and kind.branch is ATTENTION)
            for part in kind.needs
            if part in family.parts
        ]
        return (
            *family.embeddings,
            *(family.path(layer, "") for layer in range(last.layer)),
            *(family.path(last.layer, part) for part in needed),
        )
