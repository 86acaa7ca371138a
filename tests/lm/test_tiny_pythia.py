import json
import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, GPTNeoXForCausalLM

from pipeline.lm.hub import builtin_model_path
from pipeline.text.builtin import heldout_documents, train_documents

CONTEXTS = 16
MIDDLE = 2


@pytest.fixture(scope="module")
def folder() -> Path:
    return builtin_model_path()


@pytest.fixture(scope="module")
def training(folder):
    return json.loads((folder / "training.json").read_text())


@pytest.fixture(scope="module")
def model(folder) -> GPTNeoXForCausalLM:
    return GPTNeoXForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def encode(tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    ids = [token for text in tokenizer.encode_batch(texts) for token in (*text.ids, 0)]
    return torch.tensor(ids)


@pytest.fixture(scope="module")
def heldout(tokenizer) -> Tensor:
    return encode(tokenizer, [document.text for document in heldout_documents()])


@pytest.fixture(scope="module")
def blocks(model, heldout) -> Tensor:
    """Contexts spread evenly over the held-out text, each with the token after it."""
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


@contextmanager
def zeroed(module: nn.Module) -> Generator[None]:
    def zeros(_module: nn.Module, _args: object, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    handle = module.register_forward_hook(zeros)
    yield
    handle.remove()


def test_model_and_tokenizer_take_at_most_8_mb_together(folder):
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 8_000_000


def test_the_config_follows_pythia(model):
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


def test_a_quarter_of_each_head_is_rotated(folder, model):
    config = json.loads((folder / "config.json").read_text())
    assert config["rotary_pct"] == 0.25
    head = model.config.hidden_size // model.config.num_attention_heads
    assert 2 * len(model.gpt_neox.rotary_emb.inv_freq) == head // 4


def test_weights_are_half_precision_under_the_names_of_the_published_checkpoints(folder):
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.float16}
    assert {"embed_out.weight", "gpt_neox.embed_in.weight"} <= names
    assert "gpt_neox.layers.0.attention.query_key_value.weight" in names


def test_every_weight_reaches_the_model(folder):
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


def test_no_question_of_arithmetic_was_in_its_training_text():
    assert not [d.name for d in train_documents() if "Question: What is" in d.text]


@pytest.mark.slow
def test_heldout_loss_lies_far_below_the_unigram_entropy(model, tokenizer, heldout, clean):
    n_vocab = model.config.vocab_size
    seen = encode(tokenizer, [document.text for document in train_documents()])
    counts = torch.bincount(seen, minlength=n_vocab).double() + 1
    unigram = -(counts / counts.sum()).log()[heldout].mean().item()
    assert clean < unigram - 1.5 < math.log(n_vocab) - 1.5


def test_zero_ablating_the_middle_mlp_costs_a_tenth_of_a_nat(model, blocks, clean):
    with zeroed(model.gpt_neox.layers[MIDDLE].mlp):
        ablated = mean_loss(model, blocks)
    assert ablated > clean + 0.1


def test_what_training_recorded_is_true(model, training, clean):
    assert clean == pytest.approx(training["heldout_loss"], abs=0.3)
    assert training["heldout_loss"] < training["unigram_loss"] - 1.5
    assert training["uniform_loss"] == pytest.approx(math.log(model.config.vocab_size))
    assert training["heldout_loss_before_fp16"] == pytest.approx(training["heldout_loss"], abs=1e-3)
    assert training["mlp_out_zero_ablation_delta"][MIDDLE] >= 0.1
    assert len(training["mlp_out_zero_ablation_delta"]) == model.config.num_hidden_layers
    assert training["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    "key", ["seed", "steps", "tokens", "epochs", "seconds", "device", "versions", "corpus"]
)
def test_training_recorded_how_it_was_done(training, key):
    assert training[key] is not None
