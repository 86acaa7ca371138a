"""Models of no family that saepipe knows: sites are modules by their paths."""

import shutil
from pathlib import Path

import pytest
import torch
import transformers

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.asked import sites_asked
from pipeline.lm.hooks import capture, reading
from pipeline.lm.hub import ModelFiles
from pipeline.lm.listing import sites
from pipeline.lm.model import LanguageModel, load_for_sites, load_model
from pipeline.lm.passes import passes_of
from pipeline.lm.sites import ModuleSite, Site
from tests.helpers.models import CPU, FP32, TOKENS, gpt2, llama, neox, reference, save_random
from tests.helpers.other_models import OTHERS, save_other, say
from tests.helpers.refusals import refused

SITES = {
    "bloom": ["h.1.mlp", "transformer.h.2.self_attention.dense:in", "word_embeddings"],
    "xglm": ["model.layers[1].self_attn.output[0]", "layers.2.fc2:in", "model.layers.0"],
    "codegen": ["transformer.h.2.attn.qkv_proj", "h.1.mlp.fc_out.input", "ln_f"],
    "biogpt": ["biogpt.layers.1.self_attn", "biogpt.layers.1.fc1", "layers.2.input"],
    "persimmon": ["layers.1.mlp.act", "layers.2.self_attn:in", "layers.2.self_attn.dense"],
    "neox_japanese": ["layers.1.mlp", "layers.0.attention", "layers.2"],
    "recurrent_gemma": ["layers.2.temporal_block.o_proj:in", "layers.1.temporal_block.rg_lru"],
}


