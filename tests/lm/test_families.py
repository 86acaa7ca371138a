"""Every family by name, held to transformers' own numbers."""

import json
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import pipeline.lm.weights
from pipeline.connect.scores import layer_weights
from pipeline.errors import ConfigError, ModelError
from pipeline.lm.families import FAMILIES, Family, Shape
from pipeline.lm.hooks import capture, reading, splice
from pipeline.lm.hub import read_object
from pipeline.lm.logits import Path as LogitPath, load_path
from pipeline.lm.model import LanguageModel, load_for_sites, load_model, outline_model
from pipeline.lm.quantized import QuantizedLinear
from pipeline.lm.replay import Replay
from pipeline.lm.sites import KINDS, LayerSite, Site
from tests.helpers.families import MAKERS, N_LAYERS
from tests.helpers.models import CPU, FP32, save_random, sites_of
from tests.helpers.refusals import refused

TOKENS = torch.arange(24).reshape(2, 12) % 60 + 1
BF16 = torch.bfloat16
OLDER = transformers.__version__.startswith("4.")
TABLE = Path(__file__).parents[2] / "docs" / "how-to" / "text-and-models.md"

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
_EXPERTS_AT = "block_sparse_moe" if OLDER else "mlp"
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
    "mixtral": _EXPERTS | {"mlp_out": (_EXPERTS_AT, "out")}, "qwen2_moe": _EXPERTS,
    "qwen3_moe": _EXPERTS, "mamba": {},
}  # fmt: skip
EXPERTS = {"mixtral", "qwen2_moe", "qwen3_moe"}
POST_NORM = {"gemma2", "gemma3", "gemma3-of-images", "olmo2", "olmo3"}
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


LIKE_OTHERS = {
    "gemma", "olmo3", "smollm3", "starcoder2", "stablelm", "stablelm-parallel", "cohere", "phi",
    "gpt_neo", "gpt_bigcode",
}  # fmt: skip
"""What is special about each is special about one of the others, too: with the slow tests."""
EACH = [
    pytest.param(name, marks=[pytest.mark.slow] if name in LIKE_OTHERS else []) for name in MAKERS
]


@pytest.fixture(scope="module", params=EACH)
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
    # Mamba's scan differs in the last bit, by where its numbers lie in memory, and transformers 4
    # rounds GPT-J's table of positions.
    loose = known.name == "mamba" or (known.name == "gptj" and OLDER)
    near = {FP32: 1e-6, BF16: 0.05}[dtype] if loose else 0
    for x, (site, got) in zip(streams, acts.items(), strict=True):
        torch.testing.assert_close(got, x, rtol=0, atol=near, msg=str(site))
    got = lm.logits(hidden)
    torch.testing.assert_close(got, logits.to(got.dtype), rtol=near, atol=near)


@torch.no_grad()
def test_a_part_of_the_model_has_the_bits_of_the_whole_in_bf16(known):
    lm = load_model(known.folder, device=CPU, dtype=BF16)
    sites = [site for site in sites_of(lm) if site.layer == 1]
    with capture(lm, sites) as full:
        lm.hidden(TOKENS)
    for site in sites:
        part = load_for_sites(known.folder, [site], device=CPU, dtype=BF16)
        with reading(part, [site]) as read:
            assert torch.equal(read(TOKENS)[site], full[site]), site


