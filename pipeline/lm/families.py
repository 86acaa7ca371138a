"""Families of language models: how each names its parts, and what its config.json says of sizes.

All about a family is its entry of `FAMILIES`. Torch-free, so that a plan can be made before
anything heavy is imported.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.sites import ATTENTION, BRANCHES, KINDS, MLP, Branch, LayerSite, SiteKind

_NO_BOUND = 2**31 - 1
"""Positions of a model that counts none."""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What a family's config.json calls the sizes of a model, and what is done to its logits."""

    n_layers: str = "num_hidden_layers"
    d_model: str = "hidden_size"
    d_mlp: str = "intermediate_size"
    n_heads: str | None = "num_attention_heads"
    """None in a model without attention."""
    d_head: str = "head_dim"
    """Where it is not there, heads share `d_model`."""
    n_positions: str | None = "max_position_embeddings"
    """None where there is no bound."""
    logit_cap: str | None = None
    """Logits become `cap * tanh(logits / cap)`."""
    logit_scale: str | None = None
    """Logits are multiplied by it."""


def _as_it_is(family: "Family", _: Mapping[str, Any]) -> "Family":
    return family


@dataclass(frozen=True, kw_only=True)
class Family:
    """How one family of models names its parts; paths are inside the base model."""

    config_class: str
    model_class: str
    keys: Keys = Keys()
    defaults: dict[str, Any] = field(default_factory=dict[str, Any])
    """What its config class takes for what config.json leaves out, as far as it is read here."""
    mlp_ratio: int | None = None
    """`d_mlp / d_model` where config.json does not say; None if it always does."""
    variant: Callable[["Family", Mapping[str, Any]], "Family"] = _as_it_is
    """The entry for one config.json, where settings decide which parts there are."""
    inside: str | None = None
    """The part of config.json that is the language model's, in a model of more than text."""

    embeddings: tuple[str, ...]
    """What makes the stream of tokens, in the order in which it runs: that of tokens is first."""
    layers: str
    parts: dict[str, str]
    """Paths inside a layer, by the names that kinds and branches use."""
    final_norm: str | None
    """None where the last layer ends in one."""
    centered: bool
    """The norms subtract the mean: LayerNorm, not RMSNorm."""
    unit_offset: bool = False
    """The norms multiply by one more than their weight."""
    parallel: bool = False
    """Attention and MLP read the same input and are added together, as in Pythia."""
    norms_first: bool = False
    """Both norms run before either branch, in a parallel layer."""
    norms_stream: bool = False
    """Norms are of the stream itself, each after a branch was added: later branches read them."""
    flat_mlp: bool = False
    """The MLP is given the tokens of all texts in one row."""
    adds_into_mlp: bool = False
    """The attention's result is added into the tensor that the MLP gave."""

    prefix: str
    """Of the base model, in the model and in a checkpoint."""
    other_prefixes: tuple[str, ...] = ()
    """What checkpoints have in the place of `prefix`."""
    renamed: dict[str, str] = field(default_factory=dict[str, str])
    """Of names of tensors what checkpoints, and for a part transformers 4, call otherwise."""
    experts: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])
    """By what a tensor of all experts is called, the matrices of each that checkpoints have."""
    transposed: bool = False
    """Matrices are kept as `[in, out]`."""

    def said_in(self, config: Mapping[str, Any], *, name: str) -> dict[str, Any]:
        """What a config.json says of the language model, with the defaults for what it does not."""
        said = config if self.inside is None else config.get(self.inside)
        if not isinstance(said, Mapping):
            raise ModelError(f"config.json of {name} lacks {self.inside!r}")
        return self.defaults | {key: it for key, it in said.items() if it is not None}

    def path(self, layer: int, part: str) -> str:
        """Path, inside the base model, of a part of a layer, or of the layer itself."""
        return f"{self.layers}.{layer}" + (f".{self.parts[part]}" if part else "")

    def parts_in(self, paths: Iterable[str]) -> dict[str, str]:
        """The parts in a model of these modules: transformers 4 calls some as checkpoints do."""
        there = set(paths)
        before = {now.strip("."): old.strip(".") for now, old in self.renamed.items()}

        def called(path: str) -> str:
            old = before.get(path, path)
            return old if f"{self.prefix}.{self.layers}.0.{old}" in there else path

        return {part: called(path) for part, path in self.parts.items()}

    def part(self, kind: SiteKind) -> str:
        """The part that has a kind of site at its input or output; empty for the layer itself.

        Where there is none, it is one that the family does not have.
        """
        for part in (kind.instead, kind.part, kind.fallback):
            if part and part in self.parts:
                return part
        return kind.part

    def module_path(self, site: LayerSite) -> str:
        """Path, inside the base model, of the module that has the site at its input or output."""
        return self.path(site.layer, self.part(site.kind))

    def reads_norm(self, branch: Branch) -> tuple[Branch, ...]:
        """The branches that read what this one's norm gives: both, in a layer of one norm."""
        norm = self.parts.get(branch.norm)
        return tuple(one for one in BRANCHES if self.parts.get(one.norm) == norm)

    def no_path_from(self, kind: SiteKind) -> str:
        """Why there is no linear way from a kind of site to the final norm; empty if there is."""
        if kind.nonlinear:
            return "a nonlinearity comes after it"
        post_norm = kind.branch is not None and kind.branch.post_norm in self.parts
        if self.norms_stream or (post_norm and kind.through is not None):
            return "a norm comes after it"
        return ""


