import json
import os
import re
import shutil
import signal
from dataclasses import replace
from unittest.mock import Mock

import pytest
import saepipe as sp
import torch
import transformers
from safetensors.torch import load_file

from actstore.files import make_folder
from pipeline.config.stages import EvalConfig
from pipeline.errors import CheckpointError, ConfigError, DataError, TextError
from pipeline.evaluate.evaluate import evaluate
from pipeline.finetune import finetune as finetune_module, learn
from pipeline.finetune.meaning import Meaning
from pipeline.finetune.measure import mean_cross_entropy
from pipeline.finetune.plan import FinetunePlan, make_plan
from pipeline.finetune.run import FinetunedRun
from pipeline.finetune.setting import open_setting
from pipeline.finetune.task import Rows
from pipeline.lm import cross_entropy
from pipeline.lm.hooks import in_float, splice
from pipeline.lm.hub import ModelFiles
from pipeline.lm.sites import Site
from pipeline.plots.finetune import save_finetune_figures
from pipeline.report.figures import curves_lost, curves_of
from pipeline.runs.checkpoints import checkpoints_of
from pipeline.runs.folder import training_in
from pipeline.runs.listing import list_runs
from pipeline.runs.sae_run import SAERun
from pipeline.sae.sae import TunedSAE
from pipeline.text.heldout import load_contexts, split_contexts
from tests.helpers.refusals import refused
from tests.helpers.tiny import CTX_LEN, WIDTH, make_model, make_sae, make_text, save_sae
from tests.helpers.tunings import finetune

CPU, FP32, SITE = torch.device("cpu"), torch.float32, Site.parse("mlp_out.1")


def test_learning_lowers_the_loss_on_text_it_never_saw(config):
    seen = []
    report = finetune(config(lr=0.2), on_progress=seen.append)
    assert report.ce_finetuned < report.ce_spliced - 0.1
    assert report.loss_last < report.loss_first
    first, *steps = (told for told in seen if told.stage != "meaning")
    assert re.fullmatch(r"explained variance -?\d+\.\d{3}, L0 \d+\.\d at mlp_out\.1", first.words)
    assert [(p.stage, p.done, p.total) for p in steps] == [
        ("finetune", step, 15) for step in range(1, 16)
    ]
    assert report.n_steps == 15
    assert report.notes == ()
    losses = FinetunedRun.open(report.out).losses()
    epochs = ["", *(f", held out {ce:.4f}" for ce in report.ce_by_epoch)]
    assert [p.words for p in steps] == [
        f"loss {loss:.4f}{epochs[i // 5]}" for i, loss in enumerate(losses)
    ]
    assert report.ce_by_epoch[-1] == report.ce_finetuned
    assert (report.loss_first, report.loss_last) == (losses[0], losses[-1])


def test_only_scales_and_biases_get_gradients_and_all_else_keeps_its_bits(config, monkeypatch):
    nothing = Meaning(scaled_up=(), inhibited=(), raised=(), lowered=())
    find_meaning = Mock(return_value=nothing)
    monkeypatch.setattr(finetune_module, "find_meaning", find_meaning)
    finetune(config())
    lm, _, tuned, *_ = find_meaning.call_args.args
    frozen = dict(tuned.sae.named_parameters()) | dict(lm.module.named_parameters())
    assert len(frozen) > 40
    for name, p in frozen.items():
        assert not p.requires_grad and p.grad is None, name
    original = transformers.GPTNeoXForCausalLM.from_pretrained(lm.name).state_dict()
    for name, value in lm.module.state_dict().items():
        assert torch.equal(value, original[name]), name
    for name, value in make_sae().state_dict().items():
        assert torch.equal(tuned.sae.state_dict()[name], value), name
    assert tuned.c.grad is not None and tuned.c.grad.any()
    assert tuned.d.grad is not None and tuned.d.grad.any()
    assert not torch.equal(tuned.c, torch.ones_like(tuned.c))


def test_nothing_is_kept_for_a_gradient_below_the_site(lm, contexts):
    """Below the site no weight and no input asks for one, so autograd records nothing there."""
    seen: dict[int, bool] = {}
    hooks = [
        layer.register_forward_hook(
            lambda module, args, out, k=k: seen.update(
                {k: (out[0] if isinstance(out, tuple) else out).requires_grad}
            )
        )
        for k, layer in enumerate(lm.body.layers)
    ]
    with splice(lm, {SITE: in_float(TunedSAE(make_sae()))}):
        lm.hidden(contexts[:2])
    for hook in hooks:
        hook.remove()
    assert seen == {0: False, 1: True, 2: True}


