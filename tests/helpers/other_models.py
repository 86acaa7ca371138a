"""Small random models of families that saepipe does not know, with tokenizers."""

import json
from collections.abc import Callable
from pathlib import Path

import transformers

from tests.helpers.models import save_random
from tests.helpers.tiny import EOS, make_tokenizer

_IDS = {"vocab_size": 260, "bos_token_id": 0, "eos_token_id": 256, "pad_token_id": 1}
_SIZES = _IDS | {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
_LONG = _SIZES | {"max_position_embeddings": 64}


def bloom() -> transformers.PreTrainedModel:
    return transformers.BloomForCausalLM(
        transformers.BloomConfig(**_IDS, hidden_size=16, n_layer=3, n_head=2)
    )


def xglm() -> transformers.PreTrainedModel:
    return transformers.XGLMForCausalLM(
        transformers.XGLMConfig(
            **_IDS, d_model=16, num_layers=3, attention_heads=2, ffn_dim=40,
            max_position_embeddings=64,
        )
    )  # fmt: skip


def codegen() -> transformers.PreTrainedModel:
    return transformers.CodeGenForCausalLM(
        transformers.CodeGenConfig(
            **_IDS, n_embd=16, n_layer=3, n_head=4, rotary_dim=4, n_positions=64, n_ctx=64
        )
    )


def biogpt() -> transformers.PreTrainedModel:
    return transformers.BioGptForCausalLM(transformers.BioGptConfig(**_LONG, intermediate_size=40))


def persimmon() -> transformers.PreTrainedModel:
    return transformers.PersimmonForCausalLM(
        transformers.PersimmonConfig(**_LONG, intermediate_size=40)
    )


def neox_japanese() -> transformers.PreTrainedModel:
    return transformers.GPTNeoXJapaneseForCausalLM(transformers.GPTNeoXJapaneseConfig(**_LONG))


def recurrent_gemma() -> transformers.PreTrainedModel:
    """Layers of two kinds, and a cap on its logits."""
    return transformers.RecurrentGemmaForCausalLM(
        transformers.RecurrentGemmaConfig(
            **_SIZES, num_key_value_heads=1, intermediate_size=48, lru_width=16
        )
    )


OTHERS: dict[str, Callable[[], transformers.PreTrainedModel]] = {
    "bloom": bloom, "xglm": xglm, "codegen": codegen, "biogpt": biogpt, "persimmon": persimmon,
    "neox_japanese": neox_japanese, "recurrent_gemma": recurrent_gemma,
}  # fmt: skip


def save_other(name: str, folder: Path) -> Path:
    """One of them, as a folder that can be harvested."""
    save_random(OTHERS[name](), folder)
    make_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": EOS}))
    return folder


def say(folder: Path, **settings: object) -> Path:
    """Have its config.json say these, too."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder
