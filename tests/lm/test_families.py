"""Every family by name, held to transformers' own numbers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn

import pipeline.lm.weights
from pipeline.errors import ConfigError, ModelError
from pipeline.lm.families import FAMILIES, Shape
from pipeline.lm.hooks import capture, reading, splice
from pipeline.lm.hub import read_object
from pipeline.lm.logits import load_path
from pipeline.lm.model import LanguageModel, load_for_sites, load_model, outline_model
from pipeline.lm.replay import Replay
from pipeline.lm.sites import BRANCHES, Site
from tests.helpers.families import MAKERS, N_LAYERS
from tests.helpers.models import CPU, FP32, save_random, sites_of
from tests.helpers.refusals import refused

TOKENS = torch.arange(24).reshape(2, 12) % 60 + 1
BF16 = torch.bfloat16

# Where transformers has each kind of site, in a layer: what goes into or comes out of a module.
_LLAMA = {
    "attn_z": ("self_attn.o_proj", "in"), "attn_out": ("self_attn", "out"),
    "resid_mid": ("post_attention_layernorm", "in"), "mlp_pre": ("mlp.act_fn", "in"),
    "mlp_act": ("mlp.down_proj", "in"), "mlp_out": ("mlp", "out"),
}  # fmt: skip
_POST_NORMS = {
    "attn_out": ("post_attention_layernorm", "out"),
    "mlp_out": ("post_feedforward_layernorm", "out"),
}
_GEMMA2 = _LLAMA | _POST_NORMS | {"resid_mid": ("pre_feedforward_layernorm", "in")}
_OLMO2 = _LLAMA | _POST_NORMS | {"resid_mid": ("mlp", "in")}
_GPT2 = {
    "attn_z": ("attn.c_proj", "in"), "attn_out": ("attn", "out"), "resid_mid": ("ln_2", "in"),
    "mlp_pre": ("mlp.act", "in"), "mlp_act": ("mlp.c_proj", "in"), "mlp_out": ("mlp", "out"),
}  # fmt: skip
_PHI = {
    "attn_z": ("self_attn.dense", "in"), "attn_out": ("self_attn", "out"),
    "mlp_pre": ("mlp.activation_fn", "in"), "mlp_act": ("mlp.fc2", "in"), "mlp_out": ("mlp", "out"),
}  # fmt: skip
_FALCON = {
    "attn_z": ("self_attention.dense", "in"), "attn_out": ("self_attention", "out"),
    "mlp_pre": ("mlp.act", "in"), "mlp_act": ("mlp.dense_4h_to_h", "in"), "mlp_out": ("mlp", "out"),
}  # fmt: skip
_OPT = {
    "attn_z": ("self_attn.out_proj", "in"), "attn_out": ("self_attn", "out"),
    "resid_mid": ("final_layer_norm", "in"), "mlp_pre": ("activation_fn", "in"),
    "mlp_act": ("fc2", "in"), "mlp_out": ("fc2", "out"),
}  # fmt: skip


def without(table: dict[str, tuple[str, str]], *kinds: str) -> dict[str, tuple[str, str]]:
    return {kind: where for kind, where in table.items() if kind not in kinds}


_EXPERTS = without(_LLAMA, "mlp_pre", "mlp_act")
PLACES = {
    "mistral": _LLAMA, "qwen2": _LLAMA, "qwen3": _LLAMA, "gemma": _LLAMA, "smollm3": _LLAMA,
    "stablelm": _LLAMA, "gemma2": _GEMMA2, "gemma3": _GEMMA2, "gemma3-of-images": _GEMMA2,
    "olmo2": _OLMO2, "olmo3": _OLMO2, "phi": _PHI, "phi3": without(_LLAMA, "mlp_pre"),
    "starcoder2": _LLAMA | {"mlp_pre": ("mlp.act", "in"), "mlp_act": ("mlp.c_proj", "in")},
    "stablelm-parallel": without(_LLAMA, "resid_mid"), "cohere": without(_LLAMA, "resid_mid"),
    "gptj": without(_GPT2, "resid_mid")
    | {"attn_z": ("attn.out_proj", "in"), "mlp_act": ("mlp.fc_out", "in")},
    "gpt_neo": _GPT2 | {"attn_z": ("attn.attention.out_proj", "in")}, "gpt_bigcode": _GPT2,
    "opt": _OPT, "opt-350m": _OPT | {"resid_mid": ("self_attn_layer_norm", "in")},
    "falcon": _FALCON, "falcon-two-norms": _FALCON,
    "falcon-in-turn": _FALCON | {"resid_mid": ("post_attention_layernorm", "in")},
    "mixtral": _EXPERTS, "qwen2_moe": _EXPERTS, "qwen3_moe": _EXPERTS, "mamba": {},
}  # fmt: skip
PARALLEL = {"stablelm-parallel", "cohere", "phi", "gptj", "falcon", "falcon-two-norms"}


class Known:
    """A checkpoint, and what transformers makes of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        save_random(MAKERS[name](), folder)
        self.folder = str(folder)
        self.plain = self.reference(FP32)
        self.lm = load_model(self.folder, device=CPU, dtype=FP32)

    def reference(self, dtype: torch.dtype) -> transformers.PreTrainedModel:
        return transformers.AutoModelForCausalLM.from_pretrained(self.folder, dtype=dtype).eval()

    def body_of(self, plain: transformers.PreTrainedModel) -> nn.Module:
        return plain.get_decoder() if self.name == "gemma3-of-images" else plain.base_model

    def layers_of(self, plain: transformers.PreTrainedModel) -> nn.ModuleList:
        modules = self.body_of(plain).modules()
        return next(m for m in modules if isinstance(m, nn.ModuleList) and len(m) == N_LAYERS)

    @torch.no_grad()
    def streams(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """What each layer was given, and what the last one gave, with its logits behind them."""
        plain = self.reference(dtype)
        states: list[torch.Tensor] = []
        for layer in self.layers_of(plain):
            layer.register_forward_pre_hook(lambda _, args: states.append(args[0].clone()))
        last: list[torch.Tensor] = []
        self.layers_of(plain)[-1].register_forward_hook(lambda _, __, out: last.append(first(out)))
        logits = plain(TOKENS).logits
        return [*states, *last, logits]


def first(out: object) -> torch.Tensor:
    return out[0] if isinstance(out, tuple) else out  # pyright: ignore[reportReturnType]


@pytest.fixture(scope="module", params=list(MAKERS))
def known(request, tmp_path_factory) -> Known:
    return Known(request.param, tmp_path_factory.mktemp("family") / "model")


@torch.no_grad()
def test_every_kind_of_site_is_what_transformers_has_there(known):
    lm, plain = known.lm, known.plain
    expected: dict[str, torch.Tensor] = {}

    def keep(name: str, x: torch.Tensor) -> None:
        expected[name] = x.clone().reshape(*TOKENS.shape, -1)

    for i, layer in enumerate(known.layers_of(plain)):
        for kind, (path, side) in PLACES[known.name].items():
            name, module = f"{kind}.{i}", layer.get_submodule(path)
            if side == "in":
                module.register_forward_pre_hook(lambda _, x, name=name: keep(name, x[0]))
            else:
                module.register_forward_hook(lambda _, __, x, name=name: keep(name, first(x)))
    states = known.body_of(plain)(input_ids=TOKENS, output_hidden_states=True).hidden_states
    if known.name == "mamba":  # what its layers give, and once more the last
        states = (plain.get_input_embeddings()(TOKENS), *states[: N_LAYERS - 1], states[-1])
    expected |= {f"resid_pre.{i}": states[i] for i in range(N_LAYERS)}
    expected |= {f"resid_post.{i}": states[i + 1] for i in range(N_LAYERS - 1)}
    with capture(lm, sites_of(lm)) as acts:
        hidden = lm.hidden(TOKENS)
    got = {str(site): x for site, x in acts.items()}
    for site, x in acts.items():
        assert x.shape == (*TOKENS.shape, lm.width(site)), site
    assert set(got) == {*expected, f"resid_post.{N_LAYERS - 1}"}
    for name, x in expected.items():
        torch.testing.assert_close(got[name], x, rtol=0, atol=1e-5, msg=name)
    torch.testing.assert_close(hidden, states[-1], rtol=0, atol=1e-5)
    torch.testing.assert_close(lm.logits(hidden), plain(TOKENS).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_what_branches_add_is_the_change_of_the_stream(known):
    lm = known.lm
    with capture(lm, sites_of(lm)) as acts:
        lm.hidden(TOKENS)
    got = {str(site): x for site, x in acts.items()}
    assert lm.shape.parallel == (known.name in PARALLEL)
    for i in range(N_LAYERS) if "attn_out.0" in got else ():
        middle = got[f"resid_pre.{i}"] + got[f"attn_out.{i}"]
        if not lm.shape.parallel:
            torch.testing.assert_close(middle, got[f"resid_mid.{i}"])
        if known.name == "opt-350m":  # its norms are of the stream
            layer = lm.body.get_submodule("decoder.layers")[i]
            middle = layer.self_attn_layer_norm(middle)
            end = layer.final_layer_norm(middle + got[f"mlp_out.{i}"])
        else:
            end = middle + got[f"mlp_out.{i}"]
        torch.testing.assert_close(end, got[f"resid_post.{i}"])


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@torch.no_grad()
def test_streams_and_logits_are_those_of_transformers_bit_for_bit(known, dtype):
    lm = load_model(known.folder, device=CPU, dtype=dtype)
    sites = [Site.parse(f"resid_pre.{i}") for i in range(N_LAYERS)]
    *streams, logits = known.streams(dtype)
    with capture(lm, [*sites, Site.parse(f"resid_post.{N_LAYERS - 1}")]) as acts:
        hidden = lm.hidden(TOKENS)
    for x, (site, got) in zip(streams, acts.items(), strict=True):
        assert torch.equal(got, x), site
    assert torch.equal(lm.logits(hidden), logits.to(lm.logits(hidden).dtype))


@contextmanager
def reads() -> Iterator[tuple[set[str], set[str]]]:
    """Names of the tensors that are read within the block, and of the files they are in."""
    keys, files = set[str](), set[str]()
    opened = pipeline.lm.weights.safe_open

    class Seen:
        def __init__(self, path: Path, framework: str) -> None:
            self._file, self._name = opened(path, framework), Path(path).name

        def __enter__(self) -> "Seen":
            self._file.__enter__()
            return self

        def __exit__(self, *error: object) -> None:
            self._file.__exit__(*error)

        def keys(self) -> list[str]:
            return self._file.keys()

        def get_tensor(self, key: str) -> torch.Tensor:
            keys.add(key)
            files.add(self._name)
            return self._file.get_tensor(key)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline.lm.weights, "safe_open", Seen)
        yield keys, files


def started(body: nn.Module, run) -> list[str]:
    """Paths of the modules that have weights of their own, in the order in which they start."""
    order: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _, __, name=name: order.append(name))
        for name, module in body.named_modules()
        if list(module.parameters(recurse=False))
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return order


@torch.no_grad()
def test_a_part_of_the_model_reads_what_runs_before_the_site_and_has_its_bits(known, tmp_path):
    lm, folder = known.lm, str(tmp_path / "sharded")
    known.plain.save_pretrained(folder, max_shard_size="20KB")
    weight_map = read_object(tmp_path / "sharded" / "model.safetensors.index.json")["weight_map"]
    assert len(set(weight_map.values())) > 3
    with capture(lm, sites_of(lm)) as full:
        lm.hidden(TOKENS)
    for site in sites_of(lm):
        with reads() as (keys, files):
            part = load_for_sites(folder, [site], device=CPU, dtype=FP32)
        real = {name for name, p in part.body.named_parameters() if not p.is_meta}
        with reading(part, [site]) as read:
            ran = started(part.body, lambda: read(TOKENS))  # noqa: B023
            assert torch.equal(read(TOKENS)[site], full[site]), site
        with reading(lm, [site]) as read:
            whole = started(lm.body, lambda: read(TOKENS))  # noqa: B023
        assert files == {weight_map[key] for key in keys}
        owners = {name.rpartition(".")[0] for name in real}
        skipped = {name for name in whole if name not in ran}
        attention = lm.shape.family.parts.get("attention", "none")
        assert all(
            f".{attention}." in name or "ln_attn" in name or "norm" in name for name in skipped
        )
        assert bool(skipped) == (lm.shape.parallel and site.kind.name.startswith("mlp"))
        if known.name == "mamba":  # reads some of its weights past their modules
            ran += [name for name in owners if ".mixer" in name]
        stopped = {whole[-1]} if site.kind.side == "in" and whole[-1] not in owners else set()
        assert owners == set(ran) - stopped, site


@torch.no_grad()
def test_nothing_runs_after_the_last_site(known):
    lm = known.lm
    order = started(lm.body, lambda: lm.hidden(TOKENS))
    for site in sites_of(lm):
        with reading(lm, [site]) as read:
            ran = started(lm.body, lambda: read(TOKENS))  # noqa: B023
        assert ran == order[: len(ran)], site
        path = lm.shape.family.module_path(site)
        inside = [i for i, name in enumerate(order) if f"{name}.".startswith(f"{path}.")]
        if site.kind.side == "in":
            assert len(ran) <= inside[0] + 1, site
        else:
            assert len(ran) == inside[-1] + 1, site


@pytest.mark.parametrize("dtype", [FP32, BF16], ids=str)
@torch.no_grad()
def test_replay_gives_the_bits_of_a_whole_pass_with_the_value_spliced_in(known, dtype):
    lm = known.lm if dtype is FP32 else load_model(known.folder, device=CPU, dtype=dtype)
    torch.manual_seed(1)
    replay = Replay(lm, sites_of(lm)[::-1])
    clean = replay.clean(TOKENS)
    assert torch.equal(clean, lm.hidden(TOKENS))
    for site in sites_of(lm):
        acts = replay.acts(site).clone()
        for value in (acts, torch.randn_like(acts)):
            with splice(lm, {site: lambda _, value=value: value.clone()}):
                whole = lm.hidden(TOKENS)
            assert torch.equal(replay.edited(site, value.clone()), whole), site
            assert torch.equal(whole, clean) == (value is acts), site
        assert torch.equal(replay.acts(site), acts), site


