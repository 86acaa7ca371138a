"""Other means to the same end, on the same rows: each from the untouched model."""

import json
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch
import transformers

from pipeline.config.architectures import BatchTopKConfig, TopKConfig
from pipeline.errors import CheckpointError, DataError, TextError
from pipeline.finetune import compare as compare_module
from pipeline.finetune.compare import compare, random_features, read_comparison
from pipeline.finetune.learn import Course
from pipeline.finetune.run import FinetunedRun
from pipeline.finetune.setting import open_setting
from pipeline.finetune.tables import comparison_table
from pipeline.runs.sae_run import SAERun
from tests.helpers.refusals import refused
from tests.helpers.tiny import WIDTH, make_sae, save_sae
from tests.helpers.tunings import finetune

LRS, D_SAE = (1e-3, 0.05), 4 * WIDTH
ALONE = ("base", "spliced", "run")
LEARNED = ("features", "features_error", "random", "bias", "mlp")


@pytest.fixture
def tuned(config):
    return finetune(config(heldout_contexts=12)).out


def ways_of(comparison):
    return {way.name: way for way in comparison.ways}


def test_every_way_is_gone_at_its_best_learning_rate(tuned):
    told = []
    ways = ways_of(compare(tuned, LRS, on_progress=told.append))
    assert tuple(ways)[: len(ALONE + LEARNED)] == ALONE + LEARNED
    assert [(p.done, p.total) for p in told][-1] == (len(ways), len(ways))
    assert all(ways[name].lr is None and not ways[name].n_numbers for name in ALONE)
    assert all(ways[name].lr in LRS for name in LEARNED)
    assert {ways[name].n_numbers for name in ("features", "random")} == {2 * D_SAE}
    assert ways["bias"].n_numbers == WIDTH
    assert ways["mlp"].n_numbers == 2 * 3 * WIDTH * WIDTH + 4 * WIDTH
    assert ways["features"].ce < ways["spliced"].ce
    for name in ("bias", "mlp", "random", "features_error"):
        assert ways[name].ce < ways["base"].ce, name
    assert comparison_table(read_comparison(tuned)).sections[0][0][0] == "the model alone"


def test_what_is_shown_was_measured_on_rows_that_chose_nothing(tuned):
    run = FinetunedRun.open(tuned)
    ways = ways_of(compare(tuned, LRS))
    setting = open_setting(run.config, [run.run])
    shown = setting.task.heldout.tokens[1::2].long()
    plain = transformers.GPTNeoXForCausalLM.from_pretrained(setting.lm.name).eval()
    with torch.no_grad():
        assert ways["base"].ce == pytest.approx(plain(shown, labels=shown).loss.item(), rel=1e-5)
    assert not {tuple(row) for row in shown.tolist()} & {
        tuple(row) for row in setting.task.train.tokens.tolist()
    }


def test_a_learning_rate_is_chosen_by_the_other_rows(tuned, monkeypatch):
    came_to = iter([1.0, 2.0] * 20)
    monkeypatch.setattr(
        compare_module, "learn", lambda *_, **__: Course(by_epoch=[0.0, next(came_to)])
    )
    assert {w.lr for w in compare(tuned, LRS).ways if w.lr} == {LRS[0]}
    came_to = iter([2.0, 1.0] * 20)
    (tuned / "compare.json").unlink()
    assert {w.lr for w in compare(tuned, LRS).ways if w.lr} == {LRS[1]}


def test_the_loss_that_chooses_is_of_the_rows_to_choose_by(tuned, monkeypatch):
    run = FinetunedRun.open(tuned)
    task = open_setting(run.config, [run.run]).task.halved()
    learned = Mock(side_effect=compare_module.learn)
    monkeypatch.setattr(compare_module, "learn", learned)
    compare(tuned, LRS[:1])
    for call in learned.call_args_list:
        assert torch.equal(call.args[2].choosing.tokens, task.choosing.tokens)
        assert not torch.equal(call.args[2].heldout.tokens, task.choosing.tokens)


def test_a_learning_rate_that_fails_leaves_the_others(tuned, monkeypatch):
    """The largest one first, too."""
    learned = compare_module.learn

    def fails(lm, learner, task, config):
        if config.lr in bad:
            raise DataError("the loss is nan")
        return learned(lm, learner, task, config)

    monkeypatch.setattr(compare_module, "learn", fails)
    bad = {LRS[1]}
    ways = compare(tuned, LRS[::-1]).ways
    assert {way.lr for way in ways if way.lr} == {LRS[0]}
    bad, lrs = {*LRS}, (*LRS, LRS[0])
    with refused(DataError, "the loss is nan"):
        compare(tuned, lrs)


def test_a_single_row_cannot_both_choose_and_be_measured_on(config):
    out = finetune(config(heldout_contexts=1)).out
    with refused(TextError, "leaves a single row to measure on, and another is needed to choose"):
        compare(out, LRS)


