"""What steering a run gives: texts, numbers, and what is kept. Numbers are held to plain sums."""

import errno
import json
import math
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import saepipe as sp
import torch

from pipeline import verbs
from pipeline.config.stages import FinetuneConfig
from pipeline.errors import CheckpointError, ConfigError, DataError, ModelError, TextError
from pipeline.features.files import FeatureSet
from pipeline.lm.model import LanguageModel
from pipeline.runs.sae_run import SAERun
from pipeline.steer.report import keep, name_of, steerings_of
from tests.helpers.refusals import may_only_be_read, refused
from tests.helpers.tiny import CTX_LEN, WIDTH, make_model, make_sae, save_sae
from tests.helpers.tunings import finetune

PROMPTS = ["hello", "worlds", "abcde"]


def steer(*runs, **settings):
    usual = {"feature": 3, "prompt": "hello", "tokens": 8, "device": "cpu"}
    if not {"scale", "clamp", "ablate"} & settings.keys():
        settings["scale"] = 6
    return verbs.steer(list(runs) if len(runs) > 1 else runs[0], **usual | settings)


@pytest.fixture(scope="module")
def model(world) -> LanguageModel:
    return LanguageModel.from_pretrained(world.model, device="cpu")


def texts_of(report) -> list[tuple[str, ...]]:
    return [(one.clean.text, *(its.text for its in one.steered)) for one in report.texts]


# --- texts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["all", "prompt", "new"])
def test_it_writes_what_the_model_writes_steered(run, model, where):
    edits = {"mlp_out.1": sp.Steering(SAERun.open(run).sae, add={3: 6.0, 4: 6.0})}
    report = steer(run, feature=[3, 4], where=where, prompt=PROMPTS)
    for prompt, one in zip(PROMPTS, report.texts, strict=True):
        with model.steered(edits, where=where):
            assert prompt + one.steered[0].text == model.generate(prompt, max_new_tokens=8)
        assert prompt + one.clean.text == model.generate(prompt, max_new_tokens=8)
    assert [one.prompt for one in report.texts] == PROMPTS
    assert not any(one.clean.text == one.steered[0].text for one in report.texts)


def test_steering_by_nothing_changes_no_token(run):
    for drawn in ({}, {"samples": 3}, {"temperature": 0.7}):
        report = steer(run, scale="0,6", prompt=PROMPTS, **drawn)
        still, moved = report.effects
        assert (still.changed, still.perplexity) == (0, report.clean.perplexity)
        assert moved.changed > 0
        assert all(one.clean == one.steered[0] for one in report.texts)


def test_clamping_to_zero_is_ablating(run):
    clamped, ablated = steer(run, feature=[3, 4], clamp=0), steer(run, feature=[3, 4], ablate=True)
    assert texts_of(clamped) == texts_of(ablated)
    assert (clamped.edit, ablated.edit) == ("clamp", "ablate")