@torch.no_grad()
def test_only_what_a_site_reaches_runs_again(known):
    lm = known.lm
    clean = inputs_of(lm, lambda: lm.hidden(TOKENS))
    for site in sites_of(lm):
        replay = Replay(lm, [site])
        replay.clean(TOKENS)
        value = torch.randn_like(replay.acts(site))
        with splice(lm, {site: lambda _, value=value: value.clone()}):
            whole = inputs_of(lm, lambda: lm.hidden(TOKENS))
        reached = {name for name, x in whole.items() if not torch.equal(x, clean[name])}
        ran = set(inputs_of(lm, lambda: replay.edited(site, value)))  # noqa: B023
        assert reached <= ran, site
        allowed = {"mlp_pre": ("mlp_norm", "mlp_gated")}.get(site.kind.name, ())
        if lm.shape.family.norms_stream:
            allowed = ("mlp_norm",)
        parts = [part for part in allowed if part in lm.shape.family.parts]
        more = ran - reached - {lm.shape.family.path(site.layer, part) for part in parts}
        assert not more, site


def inputs_of(lm: LanguageModel, run) -> dict[str, torch.Tensor]:
    """What each module that has weights of its own was given while `run` ran."""
    seen: dict[str, torch.Tensor] = {}
    handles = [
        module.register_forward_hook(
            lambda _, args, __, name=name: seen.update({name: args[0].clone()})
        )
        for name, module in lm.body.named_modules()
        if list(module.parameters(recurse=False)) and "experts" not in name
    ]
    run()
    for handle in handles:
        handle.remove()
    return seen


def test_a_model_goes_on_with_a_text(known):
    ids = known.lm.generate([5, 6, 7], max_new_tokens=4)
    tokens = torch.tensor([[5, 6, 7]])
    for _ in range(ids.shape[1] - 3):
        logits, _ = known.lm.run_with_acts(tokens, sites=[])
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(ids, tokens)


def test_every_family_is_tested():
    tested = {known.lm.shape.family for known in ()} | {
        MAKERS[name]().config.model_type for name in MAKERS
    }
    assert tested | {"gpt_neox", "gpt2", "llama"} == set(FAMILIES)