@contextmanager
def reads() -> Generator[tuple[set[str], set[str]]]:
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
            ran = started(part.body, lambda: read(TOKENS))
            assert torch.equal(read(TOKENS)[site], full[site]), site
        with reading(lm, [site]) as read:
            whole = started(lm.body, lambda: read(TOKENS))
        assert files == {weight_map[key] for key in keys}
        if known.name not in EXPERTS and known.name != "gemma3-of-images":  # others' names differ
            assert keys == {f"{lm.shape.family.prefix}.{name}" for name in real}, site
        elif site.layer > 0:  # whose layers are all of experts
            its = [key for key in keys if re.search(rf"layers\.{site.layer}\..*\.experts\.", key)]
            whole_layer = site.kind.name in ("mlp_out", "resid_post")
            assert bool(its) == (whole_layer and known.name in EXPERTS), site
            assert not any(
                f"layers.{later}." in key
                for key in keys
                for later in range(site.layer + 1, N_LAYERS)
            )
        owners = {name.rpartition(".")[0] for name in real}
        skipped = {name for name in whole if name not in ran}
        assert bool(skipped) == (lm.shape.parallel and site.kind.name.startswith("mlp"))
        assert all("attn" in name or "attention" in name for name in skipped), site
        owners -= {name for name in owners if ".experts." in name}  # modules of transformers 4, of
        ran = [name for name in ran if ".experts." not in name]  # which those run that are chosen
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
            ran = started(lm.body, lambda: read(TOKENS))
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
            before = value.clone()
            with splice(lm, {site: lambda _, value=value: value}):
                whole = lm.hidden(TOKENS)
            assert torch.equal(replay.edited(site, value), whole), site
            assert torch.equal(whole, clean) == (value is acts), site
            assert torch.equal(value, before), site
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


def test_a_direct_path_is_the_change_of_logits_but_for_the_scale_of_the_norm(known):
    """In the last layer, along a direction that leaves what the norm divides by as it is."""
    lm = load_model(known.folder, device=CPU, dtype=torch.float64)
    last = Site.parse(f"resid_post.{N_LAYERS - 1}")
    if known.name in EXPERTS and not OLDER:  # their kernel takes no float64
        lm.module.set_experts_implementation("eager")
    cap = getattr(lm.module.config, "final_logit_softcapping", None)
    for kind in lm.shape.kinds():
        site = LayerSite(N_LAYERS - 1, kind)
        behind_norm = known.name in POST_NORM and kind.through is not None
        if kind.nonlinear or behind_norm or known.name == "opt-350m":
            after = "a nonlinearity" if kind.nonlinear else "a norm"
            with refused(ConfigError, f"{site} has no linear way to the logits: {after} comes"):
                path_of(known, site)
            continue
        if kind.name not in ("mlp_out", "resid_post", "mlp_act"):
            continue
        path = path_of(known, site)
        with torch.no_grad(), capture(lm, [last]) as acts:
            lm.hidden(TOKENS)
        x = acts[last][1, 5]
        centered = x - x.mean() if path.centered else x
        direction = torch.randn(lm.width(site), generator=torch.Generator().manual_seed(1)).double()
        reads = centered if path.out is None else path.out.double().T @ centered
        direction -= reads * (direction @ reads) / (reads @ reads)

        def logits(step: float) -> torch.Tensor:
            with torch.no_grad(), splice(lm, {site: lambda a: a + step * direction}):  # noqa: B023
                return lm.logits(lm.hidden(TOKENS)[1, 5:6])[0, :60]

        change, at = (logits(1e-3) - logits(-1e-3)) / 2e-3, logits(0.0)
        if cap is not None:  # its slope
            change = change / (1 - (at / cap).square())
        expected = (
            path.logits(direction[None].float())[0].double() / centered.square().mean().sqrt()
        )
        far = change.abs().max().item()
        assert far > 0.1, site
        torch.testing.assert_close(change, expected, rtol=1e-3, atol=1e-3 * far, msg=str(site))


def path_of(known: Known, site: Site) -> LogitPath:
    return load_path(known.folder, site, revision="main", n_vocab=60, device=CPU)