def test_what_is_drawn_is_that_of_the_seed(run):
    drawn = {"prompt": PROMPTS, "samples": 3, "tokens": 6}
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, same, other = (steer(run, seed=seed, **drawn) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert texts_of(one) == texts_of(same) != texts_of(other)
    assert [(text.prompt, text.sample) for text in one.texts] == [
        (prompt, sample) for prompt in PROMPTS for sample in range(3)
    ]
    for i in range(0, 9, 3):
        assert len({text.clean.text for text in one.texts[i : i + 3]}) == 3
    assert (one.temperature, steer(run).temperature) == (1.0, 0.0)
    assert texts_of(steer(run)) == texts_of(steer(run, seed=1))  # nothing is drawn


def test_the_size_of_a_batch_changes_no_greedy_text_and_repeats_no_sample(run):
    given = {"prompt": ["ab", "cd", "abc", "ef"], "tokens": 5}
    assert texts_of(steer(run, batch_size=1, **given)) == texts_of(steer(run, **given))
    drawn = steer(run, batch_size=2, samples=6, tokens=8).texts
    assert len({one.clean.text for one in drawn}) == 6


def test_a_cool_draw_is_the_likeliest(run):
    assert texts_of(steer(run, temperature=1e-4)) == texts_of(steer(run))


def test_a_text_ends_where_the_model_ends_it(run, model, monkeypatch):
    clean = model.generate(model.to_tokens("hello"), max_new_tokens=8)[0, 5:].tolist()
    end = clean[2]
    cut = clean.index(end) + 1
    monkeypatch.setattr(LanguageModel, "end_ids", (end,))
    real = LanguageModel.generate
    monkeypatch.setattr(LanguageModel, "generate", lambda *a, **k: real(*a, **k, eos_token_id=end))
    report = steer(run, scale="0,6", prompt=["hello", "abcde"])
    assert report.texts[0].clean.n_tokens == report.texts[0].steered[0].n_tokens == cut
    assert report.effects[0].changed == 0


# --- numbers ---------------------------------------------------------------------------------


@torch.no_grad()
def by_hand(model, run, prompt: str, text: str, latents) -> tuple[float, np.ndarray]:
    """Nats a new token and mean activations, by one pass and a loop."""
    sae, ids = SAERun.open(run).sae, model.to_tokens(prompt + text)
    logits, acts = model.run_with_acts(ids, sites="mlp_out.1")
    n, logs = model.to_tokens(prompt).shape[1], logits[0].double().log_softmax(-1)
    z = sae.encode(acts["mlp_out.1"])[0].double()
    new = range(n, ids.shape[1])
    nll = -np.mean([logs[t - 1, ids[0, t]].item() for t in new])
    return nll, np.mean([z[t, latents].numpy() for t in new], axis=0)


def test_numbers_are_of_the_model_alone_over_the_new_tokens(run, model):
    report = steer(run, feature=[3, 9], scale="4,-4", prompt=PROMPTS[:2])
    sums = {0: [], 1: [], 2: []}
    for one in report.texts:
        for i, its in enumerate((one.clean, *one.steered)):
            if not its.text.isascii():  # bytes that are no text are not the tokens they were
                continue
            nll, active = by_hand(model, run, one.prompt, its.text, [3, 9])
            np.testing.assert_allclose(its.perplexity, math.exp(nll), rtol=1e-4)
            np.testing.assert_allclose(its.activations, active, rtol=1e-4, atol=1e-6)
            sums[i].append(nll)
    assert sum(map(len, sums.values())) >= 2
    for i, effect in enumerate((report.clean, *report.effects)):
        its = [(one.clean, *one.steered)[i] for one in report.texts]
        logs = [math.log(one.perplexity) for one in its]
        np.testing.assert_allclose(math.log(effect.perplexity), np.mean(logs), rtol=1e-6)
        np.testing.assert_allclose(
            effect.activations, np.mean([one.activations for one in its], axis=0), rtol=1e-6
        )
        np.testing.assert_allclose(effect.changed, np.mean([one.changed for one in its]))


def test_units_are_what_is_known_of_each_feature(run):
    found = FeatureSet.open(run)
    i, j = np.flatnonzero(found.n_active)[:2].tolist()
    report = steer(run, feature=[i, j], scale=["2x", "-1.5max,3"])
    assert [one.strength for one in report.effects] == ["2x", "-1.5max", "3"]
    means, most = found.mean[[i, j]], found.max[[i, j]]
    for effect, amounts in zip(report.effects, (2 * means, -1.5 * most, [3, 3]), strict=True):
        np.testing.assert_allclose(effect.amounts, amounts)


def test_runs_are_steered_together_each_with_its_features(copied, model):
    run, later = copied("run"), copied("later")
    report = steer(run, later, feature=[[3, 4], [7]], clamp=2)
    edits = {
        "mlp_out.1": sp.Steering(SAERun.open(run).sae, clamp={3: 2.0, 4: 2.0}),
        "resid_post.2": sp.Steering(SAERun.open(later).sae, clamp={7: 2.0}),
    }
    with model.steered(edits):
        assert "hello" + report.texts[0].steered[0].text == model.generate(
            "hello", max_new_tokens=8
        )
    assert report.path == run / "steer" / "3-4+7-clamp.json"
    assert not (later / "steer").exists()
    told = [(its.run.name, its.site, its.feature) for its in report.features]
    assert told == [("run", "mlp_out.1", 3), ("run", "mlp_out.1", 4), ("later", "resid_post.2", 7)]
    assert report.names[2] == "feature 7 at resid_post.2"


def test_a_finetuned_run_is_steered_with_its_scales_and_biases(run, world, tmp_path, model):
    text = tmp_path / "a.txt"
    text.write_text("the cat sat on the mat. " * 60)
    config = FinetuneConfig(
        run=run, out=tmp_path / "tuned", text=str(text), batch_size=4, epochs=3,
        steps_per_epoch=4, ctx_len=CTX_LEN, heldout_contexts=4, lr=0.5, device="cpu",
    )  # fmt: skip
    finetune(config)
    tuned = sp.FinetunedRun.open(config.out).sae
    i = int(tuned.learned.nonzero()[0])
    report = steer(config.out, feature=i, ablate=True)
    with model.steered({"mlp_out.1": sp.Steering(tuned, ablate=[i])}):
        assert "hello" + report.texts[0].steered[0].text == model.generate(
            "hello", max_new_tokens=8
        )
    assert report.path.is_relative_to(config.out)
    assert any("fine-tuned on" in note for note in report.notes)
    assert steerings_of(config.out) == (report,)


@pytest.mark.parametrize("precision", ["bf16"])
def test_a_model_in_half_precision_writes(run, precision):
    report = steer(run, scale="0,6", precision=precision)
    assert report.precision == precision and report.effects[0].changed == 0


def test_progress_counts_every_token_once(run):
    seen = []
    steer(run, scale="1,2", prompt=["ab", "abc"], on_progress=seen.append)
    assert [one.done for one in seen] == [8, 16, 24, 32, 40, 48]
    assert {(one.stage, one.total, one.unit) for one in seen} == {("steer", 48, "tokens")}


# --- what is kept ----------------------------------------------------------------------------


def test_the_last_of_the_same_features_and_edit_is_kept(run):
    first, other = steer(run, scale="1,2"), steer(run, clamp=1)
    assert {path.name for path in first.path.parent.iterdir()} == {
        "3.json", "3.png", "3.svg", "3-clamp.json",
    }  # fmt: skip
    assert steerings_of(run) == (first, other)
    last = steer(run, scale=7)
    assert steerings_of(run) == (last, other)
    assert not last.path.with_suffix(".png").exists()  # it was of the one that is gone


def test_what_is_kept_moves_with_its_run_and_holds_no_absolute_path(run, tmp_path):
    report = steer(run)
    assert str(tmp_path) not in report.path.read_text()
    moved = shutil.move(run, tmp_path / "there")
    (there,) = steerings_of(moved)
    assert there.texts == report.texts and there.path == moved / "steer" / "3.json"
    assert there.config.runs == (moved,)


def test_what_is_of_other_weights_is_not_shown(run):
    steer(run)
    told = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(told | {"sha256": "0" * 64}))
    assert steerings_of(run) == ()


