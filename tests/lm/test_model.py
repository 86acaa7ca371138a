"""A language model as a notebook uses it."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.model import LanguageModel
from pipeline.lm.sites import Site
from pipeline.sae.sae import TunedSAE
from tests.helpers.models import TOKENS, hooks_on, reference
from tests.helpers.refusals import refused
from tests.helpers.tiny import identity_sae, make_sae

TEXT = "def f(x):"


@pytest.fixture(scope="module")
def model(tiny_model) -> LanguageModel:
    return LanguageModel.from_pretrained(tiny_model, device="cpu")


@torch.no_grad()
def test_a_run_gives_the_logits_and_states_of_transformers_bit_for_bit(folder):
    model = LanguageModel.from_pretrained(str(folder), device="cpu")
    n = model.shape.n_layers
    names = [f"{kind}.{layer}" for kind in ("resid_pre", "resid_post") for layer in range(n)]
    logits, acts = model.run_with_acts(TOKENS, sites=names)
    expected = reference(folder)(TOKENS, output_hidden_states=True)
    assert torch.equal(logits, expected.logits)
    assert list(acts) == names and list(model.run_with_acts(TOKENS, names[0])[1]) == names[:1]
    assert not any(p.requires_grad for p in model.module.parameters())
    for layer in range(n):
        assert torch.equal(acts[f"resid_pre.{layer}"], expected.hidden_states[layer])
    for layer in range(n - 1):  # the last of transformers' is behind the final norm
        assert torch.equal(acts[f"resid_post.{layer}"], expected.hidden_states[layer + 1])
    norm = model.body.get_submodule(model.shape.family.final_norm)
    assert torch.equal(norm(acts[f"resid_post.{n - 1}"]), expected.hidden_states[n])
    assert not hooks_on(model)


def test_the_embedded_model_is_there_by_default():
    model = LanguageModel.from_pretrained(device="cpu")
    logits, acts = model.run_with_acts(TEXT, sites=["mlp_out.2"])
    n_tokens = model.to_tokens(TEXT).shape[1]
    assert logits.shape == (1, n_tokens, model.n_vocab)
    assert acts["mlp_out.2"].shape == (1, n_tokens, model.shape.d_model)
    for told in ("LanguageModel('builtin': GPTNeoXForCausalLM", "torch.float32 on cpu", "attn_z"):
        assert told in repr(model)
    assert "resid_mid" not in repr(model)


def test_text_becomes_the_tokens_of_a_document_without_its_end(model):
    ids = model.tokenizer.encode([TEXT])[0]
    assert ids[-1] == model.tokenizer.eos_id
    array = np.array(ids[:-1], np.int32)
    given = (TEXT, [TEXT], ids[:-1], [ids[:-1]], array, torch.tensor([ids[:-1]]),
             [*array], [array], [*torch.tensor(array)])  # fmt: skip
    for one in given:
        tokens = model.to_tokens(one)
        assert tokens.dtype == torch.int64
        assert tokens.tolist() == [ids[:-1]]
    assert model.to_tokens(["ab", "cd"]).shape == (2, 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "there is no token to run the model on"),
        ([], "there is no token to run the model on"),
        (["ab", "abcd"], "texts of 2 to 4 tokens make no batch"),
        pytest.param(
            "x" * 65, "contexts of 65 tokens do not fit into .*, which takes 64", id="too long"
        ),
        ([3, 260], "token ids of .* are 0 to 259, got 3 to 260"),
        ([-1], "token ids of .* are 0 to 259, got -1"),
        *(
            pytest.param(bad, "runs on text, or on token ids", id=words)
            for words, bad in {
                "a number": 3.5,
                "floats": [1.5, 2.0],
                "a float tensor": torch.ones(1, 2),
                "truths": [True],
                "three axes": torch.ones(1, 1, 2).long(),
                "no axis": torch.tensor(3),
                "a mapping": {"input_ids": [1]},
                "bytes": b"ab",
                "mixed": ["a", 1],
                "large": [10**30],
            }.items()
        ),
    ],
)
def test_what_cannot_be_run_is_one_line(model, text, message):
    with refused(ConfigError, message):
        model.run_with_acts(text, sites=["mlp_out.1"])


def test_a_site_has_one_name(model):
    with refused(ConfigError, "bad site 'mlp_out.01'"):
        model.run_with_acts(TEXT, sites=["mlp_out.01"])


def test_a_site_that_is_not_there_is_one_line(model):
    message = "resid_mid.1 does not exist: .*; use resid_pre.1 or resid_post.1"
    with refused(ConfigError, message):
        model.run_with_acts(TEXT, sites=["mlp_out.1", "resid_mid.1"])
    edits = {"mlp_out.1": torch.clone, "resid_mid.1": torch.clone}
    with refused(ConfigError, message), model.spliced(edits):
        pass
    assert not hooks_on(model)


def test_an_identity_spliced_in_changes_nothing_and_its_like_does(model):
    before, _ = model.run_with_acts(TEXT, sites=[])
    with model.spliced({"mlp_out.1": identity_sae()}):
        torch.testing.assert_close(model.run_with_acts(TEXT, sites=[])[0], before)
    with model.spliced({"mlp_out.1": lambda x: x, Site.parse("attn_z.0"): torch.clone}):
        assert torch.equal(model.run_with_acts(TEXT, sites=[])[0], before)
    sae = make_sae()
    with model.spliced({"mlp_out.1": sae, "mlp_out.2": torch.zeros_like}) as same:
        logits, acts = model.run_with_acts(TEXT, sites=["mlp_out.1", "mlp_out.2"])
    assert same is model
    assert not torch.equal(logits, before)
    assert not acts["mlp_out.2"].any()
    _, clean = model.run_with_acts(TEXT, sites=["mlp_out.1"])
    torch.testing.assert_close(acts["mlp_out.1"], sae(clean["mlp_out.1"]))
    assert torch.equal(model.run_with_acts(TEXT, sites=[])[0], before)


def test_what_is_spliced_in_reads_float32_whatever_the_model_computes_in(tiny_model):
    model = LanguageModel.from_pretrained(tiny_model, device="cpu", precision="bf16")
    seen = []

    def edit(x):
        seen.append(x.dtype)
        return TunedSAE(make_sae())(x)

    with model.spliced({"mlp_out.1": edit}):
        _, acts = model.run_with_acts(TEXT, sites=["mlp_out.1"])
    assert seen == [torch.float32]
    assert acts["mlp_out.1"].dtype == torch.bfloat16


def test_what_does_not_keep_the_shape_is_one_line(model):
    said = r"at mlp_out\.1 makes \(1, 16\) of \(1, 9, 16\)"
    with refused(ConfigError, said), model.spliced({"mlp_out.1": lambda x: x[:, 0]}):
        model.run_with_acts(TEXT, sites=[])
    with refused(ConfigError, "makes NoneType of"), model.spliced({"mlp_out.1": lambda x: None}):
        model.run_with_acts(TEXT, sites=[])
    wider = make_sae(d_in=24)
    with refused(ConfigError, r"d_in 24 .* got \[1, 9, 16\]"), model.spliced({"mlp_out.1": wider}):
        model.run_with_acts(TEXT, sites=[])


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        (make_sae(), r"as {'mlp_out\.2': sae}, got SAE\("),
        ({"mlp_out.1": 3}, "mlp_out.1 takes an SAE or a function .*, got 3"),
    ],
    ids=["no sites", "no function"],
)
def test_what_cannot_be_spliced_in_is_one_line(model, edits, said):
    with refused(ConfigError, said), model.spliced(edits):
        pass


def greedy(model: LanguageModel, tokens: torch.Tensor, n: int) -> list[int]:
    """The likeliest token each time, by a whole pass each time."""
    for _ in range(n):
        logits, _ = model.run_with_acts(tokens, sites=[])
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    return tokens[0].tolist()


@pytest.mark.parametrize("edits", [{}, {"mlp_out.1": make_sae(), "attn_out.0": lambda x: x / 2}])
def test_generation_takes_the_likeliest_tokens_also_with_something_spliced_in(model, edits):
    start = model.to_tokens(TEXT)
    with model.spliced(edits):
        ids, expected = model.generate(start, max_new_tokens=6), greedy(model, start, 6)
        assert model.generate(TEXT, max_new_tokens=6) == model.tokenizer.decode(expected)
    assert ids[0].tolist() == expected[: ids.shape[1]]
    assert ids.shape[1] in range(start.shape[1] + 1, start.shape[1] + 7)  # it may end its text
    one = model.generate(TEXT, max_new_tokens=1)
    assert model.generate([TEXT, TEXT], max_new_tokens=1) == [one, one]


def test_generation_draws_when_asked_to(model):
    drawn = set()
    for seed in range(4):
        torch.manual_seed(seed)
        drawn.add(model.generate(TEXT, max_new_tokens=4, do_sample=True, temperature=2.0))
    assert len(drawn) > 1
    assert all(text.startswith(TEXT) for text in drawn)
    with refused(ConfigError, "contexts of 69 tokens do not fit"):
        model.generate(TEXT, max_new_tokens=60)
    with refused(ConfigError, "max_new_tokens must be positive, got -2"):
        model.generate(TEXT, max_new_tokens=-2)


def test_every_family_generates_from_ids_without_a_tokenizer(folder):
    model = LanguageModel.from_pretrained(folder, device="cpu")
    ids = model.generate([5, 6, 7], max_new_tokens=5)
    assert ids[0].tolist() == greedy(model, model.to_tokens([5, 6, 7]), 5)[: ids.shape[1]]
    with refused(ModelError, "has no tokenizer.json"):
        model.to_tokens("text")


def test_an_sae_of_another_width_or_context_does_not_fit(model):
    site, run = Site.parse("mlp_out.1"), Path("runs/a")
    model.require_fits(site, d_in=16, ctx_len=64, run=run)
    with refused(ConfigError, "runs/a is an SAE of 8 dimensions, but mlp_out.1 of"):
        model.require_fits(site, d_in=8, ctx_len=64, run=run)
    with refused(ConfigError, "contexts of 65 tokens do not fit into"):
        model.require_fits(site, d_in=16, ctx_len=65, run=run)


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("gpu", "device must be one of auto, cpu, cuda, mps, got 'gpu'"),
        ("cuda:77", "device cuda:77 was asked for, but torch sees"),
        (torch.device("cuda", 77), "device cuda:77 was asked for"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(tiny_model, device, said):
    with refused(ConfigError, said):
        LanguageModel.from_pretrained(tiny_model, device=device)


def test_what_is_spliced_in_is_given_activations_where_its_weights_are(model):
    """A meta device stands in for a second one: it computes shapes alone, and cannot come back."""
    sae = make_sae().to("meta")
    seen = []
    sae.register_forward_pre_hook(lambda _, args: seen.append(args[0].device.type))
    with pytest.raises(NotImplementedError, match="meta"), model.spliced({"mlp_out.1": sae}):
        model.run_with_acts("abc", [])
    assert seen == ["meta"]
