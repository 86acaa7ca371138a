"""What is learned, of which tokens, and where it is drawn back to."""

import hashlib
import json
import shutil
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.config.stages import EvalConfig
from pipeline.errors import ConfigError, ModelError, TextError
from pipeline.evaluate.evaluate import evaluate
from pipeline.finetune import learn
from pipeline.finetune.learn import Learner
from pipeline.finetune.measure import exact_match, mean_cross_entropy
from pipeline.finetune.run import FinetunedRun
from pipeline.finetune.task import Rows, load_task
from pipeline.lm.chat import load_chat_template
from pipeline.lm.hooks import in_float, splice
from pipeline.lm.sites import Site
from pipeline.sae.sae import TunedSAE
from tests.helpers.refusals import refused
from tests.helpers.tiny import CTX_LEN, EOS, make_sae
from tests.helpers.tunings import finetune

SITE = Site.parse("mlp_out.1")


@pytest.fixture(scope="package")
def asked(tmp_path_factory):
    """A file of questions whose answers follow a rule."""
    path = tmp_path_factory.mktemp("asked") / "asked.jsonl"
    letters = "abcdefgh"
    records = [
        {"prompt": a + b, "completion": b + c}
        for a in letters for b in letters for c in letters[: 1 + letters.index(a) % 3]
    ]  # fmt: skip
    records.append({"prompt": "a" * 2 * CTX_LEN, "completion": "b"})
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def tuned_by(config):
    return FinetunedRun.open(finetune(config).out).sae


@pytest.mark.parametrize(("train", "moves", "stays"), [("scale", "c", "d"), ("bias", "d", "c")])
def test_only_what_is_asked_for_is_learned(config, train, moves, stays):
    tuned, before = tuned_by(config(train=train)), TunedSAE(make_sae())
    assert torch.equal(getattr(tuned, stays), getattr(before, stays))
    changed = getattr(tuned, moves) != getattr(before, moves)
    assert torch.equal(changed, tuned.learned)
    assert tuned.learned.any()


def stepped(*, towards_start, change_l1=0.0, decay=0.3, n=7):
    """Where numbers come to by some steps, and the gradients of these."""
    start = torch.tensor([1.0, 1.0, -2.0, 1.0])
    x = torch.nn.Parameter(start.clone())
    learner = Learner(
        {"x": x}, lr=0.1, weight_decay=decay, towards_start=towards_start, change_l1=change_l1
    )
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(4, generator=generator) for _ in range(n)]
    for grad in grads:
        grad[3] = 0
        x.grad = grad.clone()
        learner.step()
    return start, x.detach(), grads, learner


def by_formula(start, grads, *, goal, lr=0.1, decay=0.3, change_l1=0.0):
    """AdamW in float64 (Loshchilov and Hutter 2019, algorithm 2), its decay to a goal."""
    x, m, v = start.double(), torch.zeros(4).double(), torch.zeros(4).double()
    for t, grad in enumerate(grads, start=1):
        g = grad.double()
        x = x - lr * decay * (x - goal)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        scale = (v / (1 - 0.999**t)).sqrt() + 1e-8
        x = x - lr * (m / (1 - 0.9**t)) / scale
        change = x - start
        x = start + change.sign() * (change.abs() - lr * change_l1 / scale).clamp_min(0)
    return x.float()


@pytest.mark.parametrize("towards_start", [True, False])
@pytest.mark.parametrize("change_l1", [0.0, 0.4])
def test_steps_are_those_of_adamw_with_decay_to_the_start_or_to_zero(towards_start, change_l1):
    start, x, grads, learner = stepped(towards_start=towards_start, change_l1=change_l1)
    goal = start.double() if towards_start else torch.zeros(4).double()
    torch.testing.assert_close(x, by_formula(start, grads, goal=goal, change_l1=change_l1))
    assert learner.reached(learner.numbers.values()).tolist() == [True, True, True, False]
    if towards_start:
        assert x[3] == start[3]


def test_decay_to_zero_is_that_of_torch():
    start, x, grads, _ = stepped(towards_start=False)
    theirs = torch.nn.Parameter(start.clone())
    optimizer = torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3)
    for grad in grads:
        theirs.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(x, theirs.detach())


