"""Models that barely fit: what is planned, what is refused, and what makes them smaller."""

import json
import math
from dataclasses import replace
from unittest.mock import Mock

import bitsandbytes.functional as bnb
import pytest
import saepipe as sp
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.config.architectures import TopKConfig
from pipeline.errors import CheckpointError, ConfigError
from pipeline.finetune import learn, memory
from pipeline.finetune.compare import compare
from pipeline.finetune.learn import Learner, trained_of
from pipeline.finetune.memory import plan_memory
from pipeline.finetune.run import FinetunedRun
from pipeline.finetune.setting import open_setting
from pipeline.lm import quantized
from pipeline.lm.checkpointing import checkpointed
from pipeline.lm.cross_entropy import backward_cross_entropy
from pipeline.lm.hooks import in_float, splice
from pipeline.lm.model import load_model, outline_model
from pipeline.lm.quantized import QuantizedLinear, plain_weights
from pipeline.lm.sites import Site
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import TunedSAE
from tests.helpers.families import MAKERS as FAMILY_MAKERS
from tests.helpers.models import EACH_FAMILY, MAKERS, save_random
from tests.helpers.refusals import refused
from tests.helpers.tiny import CTX_LEN, N_LAYERS, WIDTH, make_model, make_sae, save_sae
from tests.helpers.tunings import finetune

CPU, FP32, SITE = torch.device("cpu"), torch.float32, Site.parse("mlp_out.1")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def planned(config):
    return plan_memory(config, [SAERun.open(config.run)])