def test_after_each_way_the_model_is_as_it_was(tuned, monkeypatch):
    run = FinetunedRun.open(tuned)
    setting = open_setting(run.config, [run.run])
    before = {name: x.clone() for name, x in setting.lm.module.state_dict().items()}
    monkeypatch.setattr(compare_module, "open_setting", lambda *_: setting)
    compare(tuned, LRS)
    after = setting.lm.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not any(p.requires_grad or p.grad is not None for p in setting.lm.module.parameters())
    hooked = [m for m in setting.lm.module.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked


def test_a_comparison_that_was_stopped_goes_on(tuned, monkeypatch):
    whole = compare(tuned, LRS)
    (tuned / "compare.json").unlink()

    def stop(progress):
        if progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(tuned, LRS, on_progress=stop)
    assert len(read_comparison(tuned).ways) == 4
    gone = []
    go = compare_module._gone
    monkeypatch.setattr(
        compare_module, "_gone", lambda means, *rest: gone.append(means.name) or go(means, *rest)
    )
    assert compare(tuned, LRS) == whole
    assert gone == [way.name for way in whole.ways[4:]]
    assert compare(tuned, LRS) == whole
    assert len(gone) == len(whole.ways) - 4


def test_at_other_learning_rates_or_of_another_run_it_begins_anew(tuned):
    compare(tuned, LRS[:1])
    assert {way.lr for way in compare(tuned, LRS[1:]).ways if way.lr} == {LRS[1]}
    document = json.loads((tuned / "compare.json").read_text())
    (tuned / "compare.json").write_text(json.dumps(document | {"sha256": "0" * 64}))
    assert read_comparison(tuned) is None
    (tuned / "compare.json").write_text("{")
    with refused(CheckpointError, "compare.json is damaged .* delete it to compare again"):
        compare(tuned, LRS)


def test_lora_has_about_as_many_numbers_and_starts_from_the_model_alone(tuned):
    pytest.importorskip("peft", reason="LoRA takes peft: pip install 'saepipe[lora]'")
    lora = ways_of(compare(tuned, LRS))["lora"]
    a_rank = 2 * (WIDTH + 3 * WIDTH)
    assert lora.n_numbers == a_rank * max(1, round(2 * D_SAE / a_rank))
    (tuned / "compare.json").unlink()
    still = ways_of(compare(tuned, (1e-12,)))
    assert still["lora"].ce == pytest.approx(still["base"].ce, abs=1e-7)
    assert still["mlp"].ce == pytest.approx(still["base"].ce, abs=1e-7)


def test_without_peft_lora_is_left_out_and_that_is_said(tuned, monkeypatch):
    monkeypatch.setattr(compare_module, "find_spec", lambda name: None)
    comparison = compare(tuned, LRS)
    assert "lora" not in ways_of(comparison)
    assert comparison.notes[0] == "LoRA is left out: it takes peft: pip install 'saepipe[lora]'"
    assert comparison.notes[1].startswith("some did best at the lowest or highest learning rate")
    alone = replace(comparison, lrs=(*comparison.lrs, 1e-9, 1e9))
    assert alone.notes == comparison.notes[:1]
    begun = replace(alone, ways=alone.ways[:3])
    assert begun.notes == ("not all ways were gone yet: the same command goes on",)


@pytest.mark.parametrize("arch", ["relu", "topk", "batchtopk"])
def test_random_features_are_as_often_active(config, tmp_path, tiny_model, arch):
    kinds = {"topk": TopKConfig(k=3), "batchtopk": BatchTopKConfig(k=3)}
    sae = make_sae(**({"arch": kinds[arch]} if arch in kinds else {}))
    if arch == "batchtopk":
        sae.activation.threshold.data.fill_(0.5)
    run = save_sae(
        tmp_path / "sae", sae.requires_grad_(False), model=tiny_model, arch=kinds.get(arch)
    )
    opened = SAERun.open(run)
    setting = open_setting(config(run=run, steps_per_epoch=30), [opened])
    x = compare_module._sample(setting)
    drawn = random_features(setting, opened)
    ours, theirs = ((one.encode(x) != 0).float().mean(0) for one in (drawn, sae))
    if arch == "topk":
        assert ours.sum() == theirs.sum() == 3
    else:
        assert (ours - theirs).abs().max() <= 2 / len(x)
    assert torch.allclose(drawn.W_dec.norm(dim=1), sae.W_dec.norm(dim=1), rtol=1e-5)
    cosine = torch.nn.functional.cosine_similarity(drawn.W_dec, sae.W_dec, dim=1)
    assert cosine.abs().mean() < 0.5
    other = replace(setting, config=replace(setting.config, seed=1))
    assert not torch.equal(random_features(other, opened).W_dec, drawn.W_dec)


def test_a_comparison_may_be_asked_for_once_the_run_is_there(config):
    out = finetune(config()).out
    assert finetune(config(compare=True, compare_lrs=LRS)).reused
    assert read_comparison(out) is None