def test_what_is_going_to_be_done_is_told_before_the_first_step(config):
    told = []
    run = finetune(config(lr=0.2), on_plan=told.append, on_progress=told.append)
    plan, *after = told[[isinstance(one, FinetunePlan) for one in told].index(True) :]
    assert after[0].stage == "finetune"
    assert not any(isinstance(one, FinetunePlan) for one in after)
    assert plan.n_steps == run.n_steps == 15
    meaning = next(one.total for one in after if one.stage == "meaning")
    assert meaning <= plan.n_passes
    everything = FinetunedRun.open(run.out).sae.d_sae
    if run.n_changed == everything:
        assert meaning == plan.n_passes
    assert plan.seconds > 0
    again = []
    finetune(config(lr=0.2), on_plan=again.append)
    assert not again  # it was there


def test_a_plan_counts_in_passes_of_the_model_as_it_was_measured(config, run):
    setting = open_setting(config(), [SAERun.open(run)])
    one = make_plan(setting, config(), [8], seconds=1.0)
    two = make_plan(setting, config(), [8, 8], seconds=2.0)
    size, task = config().batch_size, setting.task
    measured = -(-len(task.heldout) // size)
    if setting.general is not None:
        measured += -(-len(setting.general) // size)
    passes = 3 * one.n_steps + config().epochs * -(-len(task.choosing) // size) + measured
    assert one.seconds == pytest.approx((passes + one.n_passes) / measured)
    assert two.n_passes == 2 * one.n_passes
    assert two.seconds == pytest.approx(2 * (passes + two.n_passes) / measured)


def test_the_losses_before_are_those_of_the_plain_and_of_the_spliced_model(config, contexts, lm):
    report = finetune(config(epochs=1, steps_per_epoch=1))
    plain = transformers.GPTNeoXForCausalLM.from_pretrained(lm.name).eval()
    coder = make_sae()
    heldout = contexts[4:10].long()  # the tail of the one batch and the six contexts asked for

    def loss():
        with torch.no_grad():
            return plain(heldout, labels=heldout).loss.item()

    assert report.ce_base == pytest.approx(loss(), rel=1e-5)
    plain.gpt_neox.layers[1].mlp.register_forward_hook(lambda m, a, out: coder(out))
    assert report.ce_spliced == pytest.approx(loss(), rel=1e-5)


def test_the_gradient_is_that_of_the_whole_model_at_once(lm, contexts, monkeypatch):
    monkeypatch.setattr(cross_entropy, "CPU_ROWS", 7)
    sliced, whole = TunedSAE(make_sae()), TunedSAE(make_sae())
    tokens = contexts[:3].long()
    with splice(lm, {SITE: in_float(sliced)}):
        cross_entropy.backward_cross_entropy(lm, lm.hidden(tokens), tokens)
    with splice(lm, {SITE: in_float(whole)}):
        lm.module(tokens, labels=tokens).loss.backward()
    for found, plain in ((sliced.c, whole.c), (sliced.d, whole.d)):
        torch.testing.assert_close(found.grad, plain.grad, rtol=1e-4, atol=1e-6)


def test_every_context_is_trained_on_once_per_epoch_in_an_order_by_seed():
    def orders(seed: int) -> list[list[int]]:
        chosen = [learn._batch(step, 11, 4, 3, seed=seed) for step in range(6)]
        assert [len(batch) for batch in chosen] == [4, 4, 3] * 2
        return [torch.cat(chosen[:3]).tolist(), torch.cat(chosen[3:]).tolist()]

    first, second = orders(0)
    assert sorted(first) == sorted(second) == list(range(11))
    assert first != second
    assert orders(0) == [first, second]
    assert orders(1) != [first, second]


def test_the_same_seed_gives_the_same_bits(config, done, tmp_path):
    finetune(config())
    finetune(config(out=tmp_path / "other", seed=1))
    folders = done.path, tmp_path / "tuned", tmp_path / "other"
    same, again, other = (load_file(folder / "tuned.safetensors") for folder in folders)
    assert torch.equal(same["c"], again["c"]) and torch.equal(same["d"], again["d"])
    assert not torch.equal(same["c"], other["c"])


def test_the_folder_holds_all_that_was_promised(done, run):
    out = done.path
    assert sorted(path.name for path in out.iterdir()) == [
        "features.json", "metrics.jsonl", "run.json", "sae.safetensors", "tuned.safetensors",
    ]  # fmt: skip
    document = json.loads((out / "run.json").read_text())
    assert document["kind"] == "finetune"
    assert document["coder"]["store"]["fingerprint"] == "f" * 64
    assert document["report"]["ce_finetuned"] == done.report.ce_finetuned
    assert (out / "sae.safetensors").read_bytes() == (run / "sae.safetensors").read_bytes()
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 16))
    assert [path.name for path in out.parent.iterdir()] == ["tuned"]


def test_its_sae_is_opened_in_python_and_the_plain_one_says_where(done):
    tuned = sp.FinetunedRun.open(done.path).sae
    assert torch.equal(tuned.c, load_file(done.path / "tuned.safetensors")["c"])
    with refused(CheckpointError, r"tuned is a fine-tuning: saepipe.FinetunedRun.open\(path\).sae"):
        sp.SAE.from_pretrained(done.path)


def test_figures_are_drawn_from_what_lies_in_the_folder(copied):
    files = save_finetune_figures(str(copied))
    assert [file.name for file in files] == ["loss.png", "scales_biases.png", "effects.png"]
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)
    assert {file.parent for file in files} == {copied}
    (copied / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        save_finetune_figures(copied)


def test_the_same_again_is_reused_and_another_config_is_refused(config, done, copied, monkeypatch):
    monkeypatch.delattr(finetune_module, "open_setting")
    assert finetune(config()) == replace(done.report, out=copied, reused=True)
    with pytest.raises(ConfigError, match=r"another configuration \(lr: 0.05 there, 0.01 now\)"):
        finetune(config(lr=0.01))


def test_a_folder_of_something_else_is_refused_and_kept(config, tmp_path):
    (tmp_path / "tuned").mkdir()
    (tmp_path / "tuned" / "precious.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is not a fine-tuning: choose another --out"):
        finetune(config())
    assert (tmp_path / "tuned" / "precious.txt").read_text() == "mine"


def pressing_ctrl_c(progress):
    if progress.done == 3:
        signal.raise_signal(signal.SIGINT)


def test_an_interrupted_fine_tuning_is_gone_on_with_to_the_same_bits(config, tmp_path, done):
    with pytest.raises(KeyboardInterrupt):
        finetune(config(), on_progress=pressing_ctrl_c)
    assert not (tmp_path / "tuned").exists()
    with refused(ConfigError, r"tuned.partial is an unfinished .* \(lr: 0.05 there, 0.01 now\)"):
        finetune(config(lr=0.01))
    listed = {run.path.name: run for run in list_runs(tmp_path)}["tuned.partial"]
    assert (listed.kind, listed.state, listed.steps) == ("finetune", "unfinished", 3)
    with refused(CheckpointError, r"tuned is unfinished: the command that began it, given again"):
        FinetunedRun.open(tmp_path / "tuned")
    seen = []
    assert not finetune(config(), on_progress=seen.append).reused
    steps = [progress.done for progress in seen if progress.stage != "meaning"]
    assert steps == [1, *range(4, 16)]
    for name in ("tuned.safetensors", "features.json"):
        assert (tmp_path / "tuned" / name).read_bytes() == (done.path / name).read_bytes()
    assert FinetunedRun.open(tmp_path / "tuned").losses() == done.losses()
    listed = {run.path.name: run for run in list_runs(tmp_path)}["tuned"]
    assert listed.loss_added is None  # nothing was evaluated
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]
    assert {p.name for p in (tmp_path / "tuned").iterdir()} == {p.name for p in done.path.iterdir()}


