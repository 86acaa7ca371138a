"""A tiny random model of every family, made by transformers from the family's config class.

Sizes are odd on purpose: fewer keys than heads, heads that are narrower than their share of the
stream, windows shorter than a context, layers of both kinds, caps that bite.
"""

from collections.abc import Callable

import transformers
from transformers import PreTrainedModel

N_LAYERS = 3
_SIZES = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": N_LAYERS, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 64,
}  # fmt: skip
_GPT2_SIZES = {"vocab_size": 64, "n_embd": 32, "n_layer": N_LAYERS, "n_head": 4, "n_positions": 64}
_FEWER_KEYS = {"num_key_value_heads": 2}
_NARROW = _FEWER_KEYS | {"head_dim": 6}
_BOTH_KINDS = {
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def make(name: str, *, config: str = "", **settings: object) -> PreTrainedModel:
    """A causal model of the family whose classes begin with `name`, but perhaps its config's."""
    made = getattr(transformers, f"{config or name}Config")(**(_IDS | settings))
    return getattr(transformers, f"{name}ForCausalLM")(made)


def gemma2(*, cap: float | None = 2.0) -> PreTrainedModel:
    """Two norms a branch, and both caps."""
    return make(
        "Gemma2", **_SIZES, **_NARROW, **_BOTH_KINDS, query_pre_attn_scalar=6,
        final_logit_softcapping=cap, attn_logit_softcapping=0.5,
    )  # fmt: skip


def gemma3_of_images() -> PreTrainedModel:
    """A model of images and text, whose checkpoint is read for its text alone."""
    text = _SIZES | _NARROW | _BOTH_KINDS | _IDS
    seen = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "image_size": 4,
        "num_attention_heads": 2, "patch_size": 2,
    }  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=text, vision_config=seen, mm_tokens_per_image=4, image_token_index=63,
        boi_token_index=61, eoi_token_index=62,
    )  # fmt: skip
    return transformers.Gemma3ForConditionalGeneration(config)


def falcon(**settings: object) -> PreTrainedModel:
    """In parallel behind one norm, unless settings say otherwise."""
    sizes = {key: value for key, value in _SIZES.items() if key != "intermediate_size"}
    return make("Falcon", **sizes, ffn_hidden_size=40, **settings)


def opt(**settings: object) -> PreTrainedModel:
    """The MLP's matrices in the layer itself, biases, positions with an offset."""
    sizes = {key: value for key, value in _SIZES.items() if key != "intermediate_size"}
    return make("OPT", **sizes, ffn_dim=40, **settings)


def experts(name: str, **settings: object) -> PreTrainedModel:
    """Four experts a layer, of which two see a token; in layer 0 an MLP instead, if asked for."""
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    return make(name, **_SIZES, **_FEWER_KEYS, **sizes, **settings)


MAKERS: dict[str, Callable[[], PreTrainedModel]] = {
    "mistral": lambda: make("Mistral", **_SIZES, **_NARROW, sliding_window=4),
    "qwen2": lambda: make(
        "Qwen2", **_SIZES, **_FEWER_KEYS, use_sliding_window=True, sliding_window=4,
        max_window_layers=1, tie_word_embeddings=True,
    ),
    "qwen3": lambda: make("Qwen3", **_SIZES, **_NARROW),
    "gemma": lambda: make("Gemma", **_SIZES, **_NARROW),
    "gemma2": gemma2,
    "gemma3": lambda: make(
        "Gemma3", config="Gemma3Text", **_SIZES, **_NARROW, **_BOTH_KINDS, query_pre_attn_scalar=6
    ),
    "gemma3-of-images": gemma3_of_images,
    "olmo2": lambda: make("Olmo2", **_SIZES, **_FEWER_KEYS),
    "olmo3": lambda: make("Olmo3", **_SIZES, **_FEWER_KEYS, **_BOTH_KINDS),
    "smollm3": lambda: make("SmolLM3", **_SIZES, **_FEWER_KEYS, no_rope_layer_interval=2),
    "starcoder2": lambda: make("Starcoder2", **_SIZES, **_FEWER_KEYS, sliding_window=4),
    "stablelm": lambda: make("StableLm", **_SIZES, **_FEWER_KEYS, use_qkv_bias=True),
    "stablelm-parallel": lambda: make(
        "StableLm", **_SIZES, num_key_value_heads=4, use_parallel_residual=True
    ),
    "cohere": lambda: make("Cohere", **_SIZES, **_FEWER_KEYS, logit_scale=0.3),
    "phi": lambda: make("Phi", **_SIZES, **_FEWER_KEYS),
    "phi3": lambda: make("Phi3", **_SIZES, **_FEWER_KEYS, sliding_window=4),
    "gptj": lambda: make("GPTJ", **_GPT2_SIZES, n_inner=40, rotary_dim=4),
    "gpt_neo": lambda: make(
        "GPTNeo", vocab_size=64, hidden_size=32, num_layers=N_LAYERS, num_heads=4,
        intermediate_size=40, max_position_embeddings=64, window_size=4,
        attention_types=[[["global", "local", "global"], 1]],
    ),
    "gpt_bigcode": lambda: make("GPTBigCode", **_GPT2_SIZES, n_inner=40),
    "opt": opt,
    "opt-350m": lambda: opt(do_layer_norm_before=False, word_embed_proj_dim=16),
    "falcon": falcon,
    "falcon-two-norms": lambda: falcon(new_decoder_architecture=True, num_kv_heads=2),
    "falcon-in-turn": lambda: falcon(
        parallel_attn=False, multi_query=False, alibi=True, bias=True
    ),
    "mixtral": lambda: make(
        "Mixtral", **_SIZES, **_NARROW, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen2_moe": lambda: experts(
        "Qwen2Moe", shared_expert_intermediate_size=20, mlp_only_layers=[0]
    ),
    "qwen3_moe": lambda: experts("Qwen3Moe", head_dim=6, mlp_only_layers=[0]),
    "mamba": lambda: make(
        "Mamba", vocab_size=64, hidden_size=32, num_hidden_layers=N_LAYERS, state_size=4
    ),
}  # fmt: skip