def test_a_price_of_change_leaves_most_as_it_was(config, tmp_path):
    free, dear = finetune(config()), finetune(config(out=tmp_path / "dear", change_l1=0.02))
    assert free.n_changed == free.n_learned
    assert 0 < (dear.n_changed or 0) < (free.n_changed or 0) / 2
    assert dear.ce_finetuned < dear.ce_spliced


def test_with_the_error_kept_the_start_is_the_untouched_model(config):
    report = finetune(config(keep_error=True, lr=0.02))
    assert report.ce_spliced == report.ce_base
    assert report.exact_spliced == report.exact_base
    assert report.ce_finetuned < report.ce_base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scale_of_one_and_a_bias_of_zero_change_no_bit(dtype):
    sae, x = make_sae(), torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    tuned = TunedSAE(sae)
    assert torch.equal(tuned(x), sae(x))
    x = x.to(dtype)
    assert torch.equal(in_float(tuned.with_error)(x), x)


def test_only_answers_count_where_only_they_are_to_be_learned(config, asked, lm, tokenizer):
    made = config(text=asked, loss_on="completion", heldout_questions=20, heldout_contexts=9)
    task = load_task(made, tokenizer)
    assert (len(task.train), len(task.heldout), len(task.asked)) == (20, 9, 20)
    rows, coder = task.heldout, make_sae()
    assert rows.counted.sum(1).tolist() == [2] * 9
    labels = torch.full(rows.tokens.shape, -100)
    labels[:, 1:][rows.counted] = rows.tokens[:, 1:][rows.counted].long()
    lm.body.layers[1].mlp.register_forward_hook(handle := (lambda m, a, out: coder(out)))
    assert handle
    try:
        with torch.no_grad():
            theirs = lm.module(rows.tokens.long(), labels=labels).loss.item()
    finally:
        lm.body.layers[1].mlp._forward_hooks.clear()
    ours = mean_cross_entropy(lm, rows, {SITE: in_float(coder)}, batch_size=4)
    assert ours == pytest.approx(theirs, rel=1e-5)
    report = finetune(made)
    first = task.train.part(learn._batch(0, len(task.train), 4, 5, seed=0))
    start = mean_cross_entropy(lm, first, {SITE: in_float(coder)}, batch_size=4)
    assert FinetunedRun.open(report.out).losses()[0] == pytest.approx(start, rel=1e-5)
    assert report.ce_spliced == ours
    assert report.ce_finetuned < report.ce_spliced
    assert report.n_heldout_tokens == 9 * 4
    assert report.n_questions == 20


def test_a_gradient_is_of_the_answers_alone(lm, asked, config, tokenizer):
    rows = load_task(config(text=asked, loss_on="completion"), tokenizer).train.part(slice(0, 5))
    labels = torch.full(rows.tokens.shape, -100)
    labels[:, 1:][rows.counted] = rows.tokens[:, 1:][rows.counted].long()
    ours, theirs = TunedSAE(make_sae()), TunedSAE(make_sae())
    with splice(lm, {SITE: in_float(ours)}):
        learn.backward_cross_entropy(lm, lm.hidden(rows.tokens), rows.tokens, rows.counted)
    with splice(lm, {SITE: in_float(theirs)}):
        lm.module(rows.tokens.long(), labels=labels).loss.backward()
    torch.testing.assert_close(ours.c.grad, theirs.c.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.d.grad, theirs.d.grad, rtol=1e-4, atol=1e-6)


def test_exact_answers_are_those_that_greedy_decoding_gives(config, asked, lm, tokenizer):
    rows = load_task(config(text=asked, loss_on="completion"), tokenizer).asked
    coder, tokens, ends = make_sae(), rows.tokens.clone(), rows.counted.int().argmax(1) + 1
    with lm.spliced({"mlp_out.1": coder}):
        for row, (ids, end) in enumerate(zip(tokens, ends.tolist(), strict=True)):
            made = lm.generate(ids[:end].long()[None], max_new_tokens=2)[0]
            ids[end : end + 2] = made[end : end + 2]
            if row % 3 < 2:  # the first or the second is another
                ids[end + row % 3] += 1
    told = Rows(tokens=tokens, counted=rows.counted)
    share = exact_match(lm, told, {SITE: in_float(coder)}, batch_size=7)
    assert share == len(range(2, len(rows), 3)) / len(rows)


