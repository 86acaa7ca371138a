"""The families of language models saepipe knows, and where each keeps its sites.

A new family is one entry of `FAMILIES`; a new kind of site is one line in each entry.
Torch-free, so that a plan can be made before anything heavy is imported.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.errors import ConfigError, ModelError

KINDS = ("resid_pre", "attn_out", "resid_mid", "mlp_pre", "mlp_act", "mlp_out", "resid_post")
"""Kinds of site in the order in which one layer computes them."""


@dataclass(frozen=True, order=True)
class Site:
    """One place where activations are read or replaced, written `kind.layer`: `mlp_out.3`.

    Sites sort in the order in which a forward pass computes them.
    """

    layer: int
    rank: int

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read `mlp_out.3`.

        Raises:
            ConfigError: the kind is unknown or the layer is not a number.
        """
        kind, _, layer = text.partition(".")
        if kind not in KINDS or not (layer.isascii() and layer.isdecimal()):
            raise ConfigError(
                f"bad site {text!r}: expected KIND.LAYER, as in mlp_out.1, with KIND one of "
                f"{', '.join(KINDS)}"
            )
        return cls(layer=int(layer), rank=KINDS.index(kind))

    def at(self, layer: int) -> "Site":
        """The same kind of site in another layer."""
        return Site(layer=layer, rank=self.rank)

    @property
    def kind(self) -> str:
        """`mlp_out` of `mlp_out.3`."""
        return KINDS[self.rank]

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"


@dataclass(frozen=True)
class Stage:
    """Where a kind of site lies inside a layer."""

    module: str
    """Path inside the layer; empty for the layer itself."""
    side: Literal["in", "out"]
    """Whether the site is the first input of that module or its output."""
    needs: tuple[str, ...] = ()
    """Modules that run between the stage before and this one."""
    shared: bool = False
    """The layer reads this input once more by another way, so that an edit must be in place."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family of models names its parts; paths are inside the base model."""

    config_class: str
    model_class: str
    layers: str
    embeddings: tuple[str, ...]
    attention: tuple[str, str]
    """The layer norm before the attention, and the attention itself."""
    stages: Mapping[str, Stage]
    prefix: str
    """Of the base model's tensors in a checkpoint."""
    final_norm: str
    centered: bool
    """The norms subtract the mean: LayerNorm, not RMSNorm."""
    transposed: bool = False
    """Matrices of the MLP are kept as `[in, out]`."""
    ties: bool = False
    """The unembedding is the embedding where config.json does not say."""

    def stage(self, site: Site) -> Stage:
        """Where this site lies inside its layer."""
        return self.stages[site.kind]

    def module_path(self, site: Site) -> str:
        """Path, inside the base model, of the module that has the site at its input or output."""
        inner = self.stage(site).module
        return f"{self.layers}.{site.layer}" + (f".{inner}" if inner else "")


