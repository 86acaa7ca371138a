from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

from pipeline.errors import ConfigError, ModelError
from pipeline.lm.families import FAMILIES, Shape
from pipeline.lm.hooks import capture, reading, splice
from pipeline.lm.model import LanguageModel, load_for_sites, load_model
from pipeline.lm.replay import Replay
from pipeline.lm.sites import ATTENTION, KINDS, MLP, Site, SiteKind
from tests.helpers.models import (
    CPU,
    FP32,
    TOKENS,
    helium,
    hooks_on,
    reference,
    save_random,
    sites_of,
)


@pytest.fixture(scope="module")
def model(folder) -> LanguageModel:
    return load_model(str(folder), device=CPU, dtype=FP32)


@torch.no_grad()
def test_sites_read_alone_or_together_equal_the_full_forward_bit_for_bit(folder, model):
    sites = sites_of(model)
    with capture(model, sites) as full:
        model.hidden(TOKENS)
    for wanted in (*([site] for site in sites), [site for site in sites if site.layer < 2]):
        part = load_for_sites(str(folder), wanted, device=CPU, dtype=FP32)
        with reading(part, wanted) as read:
            acts = read(TOKENS)
        assert set(acts) == set(wanted)
        for site, x in acts.items():
            assert x.shape == (*TOKENS.shape, model.width(site)), site
            assert torch.equal(x, full[site]), site


@torch.no_grad()
def test_sites_mean_what_their_names_say(model):
    """The residual stream adds up, and the MLP's sites follow from one another."""
    with capture(model, sites_of(model)) as acts:
        model.hidden(TOKENS)
    a = {str(site): x for site, x in acts.items()}
    parts = a["resid_pre.1"] + a["attn_out.1"] + a["mlp_out.1"]
    torch.testing.assert_close(parts, a["resid_post.1"])
    torch.testing.assert_close(a["resid_post.0"], a["resid_pre.1"], rtol=0, atol=0)
    if not model.shape.parallel:
        torch.testing.assert_close(a["resid_pre.1"] + a["attn_out.1"], a["resid_mid.1"])
    layer = model.body.get_submodule(model.shape.family.path(1, ""))
    out = model.body.get_submodule(model.shape.family.path(1, "attention_out"))
    torch.testing.assert_close(out(a["attn_z.1"]), a["attn_out.1"], rtol=0, atol=0)
    act = getattr(layer.mlp, "act", None) or layer.mlp.act_fn
    gated = act(a["mlp_pre.1"])
    if hasattr(layer.mlp, "up_proj"):
        gated = gated * layer.mlp.up_proj(layer.post_attention_layernorm(a["resid_mid.1"]))
    torch.testing.assert_close(gated, a["mlp_act.1"])


def test_what_is_not_needed_is_not_loaded_and_refuses_to_run(folder):
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
    with pytest.raises(AssertionError, match="was to stay out"):
        model.logits(torch.zeros(1, 32))
    for name, absent in (("attn_z.1", "attention_out"), ("mlp_act.1", "mlp_out")):
        model = load_for_sites(str(folder), [Site.parse(name)], device=CPU, dtype=FP32)
        out = model.body.get_submodule(model.shape.family.path(1, absent))
        assert out.weight.is_meta, name


@torch.no_grad()
def test_an_edit_reaches_everything_that_reads_the_site(model):
    """With the stream zeroed at a site, only what is added after it arrives at the layer's end."""
    starts = {"resid_pre.1": ("attn_out.1", "mlp_out.1"), "resid_mid.1": ("mlp_out.1",)}
    if model.shape.parallel:
        del starts["resid_mid.1"]
    for start, added in starts.items():
        sites = [Site.parse(name) for name in (*added, "resid_post.1")]
        with splice(model, {Site.parse(start): torch.zeros_like}), capture(model, sites) as acts:
            model.hidden(TOKENS)
        *parts, end = (acts[site] for site in sites)
        torch.testing.assert_close(end, torch.stack(parts).sum(0), msg=start)


def test_hooks_are_removed_even_when_the_block_fails(model):
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


def test_sites_sort_in_the_order_of_the_forward_pass():
    names = ["mlp_out.0", "resid_pre.1", "attn_out.1", "mlp_pre.1", "resid_post.1", "resid_pre.2"]
    sites = [Site.parse(name) for name in names]
    backwards = sites[::-1]
    assert sorted(backwards) == sites
    assert [str(site) for site in sites] == names