def test_questions_behind_what_is_learned_from_are_asked_of_running_text_too(config, asked):
    report = finetune(config(text=asked, ctx_len=CTX_LEN, steps_per_epoch=2))
    assert report.n_questions
    assert report.exact_base is not None


def test_text_without_questions_is_asked_none(config, text):
    assert finetune(config()).n_questions is None
    with refused(TextError, "holds no questions with answers, it is plain text"):
        finetune(config(loss_on="completion", out=config().out.with_name("other")))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_questions_to_learn_and_measure_are_refused(config, tmp_path, n):
    path = tmp_path / "few.jsonl"
    records = [{"prompt": "a", "completion": "b"}] * n + [{"prompt": " ", "completion": "b"}]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    with refused(TextError, f"holds {n} questions with answers .*: at least two are needed"):
        finetune(config(text=str(path), loss_on="completion", general_text=None))


@pytest.fixture
def talking(tmp_path, tiny_model):
    """A model that was made to chat."""
    folder = shutil.copytree(tiny_model, tmp_path / "talking")
    template = (
        "{% for m in messages %}{{ m['content'] }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}{% endif %}"
    )
    told = {"eos_token": EOS, "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return str(folder)


@pytest.fixture
def talks(tmp_path):
    """A file of conversations; the second answer of every third is cut at the context's end."""
    records = [
        {"talk": [
            {"role": "user", "content": "abc"}, {"role": "assistant", "content": "de"},
            {"role": "user", "content": "f" * (i % 3)}, {"role": "assistant", "content": "gh"},
        ]}
        for i in range(30)
    ]  # fmt: skip
    late = {"role": "user", "content": "a" * CTX_LEN}, {"role": "assistant", "content": "b"}
    records.insert(0, {"talk": late})
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_of_conversations_the_assistants_tokens_count(config, talks, talking, tokenizer):
    made = config(
        text=talks, text_column="talk", model=talking, loss_on="completion", general_text=None
    )
    chat = partial(load_chat_template, talking)
    task = load_task(made, tokenizer, chat=chat)
    rows = task.train
    said = [tokenizer.decode(t[1:][c].tolist()) for t, c in zip(rows.tokens, rows.counted)]  # noqa: B905
    turns = f"de{EOS}gh{EOS}"
    assert set(said) == {turns, turns.removesuffix(EOS)}
    assert said[0] == turns
    assert said[2] == turns.removesuffix(EOS)  # at which the context ends
    assert task.notes[-1].startswith("1 questions were left out")
    report = finetune(made)
    assert report.ce_finetuned < report.ce_spliced
    assert report.n_questions == len(task.asked)


def test_conversations_need_a_model_that_was_made_to_chat(config, talks):
    with refused(ModelError, "has no chat template, and the text holds conversations: take a mode"):
        finetune(config(text=talks, text_column="talk", loss_on="completion"))


def test_patience_needs_two_rows_to_measure_on(config):
    with refused(TextError, "leaves a single row to measure on, and another is needed to choose"):
        finetune(config(heldout_contexts=1, patience=1))


def test_questions_that_do_not_fit_are_left_out_and_counted(config, asked):
    notes = finetune(config(text=asked, loss_on="completion", steps_per_epoch=100)).notes
    assert notes[-1] == f"1 questions were left out: with the answer, longer than {CTX_LEN} tokens"


def patient(config, **options):
    return config(
        **(
            {
                "batch_size": 2,
                "steps_per_epoch": 1,
                "lr": 1.0,
                "epochs": 20,
                "patience": 2,
                "heldout_contexts": 10,
            }
            | options
        )
    )


def test_who_has_no_patience_stops_and_takes_the_best_epoch(config, tokenizer):
    report = finetune(patient(config))
    by_epoch, best = report.ce_by_epoch, report.best_epoch or 0
    assert len(by_epoch) == best + 2 < 20
    assert min(by_epoch) == by_epoch[best - 1]
    task = load_task(patient(config), tokenizer)
    assert (len(task.choosing), len(task.heldout)) == (5, 5)
    assert not torch.isin(task.heldout.tokens, task.choosing.tokens).all()


def test_the_best_epochs_numbers_are_those_after_it(config, tmp_path):
    best = finetune(patient(config)).best_epoch
    alone = finetune(patient(config, epochs=best, out=tmp_path / "alone"))
    one, other = (load_file(tmp_path / x / "tuned.safetensors") for x in ("tuned", "alone"))
    assert alone.best_epoch == best
    assert torch.equal(one["c"], other["c"])
    assert torch.equal(one["d"], other["d"])


@pytest.mark.parametrize("at", [1, 2, 4])
def test_patience_is_as_long_after_a_stop(config, tmp_path, at):
    def press(progress):
        if progress.done == at and progress.stage == "finetune":
            raise KeyboardInterrupt

    whole = finetune(patient(config))
    again = patient(config, out=tmp_path / "again")
    with pytest.raises(KeyboardInterrupt):
        finetune(again, on_progress=press)
    report = finetune(again)
    assert (report.ce_by_epoch, report.best_epoch) == (whole.ce_by_epoch, whole.best_epoch)
    one, other = (load_file(tmp_path / x / "tuned.safetensors") for x in ("tuned", "again"))
    assert torch.equal(one["c"], other["c"])


def test_the_fidelity_is_what_an_evaluation_finds(config, text, run):
    report = finetune(config(steps_per_epoch=1, epochs=1, batch_size=1, heldout_contexts=39))
    theirs = evaluate(EvalConfig(runs=(run,), text=text, tokens=480, device="cpu"))[0]
    whole = finetune(
        config(steps_per_epoch=1, epochs=1, out=config().out.with_name("b"), general_text=text)
    )
    assert theirs.explained_variance == pytest.approx(report.explained_variance, rel=0.05)
    assert theirs.l0 == pytest.approx(report.l0, rel=0.05)
    assert whole.n_general_tokens == 6 * CTX_LEN


def test_a_general_text_that_cannot_be_had_is_said_or_refused(config):
    report = finetune(config(general_text=None))
    assert report.ce_general_base is None and report.general_text == ""
    assert report.notes[-1].startswith("what was forgotten is not measured, for no other text")
    with refused(TextError, "there is no text 'nowhere'"):
        finetune(config(general_text="nowhere", out=config().out.with_name("b")))


def test_what_earlier_versions_made_decayed_to_zero_and_says_not_what_was_learned(done, tmp_path):
    old = shutil.copytree(done.path, tmp_path / "old")
    document = json.loads((old / "run.json").read_text())
    for name in ("decay_to", "train", "loss_on", "keep_error", "change_l1", "patience"):
        del document["config"][name]
    for name in ("explained_variance", "l0", "n_learned", "exact_base", "general_text"):
        del document["report"][name]
    tensors = load_file(old / "tuned.safetensors")
    learned = tensors.pop("learned")
    save_file(tensors, old / "tuned.safetensors")
    document["sha256"] = hashlib.sha256((old / "tuned.safetensors").read_bytes()).hexdigest()
    (old / "run.json").write_text(json.dumps(document))
    there = FinetunedRun.open(old)
    assert there.config == replace(done.config, out=old, decay_to="zero")
    assert torch.equal(there.sae.learned, learned)


@pytest.mark.parametrize(
    ("setting", "value", "told"),
    [
        ("patience", 0, "patience must be positive"),
        ("change_l1", -1.0, "change_l1 must not be negative"),
        ("weight_decay", 30.0, "weight_decay must be below 1 / lr, which is 20, got 30"),
    ],
)
def test_impossible_settings_are_refused(config, setting, value, told):
    with refused(ConfigError, told):
        config(**{setting: value})


def test_rows_are_as_long_as_the_longest_of_them():
    counted = torch.tensor([[0, 1, 0, 0], [0, 0, 0, 1], [1, 1, 0, 0]]).bool()
    rows = Rows(tokens=torch.arange(15).view(3, 5).int(), counted=counted)
    assert rows.present.sum(1).tolist() == [3, 5, 3]
    short = rows.part(torch.tensor([2, 0]))
    assert short.tokens.tolist() == [[10, 11, 12], [0, 1, 2]]
    assert short.counted.tolist() == [[True, True], [False, True]]
    assert [len(some) for some in rows.split(2)] == [2, 1]
    assert len(rows.part(slice(0, 0))) == 0
