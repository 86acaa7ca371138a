import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, GPTNeoXForCausalLM

from pipeline.lm.hub import builtin_model_path
from pipeline.text.builtin import heldout_documents

CONTEXTS = 16
MIDDLE = 2


@pytest.fixture(scope="module")
def folder() -> Path:
    return builtin_model_path()


@pytest.fixture(scope="module")
def model(folder) -> GPTNeoXForCausalLM:
    return GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.fixture(scope="module")
def blocks(model, tokenizer) -> Tensor:
    """Contexts spread evenly over the held-out text, each with the token after it."""
    texts = tokenizer.encode_batch([document.text for document in heldout_documents()])
    heldout = torch.tensor([token for text in texts for token in (*text.ids, 0)])
    ctx_len = model.config.max_position_embeddings
    starts = torch.linspace(0, len(heldout) - ctx_len - 1, CONTEXTS).long()
    return heldout[starts[:, None] + torch.arange(ctx_len + 1)]


@torch.no_grad()
def mean_loss(model: GPTNeoXForCausalLM, blocks: Tensor) -> float:
    logits = model(input_ids=blocks[:, :-1]).logits
    return F.cross_entropy(logits.flatten(0, 1), blocks[:, 1:].flatten()).item()


@pytest.fixture(scope="module")
def clean(model, blocks) -> float:
    return mean_loss(model, blocks)


def test_model_and_tokenizer_take_at_most_8_mb_together(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8_000_000


def test_the_config_follows_pythia(folder, model):
    config = model.config
    assert config.model_type == "gpt_neox"
    assert config.use_parallel_residual
    assert not config.tie_word_embeddings
    assert config.hidden_act == "gelu"
    assert config.hidden_dropout == config.attention_dropout == 0
    assert config.max_position_embeddings >= 256
    assert config.bos_token_id == config.eos_token_id == 0
    assert config.intermediate_size == 4 * config.hidden_size
    assert config.num_hidden_layers > MIDDLE
    assert json.loads((folder / "config.json").read_text())["rotary_pct"] == 0.25
    head = config.hidden_size // config.num_attention_heads
    assert 2 * len(model.gpt_neox.rotary_emb.inv_freq) == head // 4


def test_weights_are_half_precision_under_the_names_of_the_published_checkpoints(folder):
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float16}
    assert {"embed_out.weight", "gpt_neox.embed_in.weight"} <= names
    assert "gpt_neox.layers.0.attention.query_key_value.weight" in names
    _, report = GPTNeoXForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())


def test_both_ways_of_loading_the_tokenizer_agree_and_text_comes_back_whole(folder, tokenizer):
    text = "def f(x):\n\treturn 1234567 + x  # naïve, “quoted” ☃\n"
    auto = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.encode(text).ids
    assert auto(text)["input_ids"] == ids
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_to_id("<|endoftext|>") == auto.eos_token_id == auto.bos_token_id == 0


def test_numbers_are_tokenised_digit_by_digit(tokenizer):
    tokens = tokenizer.encode("is (12 * 345) + 678?").tokens
    assert [token for token in tokens if any(c.isdigit() for c in token)] == list("12345678")


def test_zero_ablating_the_middle_mlp_costs_a_tenth_of_a_nat(model, blocks, clean):
    mlp = model.gpt_neox.layers[MIDDLE].mlp
    with mlp.register_forward_hook(lambda _, __, output: torch.zeros_like(output)):
        ablated = mean_loss(model, blocks)
    assert ablated > clean + 0.1


def test_what_training_recorded_is_true(folder, model, clean):
    training = json.loads((folder / "training.json").read_text())
    assert clean == pytest.approx(training["heldout_loss"], abs=0.3)
    assert clean < training["unigram_loss"] - 1.5 < training["uniform_loss"] - 1.5
    assert training["uniform_loss"] == pytest.approx(math.log(model.config.vocab_size))
    assert training["heldout_loss_before_fp16"] == pytest.approx(training["heldout_loss"], abs=1e-3)
    assert training["mlp_out_zero_ablation_delta"][MIDDLE] >= 0.1
    assert len(training["mlp_out_zero_ablation_delta"]) == model.config.num_hidden_layers
    assert training["parameters"] == sum(p.numel() for p in model.parameters())
    how = ("seed", "steps", "tokens", "epochs", "seconds", "device", "versions", "corpus")
    assert all(training[key] is not None for key in how)