def test_a_long_list_of_features_has_a_short_name(run):
    report = steer(run, feature=[*range(60)], ablate=True)
    assert len(report.path.name) < 120 and steerings_of(run) == (report,)
    assert name_of(report.config) != name_of(replace(report.config, feature=((*range(59), 63),)))


def test_damage_is_one_line(run):
    file = steer(run).path
    for content in (b"{", b"[]", b'{"format": 9}', file.read_bytes()[:-40]):
        file.write_bytes(content)
        with refused(CheckpointError, "3.json is not a report"):
            steerings_of(run)


def test_a_folder_that_may_only_be_read_is_told_before_any_work(run, monkeypatch):
    may_only_be_read(run, monkeypatch)
    monkeypatch.setattr("pipeline.steer.steer.load_model", None)
    with refused(ConfigError, "where its steered texts would be kept: type cp -r"):
        steer(run)


def test_a_full_disk_is_one_line_and_leaves_what_was_there(run, monkeypatch):
    before = steer(run)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("actstore.files.write_all", full)
    with refused(CheckpointError, "make room there"):
        steer(run, scale=2)
    assert steerings_of(run) == (before,)
    assert [path.name for path in before.path.parent.iterdir()] == ["3.json"]


def test_a_report_is_frozen_and_shows_itself(run):
    report = steer(run, scale="2,4")
    with pytest.raises(AttributeError):
        report.notes = ()
    assert "SteerReport(feature 3 raised: clean perplexity" in repr(report)
    assert "<table>" in report._repr_html_()
    frame = report.to_frame()
    assert [*frame] == ["strength", "perplexity", "feature 3", "changed"]
    assert [*frame["strength"]] == ["clean", "+2", "+4"]
    hostile = replace(report, texts=(replace(report.texts[0], prompt="<script>"),))
    assert "<script>" not in hostile._repr_html_()
    assert keep(hostile) == report.path and steerings_of(run)[0].texts[0].prompt == "<script>"