def really_held(module) -> int:
    """Bytes of every tensor of a model that is loaded, by its storage."""
    storages = {
        x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()
        for x in (*module.parameters(), *module.buffers())
    }
    return sum(storages.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("quantize", [None, "8bit", "4bit"])
def test_the_plan_has_the_bytes_of_the_model_that_is_loaded(
    config, tiny_model, precision, quantize
):
    plan = planned(config(precision=precision, quantize=quantize))
    lm = load_model(str(tiny_model), device=CPU, dtype=DTYPES[precision], quantize=quantize)
    assert plan.of("weights") == really_held(lm.module)
    sae = make_sae()
    numbers = 2 * WIDTH * sae.d_sae + sae.d_sae + WIDTH
    assert plan.of("sae") == 4 * numbers
    assert plan.bytes_needed == sum(part.n_bytes for part in plan.parts)


@pytest.mark.parametrize("train", ["both", "scale"])
@pytest.mark.parametrize("decay_to", ["start", "zero"])
def test_the_plan_has_what_is_learned_with_its_moments(config, train, decay_to):
    settings = config(train=train, decay_to=decay_to)
    tuned = TunedSAE(make_sae())
    learner = Learner(
        trained_of(tuned, settings), lr=1e-3, weight_decay=0, towards_start=decay_to == "start"
    )
    for x in learner.numbers.values():
        x.grad = torch.ones_like(x)
    learner.step()
    state = [x for its in learner.adam.state.values() for x in its.values() if x.ndim]
    tensors = [tuned.c, tuned.d, tuned.learned, *state, *learner._start.values()]
    tensors += [x.grad for x in learner.numbers.values()] + [*learner._goal.values()]
    held = {x.data_ptr(): x.nbytes for x in tensors}
    assert planned(settings).of("learned") == sum(held.values())


def kept_by(lm, contexts, tuned, *, checkpointing) -> int:
    """Bytes that autograd holds when the forward pass is over, as it says itself."""
    weights = {x.untyped_storage().data_ptr() for x in lm.module.parameters()}
    weights |= {x.untyped_storage().data_ptr() for x in tuned.parameters()}
    seen: dict[int, int] = {}
    alive = []

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            alive.append(x)
            seen[storage.data_ptr()] = storage.nbytes()
        return x

    again = checkpointed(lm, above=SITE) if checkpointing else plain_weights(nn.Module())
    with splice(lm, {SITE: in_float(tuned)}), again:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            hidden = lm.hidden(contexts)
        assert hidden.requires_grad
    return sum(seen.values())


def test_the_plan_has_what_autograd_keeps_of_a_batch(config, lm, contexts):
    n = 8
    kept = kept_by(lm, contexts[:n], TunedSAE(make_sae()), checkpointing=False)
    plan = planned(config(batch_size=n))
    extra = n * CTX_LEN * WIDTH * 4  # the hidden states, which the loss reads
    assert kept <= plan.of("kept") <= 1.1 * (kept + extra) + 4096
    twice = planned(config(batch_size=2 * n)).of("kept")
    assert twice == pytest.approx(2 * plan.of("kept"), rel=0.02)


def test_checkpointing_keeps_an_input_a_layer_above_the_site(tmp_path, config):
    model = make_model(tmp_path / "model")
    settings = json.loads((model / "config.json").read_text())
    n = 10
    kept = {}
    for layers in (n, n + 1):
        (model / "config.json").write_text(json.dumps(settings | {"num_hidden_layers": layers}))
        for again in (False, True):
            plan = planned(config(model=str(model), checkpointing=again, batch_size=4))
            kept[layers, again] = plan.of("kept")
    assert kept[n + 1, True] - kept[n, True] == 4 * CTX_LEN * WIDTH * 4
    assert kept[n + 1, False] - kept[n, False] > 10 * 4 * CTX_LEN * WIDTH * 4


def test_nothing_is_kept_for_a_gradient_below_the_site(lm, contexts):
    packed = []
    layer = lm.body.layers[SITE.layer]
    handle = layer.mlp.register_forward_pre_hook(lambda *_: packed.append("site"))
    seen = torch.autograd.graph.saved_tensors_hooks(packed.append, lambda x: x)
    with splice(lm, {SITE: in_float(TunedSAE(make_sae()))}), seen:
        lm.hidden(contexts[:2])
    handle.remove()
    assert packed[0] == "site" and len(packed) > 20


@pytest.mark.parametrize("site", ["resid_pre.0", "mlp_out.1", "resid_post.2"])
@pytest.mark.parametrize("quantize", [None, "4bit"])
def test_a_gradient_with_checkpoints_is_that_without_to_the_bit(
    tiny_model, contexts, site, quantize
):
    lm = load_model(str(tiny_model), device=CPU, dtype=FP32, quantize=quantize)
    site, tokens, found = Site.parse(site), contexts[:3].long(), []
    ran = Mock(return_value=None)
    above = lm.body.layers[site.layer + 1 :]
    handles = [layer.input_layernorm.register_forward_hook(ran) for layer in above]
    for again in (False, True):
        tuned = TunedSAE(make_sae())
        ran.reset_mock()
        with splice(lm, {site: in_float(tuned)}):
            if again:
                with checkpointed(lm, above=site):
                    loss = backward_cross_entropy(lm, lm.hidden(tokens), tokens)
            else:
                loss = backward_cross_entropy(lm, lm.hidden(tokens), tokens)
        assert ran.call_count == (1 + again) * (N_LAYERS - 1 - site.layer)
        found.append((loss, tuned.c.grad, tuned.d.grad))
    assert all("forward" not in vars(layer) for layer in lm.body.layers)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert found[0][1].any()
    for handle in handles:
        handle.remove()


def test_checkpoints_may_be_switched_on_when_a_fine_tuning_goes_on(config, done, monkeypatch):
    monkeypatch.setattr(learn, "KEEP_EVERY", 4)

    def stop(progress):
        if progress.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(config(), on_progress=stop)
    with refused(ConfigError, "quantize"):
        finetune(config(quantize="8bit"))
    report = finetune(config(checkpointing=True))
    tuned, whole = (load_file(path / "tuned.safetensors") for path in (report.out, done.path))
    assert all(torch.equal(tuned[name], whole[name]) for name in whole)
    assert finetune(config()).reused


def linear(lm):
    return lm.body.layers[2].mlp.dense_h_to_4h


@pytest.mark.parametrize(("quantize", "nearest"), [("8bit", 0.03), ("4bit", 0.2)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_quantised_product_is_that_of_the_weights_bitsandbytes_gives_back(
    tiny_model, quantize, nearest, precision
):
    dtype = DTYPES[precision]
    plain = load_model(str(tiny_model), device=CPU, dtype=dtype)
    lm = load_model(str(tiny_model), device=CPU, dtype=dtype, quantize=quantize)
    part, weight = linear(lm), linear(plain).weight
    assert isinstance(part, QuantizedLinear)
    W = {
        "8bit": lambda: bnb.dequantize_blockwise(*bnb.quantize_blockwise(weight, blocksize=256)),
        "4bit": lambda: bnb.dequantize_4bit(
            *bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        ),
    }[quantize]()
    torch.manual_seed(0)
    x = torch.randn(5, WIDTH, dtype=dtype, requires_grad=True)
    y = part(x)
    expected = x.detach().double() @ W.double().T + linear(plain).bias.double()
    bits = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, rtol=8 * bits, atol=8 * bits)
    g = torch.randn(y.shape, dtype=dtype)
    y.backward(g)
    torch.testing.assert_close(
        x.grad.double(), g.double() @ W.double(), rtol=8 * bits, atol=8 * bits
    )
    error = (W.double() - weight.double()).norm() / weight.double().norm()
    assert 0 < error < nearest
    assert not any(p.requires_grad for p in lm.module.parameters())


def test_one_matrix_at_a_time_is_whole_while_the_model_is_read(tiny_model, monkeypatch):
    alive, most = [], []
    hold = QuantizedLinear.hold

    def held(self, weight):
        storages = [ref() for ref in alive]
        most.append(sum(one is not None for one in storages))
        import weakref

        alive.append(weakref.ref(weight.untyped_storage()))
        hold(self, weight)

    monkeypatch.setattr(QuantizedLinear, "hold", held)
    load_model(str(tiny_model), device=CPU, dtype=FP32, quantize="4bit")
    assert len(most) == 4 * N_LAYERS and max(most) <= 1


def test_a_quantised_fine_tuning_learns_and_is_compared_with_other_means(config, tmp_path):
    report = finetune(config(quantize="8bit", lr=0.2))
    assert report.ce_finetuned < report.ce_spliced - 0.1
    assert FinetunedRun.open(report.out).config.quantize == "8bit"
    ways = {way.name: way for way in compare(report.out, (0.01,)).ways}
    assert ways["base"].ce == report.ce_base or ways["base"].ce > 0
    assert ways["mlp"].n_numbers == 2 * 3 * WIDTH * WIDTH + 3 * WIDTH + WIDTH
    assert ways["lora"].ce != ways["base"].ce
    assert ways["mlp"].ce < ways["base"].ce


def test_what_cannot_fit_is_refused_before_a_weight_is_read(config, monkeypatch):
    monkeypatch.setattr(memory, "bytes_free", lambda _: 2**17)
    monkeypatch.setattr(memory, "bytes_resident", lambda: 0)
    monkeypatch.setattr(memory, "LATER", 0)
    opened = Mock(side_effect=AssertionError)
    monkeypatch.setattr("pipeline.finetune.setting.load_model", opened)
    flags = "--precision bf16", "--quantize 8bit", "--quantize 4bit", "--checkpointing"
    flags += "--batch-size 1", f"--ctx-len {CTX_LEN // 2}", "all of these"
    told = r".*".join(rf"[\d.]+k?M?B with {flag}" for flag in flags)
    words = (
        r"^fine-tuning at mlp_out.1 of .* takes about .*B of memory, and cpu has 131kB: it would"
    )
    with refused(ConfigError, rf"{words} take .*{told}$"):
        finetune(config(batch_size=2, precision="fp32"))
    assert not opened.called
    with refused(ConfigError, "less with --quantize 4bit .pip install 'saepipe.quantize.'"):
        monkeypatch.setattr(memory, "find_spec", lambda _: None)
        finetune(config(batch_size=2, precision="fp32"))
    monkeypatch.setattr(memory, "bytes_free", lambda _: None)
    monkeypatch.setattr("pipeline.finetune.setting.load_model", load_model)
    finetune(config())


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"precision": "bf16"}, "weights"), ({"quantize": "4bit"}, "weights"),
        ({"checkpointing": True}, "kept"), ({"batch_size": 1}, "kept"), ({"ctx_len": 4}, "kept"),
    ],
)  # fmt: skip
def test_settings_that_help_take_less(config, change, part):
    before, after = planned(config(precision="fp32")), planned(config(**change))
    assert after.of(part) < before.of(part)