@torch.no_grad()
def test_a_family_is_one_entry(tmp_path, monkeypatch):
    """Helium is a Llama that turns its queries and keys in other pairs."""
    path = save_random(helium(), tmp_path / "model")
    assert load_model(str(path), device=CPU, dtype=FP32).family is None
    names = {"config_class": "HeliumConfig", "model_class": "HeliumForCausalLM"}
    monkeypatch.setitem(FAMILIES, "helium", replace(FAMILIES["llama"], **names))
    whole = load_model(str(path), device=CPU, dtype=FP32)
    replay = Replay(whole, sites_of(whole))
    states = reference(path).model(TOKENS, output_hidden_states=True).hidden_states
    assert torch.equal(replay.clean(TOKENS), states[-1])
    for site in sites_of(whole):
        if site.kind.name == "resid_pre":
            assert torch.equal(replay.acts(site), states[site.layer])
        part = load_for_sites(str(path), [site], device=CPU, dtype=FP32)
        with reading(part, [site]) as read:
            assert torch.equal(read(TOKENS)[site], replay.acts(site)), site
        value = replay.acts(site) + 1
        with splice(whole, {site: lambda _, value=value: value.clone()}):
            assert torch.equal(whole.hidden(TOKENS), replay.edited(site, value)), site


def test_sizes_that_a_config_lacks_are_named():
    config = {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2}
    with pytest.raises(ModelError, match=r"^config\.json of x lacks 'num_hidden_layers'$"):
        Shape.of(config, name="x")


def with_kind(monkeypatch, kind: SiteKind, *, before: str) -> None:
    """One more entry of KINDS, at its place in the order of computing."""
    kinds = list(KINDS.values())
    kinds.insert(list(KINDS).index(before), kind)
    for module in ("sites", "families"):
        monkeypatch.setattr(f"pipeline.lm.{module}.KINDS", {k.name: k for k in kinds})


NEW_KINDS = {
    "what the attention reads": (
        "attn_out",
        SiteKind(
            name="attn_in", part="attention_norm", side="out", needs=("attention_norm",),
            branch=ATTENTION, nonlinear=True,
        ),
    ),
    "what the MLP reads": (
        "mlp_pre",
        SiteKind(
            name="mlp_in", part="mlp", side="in", needs=("mlp_norm",), branch=MLP, nonlinear=True
        ),
    ),
    "what the attention adds, by its module": (
        "resid_mid", SiteKind(name="attn_add", part="attention", side="out", branch=ATTENTION)
    ),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("what", NEW_KINDS)
def test_a_kind_of_site_is_one_entry(folder, model, monkeypatch, what):
    """Capture, splice, partial loading and replay of it, held to hooks of transformers' model."""
    before, kind = NEW_KINDS[what]
    with_kind(monkeypatch, kind, before=before)
    site = Site.parse(f"{kind.name}.1")
    assert kind in model.shape.kinds()
    plain, seen = reference(folder), []
    module = plain.base_model.get_submodule(model.shape.family.module_path(site))
    hook = {"in": module.register_forward_pre_hook, "out": module.register_forward_hook}[kind.side]
    value = torch.randn(*TOKENS.shape, model.width(site))

    def first(x):
        return x[0] if isinstance(x, tuple) else x

    with hook(lambda _, *given: seen.append(first(given[-1]))):
        plain(TOKENS)
    part = load_for_sites(str(folder), [site], device=CPU, dtype=FP32)
    replay = Replay(model, [site])
    replay.clean(TOKENS)
    with reading(part, [site]) as read:
        assert torch.equal(read(TOKENS)[site], seen[0])
    assert torch.equal(replay.acts(site), seen[0])

    def put(_, *given):
        return (value, *given[-1][1:]) if isinstance(given[-1], tuple) else value

    with hook(put):
        expected = plain.base_model(TOKENS).last_hidden_state
    with splice(model, {site: lambda _: value}):
        assert torch.equal(model.hidden(TOKENS), expected)
    assert torch.equal(replay.edited(site, value), expected)


def test_a_kind_that_a_family_has_no_part_for_is_refused(model, monkeypatch):
    gated = SiteKind(name="mlp_up", part="mlp_gated", side="out", width="d_mlp", branch=MLP)
    with_kind(monkeypatch, gated, before="mlp_act")
    missing = pytest.raises(ConfigError, match=r"mlp_up\.1 does not exist: m is a .*no part is")
    with nullcontext() if model.shape.family is FAMILIES["llama"] else missing:
        model.shape.check(Site.parse("mlp_up.1"), name="m")