# What is published of well-known checkpoints, and how many parameters they have.
PUBLISHED = {
    "mistralai/Mistral-7B-v0.1": (
        {
            "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 32768, "rope_theta": 10000.0, "sliding_window": 4096,
            "tie_word_embeddings": False, "vocab_size": 32000,
        },
        7_241_732_096, 4096, 14336,
    ),
    "Qwen/Qwen2.5-0.5B": (
        {
            "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
            "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
            "max_position_embeddings": 32768, "max_window_layers": 24, "sliding_window": 32768,
            "use_sliding_window": False, "tie_word_embeddings": True, "vocab_size": 151936,
            "rope_theta": 1000000.0,
        },
        494_032_768, 896, 4864,
    ),
    "Qwen/Qwen3-0.6B": (
        {
            "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
            "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
            "max_position_embeddings": 40960, "max_window_layers": 28, "sliding_window": None,
            "use_sliding_window": False, "tie_word_embeddings": True, "vocab_size": 151936,
            "rope_theta": 1000000, "attention_bias": False,
        },
        596_049_920, 2048, 3072,
    ),
    "google/gemma-2-2b": (
        {
            "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216,
            "head_dim": 256, "num_hidden_layers": 26, "num_attention_heads": 8,
            "num_key_value_heads": 4, "max_position_embeddings": 8192, "sliding_window": 4096,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
            "query_pre_attn_scalar": 256, "rope_theta": 10000.0, "vocab_size": 256000,
            "hidden_activation": "gelu_pytorch_tanh",
        },
        2_614_341_888, 2048, 9216,
    ),
    "google/gemma-3-1b-pt": (
        {
            "model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912,
            "head_dim": 256, "num_hidden_layers": 26, "num_attention_heads": 4,
            "num_key_value_heads": 1, "max_position_embeddings": 32768, "sliding_window": 512,
            "sliding_window_pattern": 6, "query_pre_attn_scalar": 256, "rope_theta": 1000000,
            "rope_local_base_freq": 10000, "vocab_size": 262144,
        },
        999_885_952, 1024, 6912,
    ),
    "google/gemma-3-4b-pt, its text": (
        {
            "model_type": "gemma3", "text_config": {
                "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240,
                "num_hidden_layers": 34, "sliding_window": 1024,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
            },
        },
        3_880_263_168, 2048, 10240,
    ),
    "allenai/OLMo-2-1124-7B": (
        {
            "model_type": "olmo2", "hidden_size": 4096, "intermediate_size": 11008,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "max_position_embeddings": 4096, "rope_theta": 500000, "vocab_size": 100352,
            "tie_word_embeddings": False, "attention_bias": False,
        },
        7_298_617_344, 4096, 11008,
    ),
    "microsoft/Phi-3-mini-4k-instruct": (
        {
            "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
            "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
            "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047,
            "tie_word_embeddings": False, "vocab_size": 32064, "pad_token_id": 32000,
        },
        3_821_079_552, 3072, 8192,
    ),
    "EleutherAI/gpt-j-6b": (
        {
            "model_type": "gptj", "n_embd": 4096, "n_inner": None, "n_layer": 28, "n_head": 16,
            "n_positions": 2048, "rotary_dim": 64, "vocab_size": 50400,
            "tie_word_embeddings": False,
        },
        6_050_882_784, 4096, 16384,
    ),
    "facebook/opt-125m": (
        {
            "model_type": "opt", "hidden_size": 768, "ffn_dim": 3072, "num_hidden_layers": 12,
            "num_attention_heads": 12, "max_position_embeddings": 2048, "vocab_size": 50272,
            "word_embed_proj_dim": 768, "do_layer_norm_before": True,
        },
        125_239_296, 768, 3072,
    ),
    "facebook/opt-350m": (
        {
            "model_type": "opt", "hidden_size": 1024, "ffn_dim": 4096, "num_hidden_layers": 24,
            "num_attention_heads": 16, "max_position_embeddings": 2048, "vocab_size": 50272,
            "word_embed_proj_dim": 512, "do_layer_norm_before": False,
        },
        331_196_416, 1024, 4096,
    ),
    "tiiuae/falcon-7b": (
        {
            "model_type": "falcon", "hidden_size": 4544, "num_hidden_layers": 32,
            "num_attention_heads": 71, "num_kv_heads": 71, "multi_query": True,
            "new_decoder_architecture": False, "parallel_attn": True, "alibi": False,
            "bias": False, "vocab_size": 65024,
        },
        6_921_720_704, 4544, 18176,
    ),
    "tiiuae/falcon-40b": (
        {
            "model_type": "falcon", "hidden_size": 8192, "num_hidden_layers": 60,
            "num_attention_heads": 128, "num_kv_heads": 8, "new_decoder_architecture": True,
            "parallel_attn": True, "alibi": False, "bias": False, "vocab_size": 65024,
        },
        41_303_293_952, 8192, 32768,
    ),
    "mistralai/Mixtral-8x7B-v0.1": (
        {
            "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
            "max_position_embeddings": 32768, "num_experts_per_tok": 2, "num_local_experts": 8,
            "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
            "vocab_size": 32000,
        },
        46_702_792_704, 4096, None,
    ),
    "Qwen/Qwen1.5-MoE-A2.7B": (
        {
            "model_type": "qwen2_moe", "hidden_size": 2048, "intermediate_size": 5632,
            "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 16,
            "max_position_embeddings": 8192, "max_window_layers": 21, "sliding_window": 32768,
            "use_sliding_window": False, "decoder_sparse_step": 1, "moe_intermediate_size": 1408,
            "shared_expert_intermediate_size": 5632, "num_experts": 60, "num_experts_per_tok": 4,
            "rope_theta": 1000000.0, "tie_word_embeddings": False, "vocab_size": 151936,
        },
        14_315_784_192, 2048, None,
    ),
    "Qwen/Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
            "head_dim": 128, "num_hidden_layers": 48, "num_attention_heads": 32,
            "num_key_value_heads": 4, "max_position_embeddings": 40960, "decoder_sparse_step": 1,
            "moe_intermediate_size": 768, "mlp_only_layers": [], "num_experts": 128,
            "num_experts_per_tok": 8, "rope_theta": 1000000.0, "tie_word_embeddings": False,
            "vocab_size": 151936, "max_window_layers": 48, "use_sliding_window": False,
        },
        30_532_122_624, 4096, None,
    ),
    "state-spaces/mamba-130m-hf": (
        {
            "model_type": "mamba", "hidden_size": 768, "num_hidden_layers": 24, "state_size": 16,
            "expand": 2, "conv_kernel": 4, "intermediate_size": 1536, "vocab_size": 50280,
            "time_step_rank": 48, "use_bias": False, "use_conv_bias": True,
        },
        129_135_360, None, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_are_read_without_weights(name, tmp_path):
    config, n_parameters, d_attn, d_mlp = PUBLISHED[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    lm = outline_model(str(tmp_path), dtype=BF16)
    parameters = dict(lm.module.named_parameters())
    if lm.module.config.tie_word_embeddings:  # one matrix
        parameters.pop("lm_head.weight", None)
    assert sum(p.numel() for p in parameters.values()) == n_parameters
    assert all(p.is_meta for p in parameters.values())
    assert lm.shape.tied == lm.module.config.tie_word_embeddings
    said = config.get("text_config", config)
    d_model = said.get("hidden_size", said.get("n_embd"))
    widths = {"d_model": d_model, "d_attn": d_attn, "d_mlp": d_mlp}
    for kind in lm.shape.kinds():
        site = LayerSite(lm.shape.n_layers - 1, kind)
        assert lm.width(site) == widths[kind.width]
        module = lm.body.get_submodule(lm.shape.family.module_path(site))
        if isinstance(module, nn.Linear):
            its = module.in_features if kind.side == "in" else module.out_features
            assert its == widths[kind.width], kind


def test_a_checkpoint_that_lacks_an_expert_is_one_line(tmp_path):
    save_random(MAKERS["mixtral"](), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    lacking = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    expert = {lacking: weights.pop(lacking)}
    save_file(weights, tmp_path / "model.safetensors")
    with refused(ModelError, rf"lacks the tensor {lacking}"):
        load_model(str(tmp_path), device=CPU, dtype=FP32)
    load_for_sites(str(tmp_path), [Site.parse("resid_mid.1")], device=CPU, dtype=FP32)
    names = [f"model.layers.1.block_sparse_moe.experts.3.w{i}.weight" for i in (1, 2, 3)]
    weights = {key: x for key, x in (weights | expert).items() if key not in names}
    save_file(weights, tmp_path / "model.safetensors")
    if OLDER:  # transformers 4 holds them apart, too
        return
    told = r"experts\.\w+ is \[3, .*\] in the checkpoint of .*, and \[4, .*\] by its config.json"
    with refused(ModelError, told):
        load_model(str(tmp_path), device=CPU, dtype=FP32)


def test_a_kind_that_has_no_module_is_refused_and_others_are_named():
    told = {
        "phi3": ("mlp_pre", "no part is called mlp_in; use resid_pre.1 or .* or mlp_act.1 or"),
        "mixtral": ("mlp_act", "no part is called mlp_out; use resid_pre.1 or attn_z.1 or"),
        "mamba": ("mlp_out", "no part is called mlp; use resid_pre.1 or resid_post.1$"),
    }
    for name, (kind, words) in told.items():
        shape = Shape.of(MAKERS[name]().config.to_dict(), name="m")
        with refused(ConfigError, f"site {kind}.1 does not exist: m is a .*, in which {words}"):
            shape.check(Site.parse(f"{kind}.1"), name="m")


@torch.no_grad()
def test_layers_run_in_few_bits(known):
    if known.name == "mamba":
        assert "64 tokens, any number of positions; " in repr(known.lm)
        with refused(ConfigError, "which reads its matrices past .*: leave out --quantize"):
            load_model(known.folder, device=CPU, dtype=FP32, quantize="8bit")
        return
    few = load_model(known.folder, device=CPU, dtype=FP32, quantize="8bit")
    assert any(isinstance(part, QuantizedLinear) for part in few.module.modules())
    near, exact = few.hidden(TOKENS), known.lm.hidden(TOKENS)
    assert not torch.equal(near, exact)
    assert (near - exact).norm() < 0.2 * exact.norm()


def test_an_mlp_that_is_no_module_is_compared_with_nothing(tmp_path):
    lm = load_model(str(save_random(MAKERS["opt"](), tmp_path)), device=CPU, dtype=FP32)
    with refused(ConfigError, "m is a OPTForCausalLM, whose layers have no module that is the MLP"):
        lm.shape.mlp_path(1, name="m")
    sites = Site.parse("resid_mid.1"), Site.parse("mlp_out.1")
    assert layer_weights(lm, *sites, tau=0.1) is None


def test_the_table_of_the_docs_says_what_each_family_has():
    rows = [line.split("|") for line in TABLE.read_text().splitlines() if line.startswith("| ")]
    said = {row[2].strip(" `"): row[3] for row in rows if row[2].strip(" `") in FAMILIES}
    assert set(said) == set(FAMILIES)
    for name, make in MAKERS.items():
        config = make().config
        shape = Shape.of(config.to_dict(), name=name)
        lacking = {kind for kind in KINDS if kind not in map(str, shape.kinds())}
        told = set(re.findall(r"`(\w+)`", said[config.model_type]))
        depends = config.model_type in ("stablelm", "falcon")  # on a setting
        assert lacking <= told if depends else lacking == told, name


def test_the_entry_that_the_docs_show_is_that_of_the_table():
    text = (TABLE.parents[1] / "contributing.md").read_text()
    shown = re.search(r'```python\n"olmo2": (Family\(.*?\n\)),\n```', text, re.DOTALL)
    assert shown is not None
    assert eval(shown[1], {"Family": Family}) == FAMILIES["olmo2"]