def test_a_plan_fits_with_some_room_left(config, monkeypatch):
    plan = planned(config())
    need = plan.bytes_needed
    assert replace(plan, bytes_free=math.ceil(1.05 * need) + 1).fits
    assert not replace(plan, bytes_free=math.floor(1.05 * need) - 1).fits
    assert replace(plan, bytes_free=None).fits
    assert plan.of("process") > memory.LATER
    with monkeypatch.context() as patch:  # what the process holds is not asked for again
        patch.setattr(memory, "bytes_free", lambda _: 1000)
        patch.setattr(memory, "bytes_resident", lambda: 7)
        assert planned(config()).bytes_free == 1007
    compared = planned(config(compare=True))
    mlp = 2 * 3 * WIDTH * WIDTH + 4 * WIDTH
    assert compared.of("compared") == 6 * 4 * mlp and plan.of("compared") == 0
    quantised = planned(config(compare=True, quantize="4bit"))
    assert quantised.of("compared") == compared.of("compared")


def test_the_command_tells_the_plan_and_reads_no_weights(
    succeeds, fails, run, text, tmp_path, monkeypatch
):
    opened = Mock(side_effect=AssertionError)
    monkeypatch.setattr("pipeline.lm.weights._opened", opened)
    monkeypatch.setattr("pipeline.runs.sae_run.SAERun.load_sae", opened)
    out = tmp_path / "tuned"
    command = ["finetune", run, "--text", text, "--out", out, "--ctx-len", CTX_LEN, "--plan"]
    command += ["--device", "cpu", "--quantize", "4bit", "--checkpointing"]
    told, _ = succeeds(*command, "--json", "-")
    plan = json.loads(told)
    parts = {part["name"]: part["n_bytes"] for part in plan["parts"]}
    assert {*parts} == {"weights", "sae", "learned", "kept", "passing", "process"}
    assert plan["bytes_needed"] == sum(parts.values())
    assert plan["config"]["checkpointing"] and plan["config"]["quantize"] == "4bit"
    shown = "".join(succeeds(*command))
    for word in ("memory of a fine-tuning at mlp_out.1", "layers in 4bit", "computed twice", "cpu"):
        assert word in shown
    assert sp.finetune(run, out=out, plan=True, ctx_len=CTX_LEN, device="cpu").of("weights") > 0
    assert not out.exists() and not opened.called
    monkeypatch.setattr(memory, "bytes_free", lambda _: 10)
    assert "no other setting takes much less" in fails(*command)