@pytest.fixture(scope="module", params=OTHERS)
def name(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def other(name, tmp_path_factory) -> Path:
    return save_other(name, tmp_path_factory.mktemp("other") / name)


@pytest.fixture(scope="module")
def xglm(tmp_path_factory) -> Path:
    return save_other("xglm", tmp_path_factory.mktemp("xglm") / "xglm")


def first(x):
    return x[0] if isinstance(x, tuple) else x


@torch.no_grad()
def by_plain_hooks(folder: Path, site: ModuleSite) -> torch.Tensor:
    """What transformers' own model has there."""
    model, seen = reference(folder), []
    module = dict(model.named_modules())[site.path]

    def before(_, args, given):
        seen.append(args[0] if args else given["hidden_states"])

    if site.side == "in":
        module.register_forward_pre_hook(before, with_kwargs=True)
    else:
        module.register_forward_hook(lambda _, __, out: seen.append(first(out)))
    model(TOKENS)
    (x,) = seen
    return x


@torch.no_grad()
def test_modules_hold_what_transformers_own_model_has_there(name, other):
    asked = sites_asked(SITES[name], ModelFiles(str(other)))
    model = load_for_sites(str(other), [*asked.widths], device=CPU, dtype=FP32)
    with reading(model, [*asked.widths]) as read:
        acts = read(TOKENS)
    assert [*acts] == [*asked.widths]
    for site, width in asked.widths.items():
        assert acts[site].shape == (*TOKENS.shape, width)
        assert torch.equal(acts[site], by_plain_hooks(other, site)), site
        assert str(Site.parse(str(site))) == str(site)


def test_every_listed_site_can_be_asked_for_and_is_as_wide(other):
    listed = sites(str(other))
    assert listed and all(one.hook == "" for one in listed)
    names = {named(one.site, one.layers): one.width for one in listed}
    found = sites_asked([*names], ModelFiles(str(other)))
    assert {str(site): width for site, width in found.widths.items()} == names


def named(pattern: str, layers: tuple[int, ...]) -> str:
    """The last of the sites of a line."""
    before, _, rest = pattern.partition("{")
    return f"{before}{layers[-1]}{rest.partition('}')[2]}" if rest else pattern


@torch.no_grad()
def test_nothing_runs_after_the_last_site_wherever_it_is(xglm):
    model = load_for_sites(str(xglm), [ModuleSite("model.layers.1.fc1")], device=CPU, dtype=FP32)
    ran: list[str] = []
    for path, module in model.body.named_modules():
        module.register_forward_pre_hook(lambda *_, path=path: ran.append(path))
    early, late = ModuleSite("model.layers.1.fc1"), ModuleSite("model.layers.0.fc2", "in")
    with reading(model, [early, late]) as read:
        for _ in range(2):  # what a pass had is not taken for what the next one has
            ran.clear()
            read(TOKENS)
            assert ran[-1] == "layers.1.fc1"


@torch.no_grad()
def test_edits_at_a_module_are_those_of_a_hook_on_transformers_own(name, other):
    if name == "recurrent_gemma":
        return
    plain = reference(other)
    model = load_model(str(other), device=CPU, dtype=FP32)
    assert torch.equal(model.logits(model.hidden(TOKENS)), plain(TOKENS).logits)
    site = model.site(SITES[name][0])
    assert isinstance(site, ModuleSite)
    module = dict(plain.named_modules())[site.path]

    def doubled(_, __, out):
        return (2 * out[0], *out[1:]) if isinstance(out, tuple) else 2 * out

    with module.register_forward_hook(doubled):
        wanted = plain(TOKENS).logits
    assert not torch.equal(wanted, plain(TOKENS).logits)
    with model.spliced({SITES[name][0]: lambda x: 2 * x}):
        assert torch.equal(model.logits(model.hidden(TOKENS)), wanted)
    passes = passes_of(model, [site])
    assert torch.equal(model.logits(passes.clean(TOKENS)), plain(TOKENS).logits)
    assert torch.equal(passes.acts(site), by_plain_hooks(other, site))
    assert torch.equal(model.logits(passes.edited(site, 2 * passes.acts(site))), wanted)
    logits, acts = model.run_with_acts(TOKENS, SITES[name])
    assert torch.equal(logits, plain(TOKENS).logits)
    assert all(torch.equal(x, by_plain_hooks(other, Site.parse(at))) for at, x in acts.items())


@torch.no_grad()
def test_an_input_given_by_its_name_is_edited_too(tmp_path):
    folder = save_other("persimmon", tmp_path / "persimmon")
    plain, site = reference(folder), "model.layers.1.self_attn:in"
    model = load_model(str(folder), device=CPU, dtype=FP32)

    def halved(_, args, given):
        return args, given | {"hidden_states": given["hidden_states"] / 2}

    with plain.model.layers[1].self_attn.register_forward_pre_hook(halved, with_kwargs=True):
        wanted = plain(TOKENS).logits
    with model.spliced({site: lambda x: x / 2}):
        assert torch.equal(model.logits(model.hidden(TOKENS)), wanted)


def test_logits_that_are_more_than_the_unembedding_are_refused(tmp_path):
    folder = save_other("recurrent_gemma", tmp_path / "rg")
    with refused(ConfigError, "does more to its last hidden states than its unembedding"):
        load_model(str(folder), device=CPU, dtype=FP32)


KNOWN = {"gpt_neox": neox, "gpt2": gpt2, "llama": llama}


@pytest.mark.parametrize("family", KNOWN)
def test_a_path_that_is_one_of_our_kinds_is_that_kind(family, tmp_path):
    """By what `sites` says of each, and by the module itself."""
    folder = save_random(KNOWN[family](), tmp_path / family)
    listed, files = sites(str(folder)), ModelFiles(str(folder))
    for one in listed:
        at = [text.replace("{0..2}", "1") for text in (one.module, one.site, one.hook)]
        base = at[0].partition(".")[2]
        for name in (*at, base, base.replace(".1", "[1]", 1)):
            asked = sites_asked([name], files)
            assert [*map(str, asked.widths)] == [at[1]], name
            assert asked.notes == (() if name == at[1] else (f"{name} is {at[1]} of {folder}",))
        path = at[0].removesuffix(".input")
        side = "out" if path == at[0] else "in"
        whole = load_model(str(folder), device=CPU, dtype=FP32)
        with capture(whole, [Site.parse(at[1])]) as acts:
            whole.hidden(TOKENS)
        there = by_plain_hooks(folder, ModuleSite(path, side))
        assert torch.equal(acts[Site.parse(at[1])], there), at


def test_the_modules_of_branches_are_what_the_branches_add(tmp_path):
    folder = save_random(neox(), tmp_path / "neox")
    norm = "gpt_neox.layers.1.post_attention_layernorm.input"
    for name, site in {
        "gpt_neox.layers.1.attention": "attn_out.1",
        "gpt_neox.layers.1.mlp.dense_4h_to_h": "mlp_out.1",
        norm: norm,  # what is resid_mid elsewhere is the layer's input here
    }.items():
        assert [*map(str, sites_asked([name], ModelFiles(str(folder))).widths)] == [site]
    with refused(ConfigError, "blocks.1.hook_mlp_out is mlp_out.1 of .*, which is named twice"):
        sites_asked(["mlp_out.1", "blocks.1.hook_mlp_out"], ModelFiles(str(folder)))


@torch.no_grad()
def test_any_other_module_of_a_known_family_is_a_site_beside_its_kinds(tmp_path):
    folder = save_random(llama(), tmp_path / "llama")
    names = ["model.layers.1.self_attn.q_proj", "mlp_out.1"]
    asked = sites_asked(names, ModelFiles(str(folder)))
    model = load_for_sites(str(folder), [*asked.widths], device=CPU, dtype=FP32)
    with reading(model, [*asked.widths]) as read:
        acts = read(TOKENS)
    for path, x in zip((names[0], "model.layers.1.mlp"), acts.values(), strict=True):
        assert torch.equal(x, by_plain_hooks(folder, ModuleSite(path))), path


# --- what is refused ---------------------------------------------------------------------------


def test_sites_that_are_not_there(xglm):
    files = ModelFiles(str(xglm))
    for name, told in {
        "model.layers.1.self_atn": r"no module model.layers.1.self_atn: the nearest are "
        r"model.layers.1.self_attn, .*; saepipe sites .* --modules lists them",
        "zzzz": r"no module model.zzzz: all are inside model; saepipe sites",
        "model.layers.9.fc1": "no module model.layers.9.fc1: the nearest are model.layers.2.fc1",
        "model.layers": "holds nothing, since the module does not run",
        "mlp_uot.1": r"bad site 'mlp_uot.1': expected KIND.LAYER",
    }.items():
        with refused(ConfigError, told):
            sites_asked([name], files)
    for name in ("mlp_out.1", "blocks.1.hook_mlp_out"):
        told = "is a 'xglm' model, whose layers .*, so that mlp_out.1 says nothing: name a module"
        with refused(ModelError, told):
            sites_asked([name], files)


def test_what_is_not_one_row_a_token_is_no_site(tmp_path):
    """The router of experts has the tokens of all contexts in one row."""
    config = transformers.GraniteMoeConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, intermediate_size=24, num_local_experts=2, num_experts_per_tok=1,
    )  # fmt: skip
    config.save_pretrained(tmp_path)
    told = r"holds \[6, 16\]: a site holds \[batch, position, width\] of floats"
    with refused(ConfigError, told):
        sites_asked(["layers.1.block_sparse_moe.router:in"], ModelFiles(str(tmp_path)))
    assert len(sites(str(tmp_path))) > 5


