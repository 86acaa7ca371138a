"""Sites: the kinds there are, and where each family of language models keeps them.

All about a kind of site is its entry of `KINDS`, all about a family its entry of `FAMILIES`. A kind
says in which *part* of a layer it lies (`mlp`, `attention_out`), a family how it calls that part.

A layer adds to its residual stream what two branches make of it, each through a norm of its own:

    resid_pre ─┬─ norm ─ attention ── attn_z ─ W_O ─ attn_out ─┐
               ├───────────────────────────────────────────────+── resid_mid
               ├─ norm ─ W_in ─ mlp_pre ─ f ─ mlp_act ─ W_out ─ mlp_out ─┐
               └─────────────────────────────────────────────────────────+── resid_post

In a parallel layer (Pythia's) both read `resid_pre`, and there is no `resid_mid`; in others the MLP
reads `resid_mid`. Torch-free, so that a plan can be made before anything heavy is imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import total_ordering
from typing import Any, Literal

from pipeline.errors import ConfigError, ModelError


@dataclass(frozen=True, kw_only=True)
class Branch:
    """A way that leaves the residual stream of a layer, and whose result is added to it."""

    norm: str
    """The part it reads the stream through."""
    module: str
    """The part that does the rest."""
    output: str
    """The kind of site that holds what it adds."""
    gives_pair: bool = False
    """The module gives its result and something more, as attention does its weights."""


ATTENTION = Branch(norm="attention_norm", module="attention", output="attn_out", gives_pair=True)
MLP = Branch(norm="mlp_norm", module="mlp", output="mlp_out")
BRANCHES = (ATTENTION, MLP)
"""In the order in which a layer computes them."""


@dataclass(frozen=True, kw_only=True)
class SiteKind:
    """All that is to be known of a kind of site."""

    name: str
    part: str = ""
    """The module that has the site at one of its sides; empty for the layer itself."""
    side: Literal["in", "out"]
    """Whether it is the first input of that module or its output."""
    shared: bool = False
    """The layer reads this input once more by another way, so that an edit must be in place."""
    width: Literal["d_model", "d_mlp", "d_attn"] = "d_model"
    """Which of a model's widths it has, a field of `Shape`."""
    needs: tuple[str, ...] = ()
    """Parts that run between the kind before and this one, where a family has them."""

    added: tuple[Branch, ...] = ()
    """On the residual stream: the branches of its layer that were added before it."""
    branch: Branch | None = None
    """The branch it lies on; None on the stream."""
    through: str | None = None
    """On a branch: the part, linear, that makes of it what is added; None if it is that itself."""
    nonlinear: bool = False
    """On a branch: what follows is not linear, so there is no direct way to the logits."""
    beside: tuple[str, ...] = ()
    """Parts that read the branch's norm beside the way to this site, where a family has them."""

    def __str__(self) -> str:
        return self.name


KINDS: dict[str, SiteKind] = {
    kind.name: kind
    for kind in (
        SiteKind(name="resid_pre", side="in"),
        SiteKind(
            name="attn_z", part="attention_out", side="in", width="d_attn", branch=ATTENTION,
            through="attention_out", needs=("attention_norm", "attention"),
        ),
        SiteKind(name="attn_out", part="attention_out", side="out", branch=ATTENTION),
        SiteKind(name="resid_mid", part="mlp_norm", side="in", shared=True, added=(ATTENTION,)),
        SiteKind(
            name="mlp_pre", part="mlp_in", side="out", width="d_mlp", branch=MLP,
            nonlinear=True, needs=("mlp_norm", "mlp_in"), beside=("mlp_gated",),
        ),
        SiteKind(
            name="mlp_act", part="mlp_out", side="in", width="d_mlp", branch=MLP,
            through="mlp_out", needs=("mlp_gated",),
        ),
        SiteKind(name="mlp_out", part="mlp", side="out", branch=MLP, needs=("mlp_out",)),
        SiteKind(name="resid_post", side="out", added=BRANCHES),
    )
}  # fmt: skip
"""In the order in which one layer computes them."""


@total_ordering
@dataclass(frozen=True)
class Site:
    """One place where activations are read or replaced, written `kind.layer`: `mlp_out.3`.

    Sites sort in the order in which a forward pass computes them.
    """

    layer: int
    kind: SiteKind

    @classmethod
    def parse(cls, text: str) -> "Site":
        """Read `mlp_out.3`."""
        kind, _, layer = text.partition(".")
        is_number = layer.isascii() and layer.isdecimal() and layer == str(int(layer))
        if kind not in KINDS or not is_number:
            raise ConfigError(
                f"bad site {text!r}: expected KIND.LAYER, as in mlp_out.1, with KIND one of "
                f"{', '.join(KINDS)}"
            )
        return cls(int(layer), KINDS[kind])

    def at(self, layer: int) -> "Site":
        """The same kind of site in another layer."""
        return Site(layer, self.kind)

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    def __lt__(self, other: "Site") -> bool:
        return self._order < other._order

    @property
    def _order(self) -> tuple[int, int]:
        return self.layer, list(KINDS).index(self.kind.name)


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