def test_ctrl_c_once_it_has_its_name_loses_nothing(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.finetune.parts.sync_folder", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finetune(config())
    assert finetune(config()).reused
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_of_two_fine_tunings_into_one_folder_the_second_is_told_who_is_there(config, tmp_path):
    with (
        training_in(tmp_path / "tuned.partial"),
        refused(ConfigError, f"trained into by process {os.getpid()}"),
    ):
        finetune(config())


def test_one_that_was_overtaken_before_it_held_the_lock_finds_the_other_done(
    config, tmp_path, monkeypatch
):
    """What was made for the lock is moved to its name by who held it first."""

    def overtaken(path):
        monkeypatch.undo()
        make_folder(path)
        finetune(config())

    monkeypatch.setattr("pipeline.runs.folder.make_folder", overtaken)
    report = finetune(config())
    assert report.reused
    assert report == finetune(config())
    assert [path.name for path in tmp_path.iterdir()] == ["tuned"]


def test_what_never_made_a_step_leaves_nothing(config, tmp_path, monkeypatch):
    (tmp_path / "tuned.partial").mkdir()
    (tmp_path / "tuned.partial" / "half").write_text("")  # as a kill while writing leaves it
    with monkeypatch.context() as patch:
        patch.setattr(finetune_module, "open_setting", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            finetune(config())
    assert not [*tmp_path.iterdir()]


def test_a_loss_that_is_not_finite_leaves_nothing_to_go_on_with(config, tmp_path, monkeypatch):
    losses = iter([1.0, 1.0, float("nan")])
    monkeypatch.setattr(learn, "KEEP_EVERY", 1)
    monkeypatch.setattr(learn, "backward_cross_entropy", lambda *_: torch.tensor(next(losses)))
    with refused(DataError, "is nan: lower --lr"):
        finetune(config())
    assert not [*tmp_path.iterdir()]


def test_a_checkpoint_is_kept_every_so_many_steps(config, tmp_path, monkeypatch):
    monkeypatch.setattr(learn, "KEEP_EVERY", 2)
    steps = []

    def look(progress):
        if progress.stage != "meaning":
            steps.append([*checkpoints_of(tmp_path / "tuned.partial")])

    finetune(config(epochs=1), on_progress=look)
    assert steps == [[], [], [2], [2], [4], [4]]


@pytest.mark.parametrize("name", ["tuned.safetensors", "sae.safetensors", "run.json"])
def test_damage_to_a_finished_fine_tuning_is_one_line(config, copied, name):
    path = copied / name
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        finetune(config())
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="damaged"):
        FinetunedRun.open(copied).load_sae(CPU)


def test_a_coder_trained_again_does_not_pass_for_the_one_fine_tuned(config, tmp_path, lm):
    save_sae(tmp_path / "sae", make_sae(), model=lm.name)
    finetune(config(run=tmp_path / "sae"))
    SAERun.open(tmp_path / "sae").finish(make_sae(seed=9))
    with pytest.raises(ConfigError, match="trained again"):
        finetune(config(run=tmp_path / "sae"))


@pytest.fixture
def own(config, tmp_path):
    """A config whose model and text lie in the test's own folder, to be replaced."""
    model = make_model(tmp_path / "model")
    run = save_sae(
        tmp_path / "sae", make_sae(), model=model,
        model_fingerprint=ModelFiles(str(model)).fingerprint(),
    )  # fmt: skip
    text = make_text(tmp_path / "a.txt", n_contexts=40)
    return config(run=run, text=text, general_text=text)


def replaced(what: str, folder) -> str:
    """The words for the model, or the text, in a test's folder, when it is another."""
    if what == "model":
        return f"the weights of {make_model(folder / 'model', seed=1)}"
    return f"the text {make_text(folder / 'a.txt', n_contexts=40, seed=1)}"


@pytest.mark.parametrize("what", ["model", "text"])
def test_another_model_or_text_under_its_name_is_not_reused(own, tmp_path, what):
    assert finetune(own).notes == ()
    words = replaced(what, tmp_path)
    with refused(ConfigError, f"before {words} changed: choose another --out"):
        finetune(own)


@pytest.mark.parametrize("what", ["model", "text"])
def test_with_another_model_or_text_under_its_name_it_is_not_gone_on(own, tmp_path, what):
    with pytest.raises(KeyboardInterrupt):
        finetune(own, on_progress=pressing_ctrl_c)
    words = replaced(what, tmp_path)
    with refused(ConfigError, rf"\({words} changed since\): delete it, or choose another --out"):
        finetune(own)
    assert checkpoints_of(tmp_path / "tuned.partial")


def test_what_earlier_versions_wrote_says_no_model_and_no_text_and_is_as_before(own, tmp_path):
    def forget(file):
        document = json.loads(file.read_text())
        del document["sources"]
        file.write_text(json.dumps(document))

    with pytest.raises(KeyboardInterrupt):
        finetune(own, on_progress=pressing_ctrl_c)
    forget(tmp_path / "tuned.partial" / "begun.json")
    replaced("text", tmp_path)
    assert not finetune(own).reused
    forget(tmp_path / "tuned" / "run.json")
    replaced("model", tmp_path)
    assert finetune(own).reused


def test_a_model_and_a_text_that_are_gone_keep_nobody_from_what_is_there(own, tmp_path):
    finetune(own)
    shutil.rmtree(tmp_path / "model")
    (tmp_path / "a.txt").unlink()
    assert finetune(own).reused


def test_a_model_replaced_since_the_harvest_is_noted(own, tmp_path):
    replaced("model", tmp_path)
    (note,) = finetune(own).notes
    assert note == f"the weights of {tmp_path / 'model'} have changed since its store was harvested"


def test_a_fine_tuning_of_a_fine_tuning_is_refused(config, done):
    with pytest.raises(CheckpointError, match="finetune run"):
        finetune(config(run=done.path))


def test_transplanting_is_noted_and_refused_where_widths_differ(config, tmp_path, lm):
    moved = finetune(config(site="mlp_out.2", epochs=1))
    assert (moved.site, moved.trained_on_site) == ("mlp_out.2", "mlp_out.1")
    assert "is fine-tuned at mlp_out.2" in moved.notes[0]
    other = make_model(tmp_path / "other", seed=4)
    there = finetune(config(model=str(other), out=tmp_path / "there", epochs=1))
    assert (there.model, there.trained_on_model) == (str(other), lm.name)
    assert f"of {lm.name} and is fine-tuned" in there.notes[0]
    wide = make_model(tmp_path / "wide", width=24)
    with pytest.raises(ConfigError, match=rf"SAE of {WIDTH} dimensions, but mlp_out.1 .* has 24"):
        finetune(config(model=str(wide), out=tmp_path / "wide_out"))
    with pytest.raises(ConfigError, match=r"contexts of 65 tokens do not fit"):
        finetune(config(ctx_len=65, out=tmp_path / "long"))


def test_a_short_text_is_used_up_and_noted(config, tmp_path):
    short = make_text(tmp_path / "short.txt", n_contexts=9)
    report = finetune(config(text=short, steps_per_epoch=100))
    assert report.n_train_tokens == 7 * CTX_LEN
    assert report.n_heldout_tokens == 2 * CTX_LEN
    assert report.n_steps == 3 * 2
    assert report.notes == (
        f"400 contexts were asked for to learn from; {short} gives 7",
        f"6 contexts were asked for to measure on; {short} gives 2",
    )


@pytest.mark.parametrize(("n_letters", "message"), [(5, "fewer than"), (20, "a single context")])
def test_a_text_too_short_to_learn_and_measure_is_refused(config, tmp_path, n_letters, message):
    (tmp_path / "short.txt").write_text("a" * n_letters)
    with pytest.raises(TextError, match=message):
        finetune(config(text=str(tmp_path / "short.txt")))


def test_training_and_held_out_contexts_never_meet(tokenizer, text, contexts):
    split = split_contexts(text, tokenizer, ctx_len=CTX_LEN, n_train=20, n_heldout=6)
    assert torch.equal(torch.cat([split.train, split.heldout]), contexts[:26])
    assert (len(split.train), len(split.heldout)) == (20, 6)
    name, options = "builtin:arithmetic", {"ctx_len": 40, "n_train": 20, "n_heldout": 6}
    arithmetic = split_contexts(name, tokenizer, **options)
    kept = load_contexts(f"{name}@heldout", tokenizer, ctx_len=40, n=6)
    assert torch.equal(arithmetic.heldout, kept)
    assert not torch.equal(arithmetic.train[:6], kept)


def test_a_fine_tuned_run_is_evaluated_with_its_scales_and_biases(done, text, contexts, lm, run):
    plain, tuned = evaluate(EvalConfig(runs=(run, done.path), text=text, tokens=240, device="cpu"))
    edits = {SITE: in_float(done.load_sae(CPU))}
    through = mean_cross_entropy(lm, Rows(tokens=contexts[:20]), edits, batch_size=8)
    assert tuned.ce_patched == pytest.approx(through, rel=1e-6)
    assert tuned.ce_patched < plain.ce_patched
    assert tuned.ce_clean == plain.ce_clean
    assert tuned.l0 != plain.l0
    assert (tuned.arch, tuned.model) == ("relu", done.report.model)
    assert any("fine-tuned on" in note for note in tuned.notes)
    assert (plain.sha256, tuned.sha256) == (SAERun.open(run).sha256, done.sha256)


def test_losses_of_another_are_not_its_own(copied):
    run = FinetunedRun.open(copied)
    assert run.losses() and curves_of(run) and not curves_lost(run)
    metrics = copied / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss": ', '"loss": 1'))
    with refused(CheckpointError, "metrics.jsonl is not that of this run"):
        run.losses()
    assert curves_of(run) is None
    assert curves_lost(run) == "metrics.jsonl is not that of this run."
    assert replace(run, curves_sha256="").losses()


def test_a_checkpoint_of_another_fine_tuning_is_refused(config, tmp_path):
    for name, lr in (("tuned", 0.05), ("other", 0.01)):
        with pytest.raises(KeyboardInterrupt):
            finetune(config(out=tmp_path / name, lr=lr), on_progress=pressing_ctrl_c)
    (kept,) = (tmp_path / "tuned.partial/checkpoints").iterdir()
    shutil.rmtree(kept)
    shutil.copytree(tmp_path / "other.partial/checkpoints" / kept.name, kept)
    with refused(CheckpointError, "state.json is of a run of another configuration"):
        finetune(config())