# --- what cannot be --------------------------------------------------------------------------


def named(folder, name: str, content: bytes):
    (folder / name).write_bytes(content)
    return folder / name


BAD = {
    "feature": ({"feature": 64}, ConfigError, "has features 0 to 63, got 64"),
    "negative": ({"feature": -1}, ConfigError, "takes numbers of features, each once, got -1"),
    "twice": ({"feature": [3, 3]}, ConfigError, "each once, got 3, 3"),
    "none": ({"scale": []}, ConfigError, "nothing says how to steer: type one of `scale`"),
    "both": (
        {"scale": 1, "clamp": 2},
        ConfigError,
        "`scale` and `clamp` say how to steer: type one",
    ),
    "all three": (
        {"scale": 1, "clamp": 2, "ablate": True},
        ConfigError,
        "`clamp` and `ablate` say how",
    ),
    "words": ({"scale": "five"}, ConfigError, "'five' is no strength: type a number"),
    "unit": ({"clamp": "5y"}, ConfigError, "'5y' is no strength"),
    "nothing": ({"scale": "1,,2"}, ConfigError, "'' is no strength"),
    "infinite": ({"scale": "1e999"}, ConfigError, "'1e999' is no strength"),
    "same": ({"scale": "1,1.0"}, ConfigError, "has 1 twice"),
    "no prompt": ({"prompt": []}, ConfigError, "there is no prompt to go on with"),
    "empty": ({"prompt": ["a", ""]}, ConfigError, "prompt 2 is empty"),
    "surrogate": ({"prompt": "a\udc80"}, ConfigError, "prompt 1 is not UTF-8 text"),
    "long": ({"prompt": "a" * 70}, ConfigError, "has 70 tokens, .* takes 64: shorten it"),
    "too many": ({"tokens": 60}, ConfigError, "lower `tokens` to 59, or shorten it"),
    "no tokens": ({"tokens": 0}, ConfigError, "tokens must be positive"),
    "cold": ({"temperature": 0.0}, ConfigError, "temperature must be positive"),
    "where": ({"where": "old"}, ConfigError, "where must be one of all, prompt, new, got 'old'"),
    "model": ({"model": "absent"}, ModelError, "absent"),
    "overflow": ({"scale": "1e6"}, DataError, "predicts is not finite: steer less far"),
    "drawn": ({"scale": "1e6", "samples": 2}, DataError, "predicts is not finite"),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_steered_is_one_line(run, what):
    settings, error, told = BAD[what]
    if error is DataError:
        settings = settings | {"precision": "fp16"}
    with refused(error, told):
        steer(run, **settings)
    assert not (run / "steer").exists()


def test_runs_that_do_not_fit_are_one_line(copied, world, tmp_path):
    run, later = copied("run"), copied("later")
    other = save_sae(tmp_path / "other", make_sae(), model="other/model", site="mlp_out.0")
    silent = save_sae(tmp_path / "silent", make_sae(), model="")
    beyond = save_sae(tmp_path / "beyond", make_sae(), model=world.model, site="mlp_out.7")
    wide = make_model(tmp_path / "wide", width=2 * WIDTH)
    same = shutil.copytree(run, tmp_path / "same")
    for runs, settings, error, told in (
        ((run, later), {}, ConfigError, "2 runs take a `feature` each, got 1"),
        ((run, same), {"feature": [1, 2]}, ConfigError, "are both at mlp_out.1: name runs of diff"),
        ((run, other), {"feature": [1, 2]}, ConfigError, "are of 2 models"),
        ((silent,), {}, ConfigError, "does not say which model .* name it with `model`"),
        ((beyond,), {}, ConfigError, "has layers 0 to 2"),
        ((run,), {"model": wide}, ConfigError, "is an SAE of 16 dimensions, but .* has 32"),
        ((later,), {"scale": "5x"}, ConfigError, "has no features yet: type saepipe features"),
        ((tmp_path,), {}, CheckpointError, "is not a run"),
    ):
        with refused(error, told):
            steer(*runs, **settings)


def test_units_of_a_feature_that_never_fired_are_one_line(run):
    dead = int(np.flatnonzero(FeatureSet.open(run).n_active == 0)[0])
    with refused(ConfigError, f"feature {dead} of .* was active on none of the .* so 5max says"):
        steer(run, feature=dead, scale="5max")
    assert steer(run, feature=dead, scale=5).effects


def test_a_connector_is_one_line(tmp_path):
    folder = tmp_path / "connector"
    folder.mkdir()
    (folder / "run.json").write_text('{"kind": "connector"}')
    with refused(ConfigError, "is a connector run, and steering takes runs of SAEs"):
        steer(folder)


# --- files of prompts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", b"hello\r\n\n  \nab cd\n"),
        ("a.jsonl", b'{"prompt": "hello", "text": "no"}\n{"text": "ab cd"}\n'),
        ("b.jsonl", b'\xef\xbb\xbf"hello"\n\n"ab cd"'),
    ],
)
def test_prompts_of_a_file_follow_those_that_were_typed(run, tmp_path, name, content):
    report = steer(run, prompt="first", prompt_file=named(tmp_path, name, content), tokens=2)
    assert [one.prompt for one in report.texts] == ["first", "hello", "ab cd"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.txt", b"caf\xe9\n", "a.txt is not UTF-8 text"),
        ("a.txt", b"\n \n", "a.txt holds no prompt: write one a line"),
        ("a.jsonl", b"hello\n", "a.jsonl line 1 is not valid JSON"),
        ("a.jsonl", b'\n{"question": "x"}\n', "a.jsonl line 2 has no prompt: write"),
        ("a.jsonl", b'{"prompt": 3}\n', "a.jsonl line 1 has no prompt"),
        ("a.jsonl", b"[1]\n", "a.jsonl line 1 has no prompt"),
    ],
    ids=["latin", "blank", "words", "other", "number", "list"],
)
def test_a_file_that_holds_no_prompts_is_one_line(run, tmp_path, name, content, told):
    with refused(TextError, told):
        steer(run, prompt=[], prompt_file=named(tmp_path, name, content))


def test_a_file_that_is_not_there_is_one_line(run, tmp_path):
    for path in (tmp_path / "absent.txt", tmp_path):
        with refused(TextError, "cannot be read .*: name a file with a prompt a line"):
            steer(run, prompt_file=path)