def _neox(family: Family, config: Mapping[str, Any]) -> Family:
    return replace(family, parallel=config.get("use_parallel_residual", True))


def _stablelm(family: Family, config: Mapping[str, Any]) -> Family:
    """Parallel layers have one norm."""
    if not config.get("use_parallel_residual", False):
        return family
    return replace(family, parallel=True, parts=family.parts | {"mlp_norm": "input_layernorm"})


def _opt(family: Family, config: Mapping[str, Any]) -> Family:
    """OPT-350m has its norms after the branches, and embeds in another width than its stream's."""
    embeddings = family.embeddings
    if config.get("word_embed_proj_dim", config["hidden_size"]) != config["hidden_size"]:
        embeddings = (*embeddings, "decoder.project_in")
    if config.get("do_layer_norm_before", True):
        return replace(family, embeddings=embeddings)
    parts = {part: path for part, path in family.parts.items() if part != "attention_norm"}
    parts["mlp_norm"] = "self_attn_layer_norm"
    return replace(
        family, embeddings=embeddings, parts=parts, norms_stream=True, final_norm=None
    )  # fmt: skip


def _falcon(family: Family, config: Mapping[str, Any]) -> Family:
    """In turn, as the first of them; in parallel behind one norm (7B) or behind two (40B)."""
    new = config.get("new_decoder_architecture", False)
    if not new and not config.get("parallel_attn", True):
        return family
    n_norms = config.get("num_ln_in_parallel_attn") or (2 if new else 1)
    two = new and n_norms == 2
    norms = ("ln_attn", "ln_mlp") if two else ("input_layernorm",) * 2
    parts = family.parts | {"attention_norm": norms[0], "mlp_norm": norms[1]}
    return replace(family, parallel=True, norms_first=two, adds_into_mlp=True, parts=parts)


_TIED = {"tie_word_embeddings": True}