NOT_CAUSAL = {
    "bert": (transformers.BertConfig, {}, "a 'bert' model, is an encoder: saepipe takes causal"),
    "t5": (transformers.T5Config, {}, "a 't5' model, "),
    "bart": (transformers.BartConfig, {}, "a 'bart' model, is an encoder with a decoder"),
    "vit": (transformers.ViTConfig, {}, "a 'vit' model, predicts no next token"),
    "clip": (transformers.CLIPConfig, {}, "a 'clip' model, predicts no next token"),
    "unheard": (transformers.GPT2Config, {"model_type": "unheard"}, "a 'unheard' model, predicts"),
    "own": (
        transformers.GPT2Config,
        {"model_type": "mine", "auto_map": {"AutoModelForCausalLM": "modeling_mine.Mine"}},
        "brings its own code, .*: read it, then type --trust-remote-code",
    ),
}


@pytest.mark.parametrize("what", NOT_CAUSAL)
def test_models_that_are_no_causal_language_model(what, tmp_path):
    kind, settings, told = NOT_CAUSAL[what]
    kind().save_pretrained(tmp_path)
    say(tmp_path, **settings)
    for asks in (
        lambda: sites_asked(["encoder.layer.0"], ModelFiles(str(tmp_path))),
        lambda: sites_asked(["mlp_out.1"], ModelFiles(str(tmp_path))),
        lambda: sites(str(tmp_path)),
        lambda: LanguageModel.from_pretrained(tmp_path, device="cpu"),
    ):
        with refused(ModelError, told):
            asks()