def test_what_quantises_is_named_where_it_is_absent(config, monkeypatch):
    monkeypatch.setattr(quantized, "find_spec", lambda _: None)
    words = "quantised weights take bitsandbytes, which is not installed: type pip install"
    with refused(ConfigError, words):
        finetune(config(quantize="8bit"))
    with refused(ConfigError, words):
        planned(config(quantize="4bit"))
    assert planned(config()).fits


def test_a_plan_is_as_particular_as_a_fine_tuning(config, tmp_path, run):
    with refused(ConfigError, "layers 0 to 2"):
        planned(config(site="mlp_out.7"))
    with refused(ConfigError, "takes 64"):
        planned(config(ctx_len=65))
    with refused(CheckpointError, "nothing"):
        sp.finetune(tmp_path / "nothing", out=tmp_path / "out", plan=True)


@pytest.mark.parametrize("family", EACH_FAMILY)
def test_every_family_can_be_planned(family, tmp_path):
    """Its modules run without memory, quantised and checkpointed, too."""
    model, arch = save_random(MAKERS[family](), tmp_path / "model"), TopKConfig(k=4)
    lm = outline_model(str(model), dtype=FP32)
    sae = make_sae(d_in=lm.shape.d_model, arch=arch)
    path = save_sae(tmp_path / "sae", sae, model=model, site="resid_post.0", arch=arch)
    given = {"out": tmp_path / "out", "ctx_len": 8, "device": "cpu", "batch_size": 2}
    plain = sp.finetune(path, plan=True, **given)
    light = sp.finetune(path, plan=True, quantize="4bit", checkpointing=True, **given)
    assert light.of("weights") < plain.of("weights")
    assert 0 < light.of("kept") < plain.of("kept")


@pytest.mark.parametrize("family", ["gemma3", "falcon", "opt-350m", "mixtral"])
def test_families_of_other_layers_are_planned_and_experts_refused(family, tmp_path):
    model, arch = save_random(FAMILY_MAKERS[family](), tmp_path / "model"), TopKConfig(k=4)
    path = save_sae(
        tmp_path / "sae", make_sae(d_in=32, arch=arch), model=model, site="mlp_out.1", arch=arch
    )
    given = {"out": tmp_path / "out", "ctx_len": 8, "device": "cpu", "batch_size": 2}
    if family == "mixtral":
        with refused(ConfigError, "is a MixtralForCausalLM: .* choose a model without"):
            sp.finetune(path, plan=True, **given)
    else:
        light = sp.finetune(path, plan=True, checkpointing=True, **given)
        assert 0 < light.of("kept") < sp.finetune(path, plan=True, **given).of("kept")


def test_a_setting_is_opened_as_it_was_planned(config):
    settings = config(quantize="4bit", checkpointing=True)
    setting = open_setting(settings, [SAERun.open(settings.run)])
    with setting.learning({}):
        assert all("forward" in vars(layer) for layer in setting.lm.body.layers[2:])
        assert "forward" not in vars(setting.lm.body.layers[1])
    assert isinstance(linear(setting.lm), QuantizedLinear)


def test_the_plan_of_a_large_batch_is_reckoned_from_two_smaller_ones(config, monkeypatch):
    large = config(batch_size=400)
    rehearsed = planned(large)
    monkeypatch.setattr("pipeline.finetune.rehearsal.ENOUGH", 100 * CTX_LEN)
    reckoned = planned(large)
    assert reckoned.of("kept") == rehearsed.of("kept")
    assert reckoned.bytes_needed - reckoned.of("process") == pytest.approx(
        rehearsed.bytes_needed - rehearsed.of("process"), rel=0.03
    )
    largest = planned(replace(large, batch_size=10**9))
    assert largest.of("kept") == pytest.approx(10**9 / 400 * reckoned.of("kept"), rel=1e-3)