FAMILIES: dict[str, Family] = {
    "gpt_neox": Family(
        config_class="GPTNeoXConfig",
        model_class="GPTNeoXForCausalLM",
        layers="layers",
        embeddings=("embed_in",),
        attention=("input_layernorm", "attention"),
        stages={
            "resid_pre": Stage("", "in"),
            "attn_out": Stage("attention.dense", "out", ("input_layernorm", "attention")),
            "resid_mid": Stage("post_attention_layernorm", "in", shared=True),
            "mlp_pre": Stage(
                "mlp.dense_h_to_4h", "out", ("post_attention_layernorm", "mlp.dense_h_to_4h")
            ),
            "mlp_act": Stage("mlp.dense_4h_to_h", "in"),
            "mlp_out": Stage("mlp", "out", ("mlp.dense_4h_to_h",)),
            "resid_post": Stage("", "out"),
        },
        prefix="gpt_neox",
        final_norm="final_layer_norm",
        centered=True,
    ),
    "gpt2": Family(
        config_class="GPT2Config",
        model_class="GPT2LMHeadModel",
        layers="h",
        embeddings=("wte", "wpe"),
        attention=("ln_1", "attn"),
        stages={
            "resid_pre": Stage("", "in"),
            "attn_out": Stage("attn.c_proj", "out", ("ln_1", "attn")),
            "resid_mid": Stage("ln_2", "in", shared=True),
            "mlp_pre": Stage("mlp.c_fc", "out", ("ln_2", "mlp.c_fc")),
            "mlp_act": Stage("mlp.c_proj", "in"),
            "mlp_out": Stage("mlp", "out", ("mlp.c_proj",)),
            "resid_post": Stage("", "out"),
        },
        prefix="transformer",
        final_norm="ln_f",
        centered=True,
        transposed=True,
        ties=True,
    ),
    "llama": Family(
        config_class="LlamaConfig",
        model_class="LlamaForCausalLM",
        layers="layers",
        embeddings=("embed_tokens",),
        attention=("input_layernorm", "self_attn"),
        stages={
            "resid_pre": Stage("", "in"),
            "attn_out": Stage("self_attn.o_proj", "out", ("input_layernorm", "self_attn")),
            "resid_mid": Stage("post_attention_layernorm", "in", shared=True),
            "mlp_pre": Stage("mlp.gate_proj", "out", ("post_attention_layernorm", "mlp.gate_proj")),
            "mlp_act": Stage("mlp.down_proj", "in", ("mlp.up_proj",)),
            "mlp_out": Stage("mlp", "out", ("mlp.down_proj",)),
            "resid_post": Stage("", "out"),
        },
        prefix="model",
        final_norm="norm",
        centered=False,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What a model's config.json says of its size."""

    family: Family
    n_layers: int
    d_model: int
    d_mlp: int
    n_positions: int
    parallel: bool
    """Attention and MLP read the same input and are added together, as in Pythia."""

    @classmethod
    def of(cls, config: Mapping[str, Any], *, name: str) -> "Shape":
        """Read a config.json.

        Raises:
            ModelError: the family is not one saepipe knows.
        """
        model_type = config.get("model_type")
        if model_type not in FAMILIES:
            raise ModelError(
                f"{name} is a {model_type!r} model; saepipe knows {', '.join(FAMILIES)}"
            )
        gpt2 = model_type == "gpt2"
        d_model = config["n_embd" if gpt2 else "hidden_size"]
        d_mlp = config.get("n_inner") or 4 * d_model if gpt2 else config["intermediate_size"]
        return cls(
            family=FAMILIES[model_type],
            n_layers=config["n_layer" if gpt2 else "num_hidden_layers"],
            d_model=d_model,
            d_mlp=d_mlp,
            n_positions=config["n_positions" if gpt2 else "max_position_embeddings"],
            parallel=model_type == "gpt_neox" and config.get("use_parallel_residual", True),
        )

    def width(self, site: Site) -> int:
        """Width of the activations at this site."""
        return self.d_mlp if site.kind in ("mlp_pre", "mlp_act") else self.d_model

    def check(self, site: Site, *, name: str) -> None:
        """Refuse a site that this model does not have.

        Raises:
            ConfigError: the layer is beyond the last, or the kind does not exist here.
        """
        if site.layer >= self.n_layers:
            raise ConfigError(
                f"site {site} does not exist: {name} has layers 0 to {self.n_layers - 1}"
            )
        if site.kind == "resid_mid" and self.parallel:
            raise ConfigError(
                f"site {site} does not exist: {name} adds attention and MLP to the residual "
                f"stream together; use resid_pre.{site.layer} or resid_post.{site.layer}"
            )

    def skips_attention(self, sites: Iterable[Site]) -> bool:
        """Whether the last layer's attention can stay out: a parallel MLP does not read it."""
        last = max(sites)
        in_mlp = last.kind in ("mlp_pre", "mlp_act", "mlp_out")
        wants_attention = Site.parse(f"attn_out.{last.layer}") in set(sites)
        return self.parallel and in_mlp and not wants_attention

    def modules_for(self, sites: Iterable[Site]) -> tuple[str, ...]:
        """Paths of the modules of the base model that must run to reach all of these sites."""
        wanted = tuple(sites)
        last, family = max(wanted), self.family
        modules = [*family.embeddings, *(f"{family.layers}.{i}" for i in range(last.layer))]
        skipped = family.attention if self.skips_attention(wanted) else ()
        for kind in KINDS[: last.rank + 1]:
            needs = family.stages[kind].needs
            modules += [f"{family.layers}.{last.layer}.{n}" for n in needs if n not in skipped]
        return tuple(modules)