def loads(folder: Path) -> None:
    site = ModuleSite("model.layers.1.fc1")
    load_for_sites(str(folder), [site], device=CPU, dtype=FP32)


def test_checkpoints_that_do_not_fit_their_config(xglm, tmp_path):
    folder = shutil.copytree(xglm, tmp_path / "wide")
    say(folder, ffn_dim=48)
    with refused(ModelError, r"is \[40.*\] in the checkpoint of .*, and \[48.*by its config.json"):
        loads(folder)
    say(folder, ffn_dim=40, num_layers=4)
    with refused(ModelError, r"lacks model.layers.3\..*, .*, .*, \.\.\.: save the model again"):
        loads(folder)
    (folder / "model.safetensors").write_bytes(b"12345678")
    with refused(ModelError, "is damaged|cannot load"):
        loads(folder)
    (folder / "model.safetensors").unlink()
    with refused(ModelError, "has no model.safetensors, and pickled weights are not read"):
        loads(folder)


def test_a_shard_that_is_missing(tmp_path):
    folder = save_other("xglm", tmp_path / "one")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(folder, max_shard_size="8KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    loads(folder)
    shard = sorted(folder.glob("*-00002-of-*.safetensors"))[0]
    shard.unlink()
    with refused(ModelError, f"has no {shard.name}"):
        loads(folder)


@pytest.mark.parametrize("method", ["gptq", "awq"])
def test_quantised_weights_without_their_library(xglm, tmp_path, method):
    folder = shutil.copytree(xglm, tmp_path / method)
    say(folder, quantization_config={"quant_method": method, "bits": 4, "group_size": 8})
    with refused(ModelError, f"quantised by {method}, which takes more than is installed"):
        loads(folder)


def test_code_of_a_model_runs_only_if_that_is_asked_for(xglm, tmp_path):
    folder = shutil.copytree(xglm, tmp_path / "own")
    (folder / "modeling_own.py").write_text(
        "from transformers import XGLMConfig, XGLMForCausalLM\n"
        "class OwnConfig(XGLMConfig):\n    model_type = 'own_xglm'\n"
        "class OwnForCausalLM(XGLMForCausalLM):\n    config_class = OwnConfig\n"
    )
    own = {"AutoConfig": "modeling_own.OwnConfig"}
    own |= {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    say(folder, model_type="own_xglm", auto_map=own)
    with refused(ModelError, "type --trust-remote-code"):
        loads(folder)
    site = ModuleSite("model.layers.1.fc1")
    model = load_for_sites(str(folder), [site], device=CPU, dtype=FP32, trust_remote_code=True)
    assert type(model.module).__name__ == "OwnForCausalLM"
    with reading(model, [site]) as read:
        assert torch.equal(read(TOKENS)[site], by_plain_hooks(xglm, site))