_NEOX = Family(
    config_class="GPTNeoXConfig",
    model_class="GPTNeoXForCausalLM",
    variant=_neox,
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
)
_GPT2 = Family(
    config_class="GPT2Config",
    model_class="GPT2LMHeadModel",
    keys=Keys(
        n_layers="n_layer",
        d_model="n_embd",
        d_mlp="n_inner",
        n_heads="n_head",
        n_positions="n_positions",
    ),
    defaults=_TIED,
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
)
_LLAMA = Family(
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
)
_GEMMA2 = replace(
    _LLAMA,
    config_class="Gemma2Config",
    model_class="Gemma2ForCausalLM",
    keys=Keys(logit_cap="final_logit_softcapping"),
    defaults=_TIED | {"head_dim": 256},
    parts=_LLAMA.parts
    | {
        "attention_post_norm": "post_attention_layernorm",
        "mlp_norm": "pre_feedforward_layernorm",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
    unit_offset=True,
)
_GEMMA3 = replace(
    _GEMMA2,
    config_class="Gemma3TextConfig",
    model_class="Gemma3ForCausalLM",
    defaults=_GEMMA2.defaults | {"num_attention_heads": 8, "max_position_embeddings": 131_072},
)
_OLMO2 = replace(
    _LLAMA,
    config_class="Olmo2Config",
    model_class="Olmo2ForCausalLM",
    parts={
        "attention": "self_attn",
        "attention_out": "self_attn.o_proj",
        "attention_post_norm": "post_attention_layernorm",
        "mlp": "mlp",
        "mlp_in": "mlp.gate_proj",
        "mlp_gated": "mlp.up_proj",
        "mlp_out": "mlp.down_proj",
        "mlp_post_norm": "post_feedforward_layernorm",
    },
)
_ATTENTION_AND_MLP = {
    "attention_norm": "input_layernorm",
    "attention": "self_attn",
    "attention_out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "mlp": "mlp",
}
_QWEN2_MOE = replace(
    _LLAMA,
    config_class="Qwen2MoeConfig",
    model_class="Qwen2MoeForCausalLM",
    parts=_ATTENTION_AND_MLP,
    experts={
        "gate_up_proj": ("gate_proj", "up_proj"),
        "down_proj": ("down_proj",),
    },
)

FAMILIES: dict[str, Family] = {
    "gpt_neox": _NEOX,
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "mistral": replace(_LLAMA, config_class="MistralConfig", model_class="MistralForCausalLM"),
    "qwen2": replace(_LLAMA, config_class="Qwen2Config", model_class="Qwen2ForCausalLM"),
    "qwen3": replace(
        _LLAMA, config_class="Qwen3Config", model_class="Qwen3ForCausalLM",
        defaults={"head_dim": 128},
    ),
    "gemma": replace(
        _LLAMA, config_class="GemmaConfig", model_class="GemmaForCausalLM",
        defaults=_TIED | {"head_dim": 256}, unit_offset=True,
    ),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "gemma3": replace(
        _GEMMA3, inside="text_config",
        other_prefixes=("model.language_model", "language_model.model"),
    ),
    "olmo2": _OLMO2,
    "olmo3": replace(_OLMO2, config_class="Olmo3Config", model_class="Olmo3ForCausalLM"),
    "smollm3": replace(
        _LLAMA, config_class="SmolLM3Config", model_class="SmolLM3ForCausalLM", defaults=_TIED
    ),
    "starcoder2": replace(
        _LLAMA, config_class="Starcoder2Config", model_class="Starcoder2ForCausalLM",
        defaults=_TIED, centered=True,
        parts=_ATTENTION_AND_MLP | {"mlp_in": "mlp.c_fc", "mlp_out": "mlp.c_proj"},
    ),
    "stablelm": replace(
        _LLAMA, config_class="StableLmConfig", model_class="StableLmForCausalLM",
        variant=_stablelm, centered=True,
    ),
    "cohere": replace(
        _LLAMA, config_class="CohereConfig", model_class="CohereForCausalLM",
        keys=Keys(logit_scale="logit_scale"), defaults=_TIED | {"logit_scale": 0.0625},
        parts=_LLAMA.parts | {"mlp_norm": "input_layernorm"}, centered=True, parallel=True,
    ),
    "phi": replace(
        _LLAMA, config_class="PhiConfig", model_class="PhiForCausalLM",
        parts={
            "attention_norm": "input_layernorm",
            "attention": "self_attn",
            "attention_out": "self_attn.dense",
            "mlp_norm": "input_layernorm",
            "mlp": "mlp",
            "mlp_in": "mlp.fc1",
            "mlp_out": "mlp.fc2",
        },
        final_norm="final_layernorm", centered=True, parallel=True,
    ),
    "phi3": replace(
        _LLAMA, config_class="Phi3Config", model_class="Phi3ForCausalLM",
        parts=_ATTENTION_AND_MLP | {"mlp_out": "mlp.down_proj"},
    ),
    "gptj": replace(
        _GPT2, config_class="GPTJConfig", model_class="GPTJForCausalLM", defaults={},
        embeddings=("wte",),
        parts={
            "attention_norm": "ln_1",
            "attention": "attn",
            "attention_out": "attn.out_proj",
            "mlp_norm": "ln_1",
            "mlp": "mlp",
            "mlp_in": "mlp.fc_in",
            "mlp_out": "mlp.fc_out",
        },
        parallel=True, transposed=False,
    ),
    "gpt_neo": replace(
        _GPT2, config_class="GPTNeoConfig", model_class="GPTNeoForCausalLM",
        keys=Keys(n_layers="num_layers", n_heads="num_heads"),
        parts=_GPT2.parts | {"attention_out": "attn.attention.out_proj"}, transposed=False,
    ),
    "gpt_bigcode": replace(
        _GPT2, config_class="GPTBigCodeConfig", model_class="GPTBigCodeForCausalLM",
        transposed=False,
    ),
    "opt": Family(
        config_class="OPTConfig",
        model_class="OPTForCausalLM",
        keys=Keys(d_mlp="ffn_dim"),
        defaults=_TIED,
        variant=_opt,
        embeddings=("decoder.embed_tokens", "decoder.embed_positions"),
        layers="decoder.layers",
        parts={
            "attention_norm": "self_attn_layer_norm",
            "attention": "self_attn",
            "attention_out": "self_attn.out_proj",
            "mlp_norm": "final_layer_norm",
            "mlp_in": "fc1",
            "mlp_out": "fc2",
        },
        final_norm="decoder.final_layer_norm",
        centered=True,
        flat_mlp=True,
        prefix="model",
    ),
    "falcon": Family(
        config_class="FalconConfig",
        model_class="FalconForCausalLM",
        keys=Keys(d_mlp="ffn_hidden_size"),
        defaults=_TIED | {"max_position_embeddings": 2048},
        mlp_ratio=4,
        variant=_falcon,
        embeddings=("word_embeddings",),
        layers="h",
        parts={
            "attention_norm": "input_layernorm",
            "attention": "self_attention",
            "attention_out": "self_attention.dense",
            "mlp_norm": "post_attention_layernorm",
            "mlp": "mlp",
            "mlp_in": "mlp.dense_h_to_4h",
            "mlp_out": "mlp.dense_4h_to_h",
        },
        final_norm="ln_f",
        centered=True,
        prefix="transformer",
    ),
    "mixtral": replace(
        _QWEN2_MOE, config_class="MixtralConfig", model_class="MixtralForCausalLM",
        renamed={".mlp.": ".block_sparse_moe."},
        experts={
            "gate_up_proj": ("w1", "w3"),
            "down_proj": ("w2",),
        },
    ),
    "qwen2_moe": _QWEN2_MOE,
    "qwen3_moe": replace(
        _QWEN2_MOE, config_class="Qwen3MoeConfig", model_class="Qwen3MoeForCausalLM"
    ),
    "mamba": Family(
        config_class="MambaConfig",
        model_class="MambaForCausalLM",
        keys=Keys(n_heads=None, n_positions=None),
        defaults=_TIED,
        mlp_ratio=2,
        embeddings=("embeddings",),
        layers="layers",
        parts={},
        final_norm="norm_f",
        centered=False,
        prefix="backbone",
        renamed={".embeddings.": ".embedding."},
    ),
}  # fmt: skip


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
    tied: bool
    """The unembedding is the embedding."""
    logit_scale: float = 1.0

    @classmethod
    def of(cls, config: Mapping[str, Any], *, name: str) -> "Shape":
        """Read a config.json, of a family that saepipe knows."""
        model_type = config.get("model_type")
        if model_type not in FAMILIES:
            raise ModelError(
                f"{name} is a {model_type!r} model; saepipe knows {', '.join(FAMILIES)}"
            )
        family = FAMILIES[model_type]
        said = family.said_in(config, name=name)
        keys, ratio = family.keys, family.mlp_ratio

        def size(key: str, default: int | None = None) -> int:
            value = said.get(key, default)
            if not isinstance(value, int):
                raise ModelError(f"config.json of {name} lacks {key!r}")
            return value

        d_model = size(keys.d_model)
        n_heads = size(keys.n_heads) if keys.n_heads else 0
        return cls(
            family=family.variant(family, said),
            n_layers=size(keys.n_layers),
            d_model=d_model,
            d_mlp=size(keys.d_mlp, ratio and ratio * d_model),
            d_attn=n_heads and n_heads * size(keys.d_head, d_model // n_heads),
            n_positions=size(keys.n_positions) if keys.n_positions else _NO_BOUND,
            tied=said.get("tie_word_embeddings", False),
            logit_scale=said[keys.logit_scale] if keys.logit_scale else 1.0,
        )

    @property
    def parallel(self) -> bool:
        """Attention and MLP read the same input and are added together, as in Pythia."""
        return self.family.parallel

    def width(self, site: LayerSite) -> int:
        """Width of the activations at this site."""
        return getattr(self, site.kind.width)

    def kinds(self) -> list[SiteKind]:
        """The kinds of site that the layers of this model have."""
        return [kind for kind in KINDS.values() if self._why_not(kind) is None]

    def check(self, site: LayerSite, *, name: str) -> None:
        """Refuse a site that this model does not have."""
        if site.layer >= self.n_layers:
            raise ConfigError(
                f"site {site} does not exist: {name} has layers 0 to {self.n_layers - 1}"
            )
        why_not = self._why_not(site.kind)
        if why_not is not None:
            of_stream = site.kind.branch is None
            others = [kind for kind in self.kinds() if not of_stream or kind.branch is None]
            raise ConfigError(
                f"site {site} does not exist: {name} {why_not}; use "
                f"{' or '.join(f'{kind}.{site.layer}' for kind in others)}"
            )

    def mlp_path(self, layer: int, *, name: str) -> str:
        """Path, inside the base model, of the module that is a layer's MLP and nothing more."""
        if MLP.module not in self.family.parts:
            raise ConfigError(
                f"{name} is a {self.family.model_class}, whose layers have no module that is the "
                "MLP: leave out --compare"
            )
        return self.family.path(layer, MLP.module)

    def _why_not(self, kind: SiteKind) -> str | None:
        """Why layers of this model have no such site; None if they have."""
        if self.parallel and kind.added not in ((), BRANCHES):
            return "adds attention and MLP to the residual stream together"
        if kind.part and self.family.part(kind) not in self.family.parts:
            return f"is a {self.family.model_class}, in which no part is called {kind.part}"
        return None

    def skips_attention(self, sites: Sequence[LayerSite]) -> bool:
        """Whether the last layer's attention can stay out: a parallel MLP does not read it."""
        last = max(sites)
        attended = any(s.layer == last.layer and s.kind.branch is ATTENTION for s in sites)
        return self.parallel and last.kind.branch is MLP and not attended

    def modules_for(self, sites: Sequence[LayerSite]) -> tuple[str, ...]:
        """Paths of the modules of the base model that must run to reach all of these sites."""
        last, family, skips = max(sites), self.family, self.skips_attention(sites)
        before = (
            *family.embeddings,
            *(family.path(layer, "") for layer in range(last.layer)),
        )
        if last.kind.added == BRANCHES:
            return (*before, family.path(last.layer, ""))
        needed = [
            part
            for kind in KINDS.values()
            if LayerSite(last.layer, kind) <= last and not (skips and kind.branch is ATTENTION)
            for part in kind.needs
            if part in family.parts
        ]
        if family.norms_first and last.kind.branch is ATTENTION:
            needed.append(MLP.norm)
        return (*before, *(family.path(last.layer, part) for part in needed))
