import json
from pathlib import Path

import pytest
import torch
import transformers

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.families import KINDS, Shape, Site
from pipeline.lm.hooks import capture, reading, splice
from pipeline.lm.model import LanguageModel, load_for_sites, load_model

CPU, FP32 = torch.device("cpu"), torch.float32
TOKENS = torch.arange(24).reshape(2, 12) % 60


def neox(*, parallel: bool = True) -> transformers.PreTrainedModel:
    config = transformers.GPTNeoXConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=96, max_position_embeddings=32, use_parallel_residual=parallel,
    )  # fmt: skip
    return transformers.GPTNeoXForCausalLM(config)


def gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_inner=96, n_positions=32
    )
    return transformers.GPT2LMHeadModel(config)


def llama() -> transformers.PreTrainedModel:
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=96, max_position_embeddings=32,
        tie_word_embeddings=True,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


MAKERS = {"pythia": neox, "neox-serial": lambda: neox(parallel=False), "gpt2": gpt2, "llama": llama}


@pytest.fixture(scope="module", params=MAKERS)
def folder(request, tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = MAKERS[request.param]()
    for p in model.parameters():  # default biases of zero would hide a bias that was not loaded
        p.data.normal_(std=0.2)
    path = tmp_path_factory.mktemp("model") / request.param
    model.save_pretrained(path)
    return path


def sites_of(model: LanguageModel) -> list[Site]:
    kinds = [k for k in KINDS if not (k == "resid_mid" and model.shape.parallel)]
    return [Site.parse(f"{kind}.{layer}") for layer in range(3) for kind in kinds]


def reference(folder: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=FP32).eval()


def test_a_whole_model_has_the_logits_transformers_gives(folder):
    model = load_model(str(folder), device=CPU, dtype=FP32)
    with torch.no_grad():
        ours = model.logits(model.hidden(TOKENS).flatten(0, 1)).unflatten(0, TOKENS.shape)
        assert torch.equal(ours, reference(folder)(TOKENS).logits)
    assert not any(p.requires_grad for p in model.module.parameters())


@torch.no_grad()
def test_each_site_read_alone_equals_the_full_forward_bit_for_bit(folder):
    whole = load_model(str(folder), device=CPU, dtype=FP32)
    with capture(whole, sites_of(whole)) as full:
        whole.hidden(TOKENS)
    for site in sites_of(whole):
        part = load_for_sites(str(folder), [site], device=CPU, dtype=FP32)
        with reading(part, [site]) as read:
            acts = read(TOKENS)[site]
        assert acts.shape == (*TOKENS.shape, whole.width(site)), site
        assert torch.equal(acts, full[site]), site


@torch.no_grad()
def test_many_sites_are_read_in_one_pass(folder):
    whole = load_model(str(folder), device=CPU, dtype=FP32)
    sites = [s for s in sites_of(whole) if s.layer < 2]
    part = load_for_sites(str(folder), sites, device=CPU, dtype=FP32)
    with capture(whole, sites) as full, reading(part, sites) as read:
        whole.hidden(TOKENS)
        acts = read(TOKENS)
    assert set(acts) == set(sites)
    assert all(torch.equal(acts[s], full[s]) for s in sites)


@torch.no_grad()
def test_sites_mean_what_their_names_say(folder):
    """The residual stream adds up, and the MLP's sites follow from one another."""
    model = load_model(str(folder), device=CPU, dtype=FP32)
    with capture(model, sites_of(model)) as acts:
        model.hidden(TOKENS)
    a = {str(site): x for site, x in acts.items()}
    parts = a["resid_pre.1"] + a["attn_out.1"] + a["mlp_out.1"]
    torch.testing.assert_close(parts, a["resid_post.1"])
    torch.testing.assert_close(a["resid_post.0"], a["resid_pre.1"], rtol=0, atol=0)
    if not model.shape.parallel:
        torch.testing.assert_close(a["resid_pre.1"] + a["attn_out.1"], a["resid_mid.1"])
    layer = model.body.get_submodule(f"{model.shape.family.layers}.1")
    act = getattr(layer.mlp, "act", None) or layer.mlp.act_fn
    gated = act(a["mlp_pre.1"])
    if hasattr(layer.mlp, "up_proj"):
        gated = gated * layer.mlp.up_proj(layer.post_attention_layernorm(a["resid_mid.1"]))
    torch.testing.assert_close(gated, a["mlp_act.1"])


def test_what_is_not_needed_is_not_loaded(folder):
    model = load_for_sites(str(folder), [Site.parse("mlp_out.1")], device=CPU, dtype=FP32)
    real = {name for name, p in model.module.named_parameters() if not p.is_meta}
    assert model.shape.n_layers == 3
    layers = model.shape.family.layers
    assert len(model.body.get_submodule(layers)) == 2
    assert any(f"{layers}.0." in name for name in real)
    assert not any("lm_head" in name or "final_layer_norm" in name for name in real)
    attention = model.shape.family.path(1, "attention")
    ran = any(f"{attention}." in name for name in real)
    assert ran == (not model.shape.parallel)


def test_what_was_not_loaded_refuses_to_run(folder):
    model = load_for_sites(str(folder), [Site.parse("mlp_out.1")], device=CPU, dtype=FP32)
    with pytest.raises(AssertionError, match="was to stay out"):
        model.logits(torch.zeros(1, 32))


@torch.no_grad()
def test_splice_with_the_same_values_changes_nothing_and_with_zeros_does(folder):
    model = load_model(str(folder), device=CPU, dtype=FP32)
    before = model.hidden(TOKENS)
    for site in sites_of(model):
        with splice(model, {site: torch.clone}):
            assert torch.equal(model.hidden(TOKENS), before), site
        with splice(model, {site: torch.zeros_like}):
            assert not torch.equal(model.hidden(TOKENS), before), site
    assert torch.equal(model.hidden(TOKENS), before)


@torch.no_grad()
def test_an_edit_reaches_everything_that_reads_the_site(folder):
    """With the stream zeroed at a site, only what is added after it arrives at the layer's end."""
    model = load_model(str(folder), device=CPU, dtype=FP32)
    starts = {"resid_pre.1": ("attn_out.1", "mlp_out.1"), "resid_mid.1": ("mlp_out.1",)}
    if model.shape.parallel:
        del starts["resid_mid.1"]
    for start, added in starts.items():
        sites = [Site.parse(name) for name in (*added, "resid_post.1")]
        with splice(model, {Site.parse(start): torch.zeros_like}), capture(model, sites) as acts:
            model.hidden(TOKENS)
        *parts, end = (acts[site] for site in sites)
        torch.testing.assert_close(end, torch.stack(parts).sum(0), msg=start)


def hooks_on(model: LanguageModel) -> int:
    modules = list(model.body.modules())
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_hooks_are_removed_even_when_the_block_fails(folder):
    model = load_model(str(folder), device=CPU, dtype=FP32)
    n, good, bad = hooks_on(model), Site.parse("mlp_out.0"), Site.parse("mlp_out.9")
    with pytest.raises(ZeroDivisionError), reading(model, [good]):
        1 / 0
    with pytest.raises(ConfigError, match="has layers 0 to 2"), capture(model, [good, bad]):
        pass
    assert hooks_on(model) == n


def test_bad_sites_say_what_is_allowed():
    for text in ("mlp", "mlp_out.", "mlp_out.x", "mlp_uot.1", "mlp_out.-1", "mlp_out.²"):
        with pytest.raises(ConfigError, match=r"expected KIND\.LAYER.*resid_pre, attn_z, attn_out"):
            Site.parse(text)


def test_a_parallel_model_has_no_middle():
    shape = Shape.of(neox().config.to_dict(), name="pythia")
    with pytest.raises(ConfigError, match=r"resid_mid\.1 does not exist.*use resid_pre\.1"):
        shape.check(Site.parse("resid_mid.1"), name="pythia")


def test_another_architecture_names_those_supported(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "bert"}))
    with pytest.raises(ModelError, match=r"'bert' model; saepipe knows gpt_neox, gpt2, llama"):
        load_model(str(tmp_path), device=CPU, dtype=FP32)


def test_sites_sort_in_the_order_of_the_forward_pass():
    names = ["mlp_out.0", "resid_pre.1", "attn_out.1", "mlp_pre.1", "resid_post.1", "resid_pre.2"]
    sites = [Site.parse(name) for name in names]
    backwards = sites[::-1]
    assert sorted(backwards) == sites
    assert [str(site) for site in sites] == names
