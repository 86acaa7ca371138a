"""Models and texts in files, named from one folder and used from another."""

import json
import shutil
from pathlib import Path

import pytest

from actstore.reader import ActStore
from pipeline import verbs
from pipeline.config.stages import EvalConfig, HarvestConfig
from pipeline.errors import ModelError
from pipeline.evaluate.report import EvalReport
from pipeline.features.collect import collect_features
from pipeline.harvest.harvest import harvest
from pipeline.harvest.plan import make_plan
from pipeline.runs.sae_run import SAERun
from pipeline.terminal import commands
from pipeline.terminal.screen import Screen
from pipeline.whereabouts import name_from_here, place_of
from tests.helpers.featured import SITES, World, config_of
from tests.helpers.refusals import refused
from tests.helpers.tiny import CTX_LEN, make_model, make_text


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A folder to name things from: a model, a text, and a store and a run of both."""
    here = tmp_path / "here"
    make_model(here / "model")
    make_text(here / "text.txt", n_contexts=12)
    monkeypatch.chdir(here)
    harvest(config_of_store())
    World(folder=here, model=here / "model", store=ActStore.open("acts.actstore")).run("sae")
    return here


def config_of_store(**told: object) -> HarvestConfig:
    given = {
        "model": "model", "text": "text.txt", "sites": SITES[:1], "tokens": 8 * CTX_LEN,
        "ctx_len": CTX_LEN, "device": "cpu", "dtype": "fp32",
    }  # fmt: skip
    return HarvestConfig(out=Path("acts.actstore"), **given | told)


def evaluated(run: Path, **told: object) -> EvalReport:
    given = {"tokens": 4 * CTX_LEN, "device": "cpu", "n_bootstrap": 0} | told
    return verbs.evaluate(run, **given)


def test_a_name_that_leads_nowhere_is_that_of_the_place(tmp_path, monkeypatch):
    (tmp_path / "a/model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    at = place_of("model")
    assert at == tmp_path / "a/model" == place_of("./model")
    assert place_of("model@test") == tmp_path / "a/model@test"
    nowhere = ("", "org/name", "builtin:arithmetic@heldout", "~nobody/x", "a" * 5000, "a\0b", "@")
    assert all(place_of(name) is None for name in nowhere)
    assert name_from_here("model", at) == name_from_here("model", None) == "model"
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path / "b")
    assert name_from_here("model", at) == "../a/model"
    assert name_from_here("model@test", place_of("../a/model@test")) == "../a/model@test"
    assert name_from_here("model", tmp_path / "gone") == "model"
    assert name_from_here("", at) == "", "nobody said which"
    (tmp_path / "b/model").mkdir()
    assert name_from_here("model", at) == "model", "what it means here comes first"
    (tmp_path / "builtin").mkdir()
    monkeypatch.chdir(tmp_path)
    assert place_of("builtin") is None


def test_a_run_is_evaluated_read_and_fine_tuned_from_elsewhere(here, monkeypatch, tmp_path):
    collect_features(config_of(here / "sae"))
    for place in ("there", "moved"):
        if place == "moved":
            shutil.move(here, tmp_path / "all/of/it")
        run = next(tmp_path.glob("**/sae/run.json")).parent
        (tmp_path / place).mkdir()
        monkeypatch.chdir(tmp_path / place)
        report = evaluated(run, text=make_text(Path("other.txt"), n_contexts=12, seed=1))
        assert Path(report.model).resolve() == run.parent / "model"
        assert not [note for note in report.notes if "trained on" in note or "changed" in note]
        found = collect_features(config_of(run))
        assert found.reused and found.facts.has_texts
        tuned = verbs.finetune(
            run, text=Path("other.txt"), out=f"tuned-{place}", epochs=1, steps_per_epoch=1,
            ctx_len=CTX_LEN, heldout_contexts=2, device="cpu",
        )  # fmt: skip
        assert tuned.notes == ()
        text = Path("other.txt").resolve()
        monkeypatch.chdir(tmp_path.parent)
        again = evaluated(tuned.out, text=text)
        assert Path(again.model).resolve() == run.parent / "model"
    assert SAERun.open(run).provenance.text_at == run.parent / "text.txt"


def test_features_of_a_run_are_found_from_elsewhere_with_their_words(here, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    facts = collect_features(config_of(here / "sae")).facts
    assert facts.has_texts and facts.attributed
    assert not [note for note in facts.notes if "numbers" in note or "activations are" in note]


def test_the_text_trained_on_is_known_under_another_name(here):
    for name, n in (("text.txt", 1), ("./text.txt", 1), (str(here / "text.txt"), 1), ("b.txt", 0)):
        make_text(here / "b.txt", n_contexts=12, seed=1)
        notes = evaluated(here / "sae", text=name).notes
        assert len([note for note in notes if "not held out" in note]) == n, name


def test_the_model_trained_on_is_known_under_another_name(here):
    other = make_model(here / "other", seed=1)
    for name, n in (("./model", 0), (here / "model", 0), (other, 1)):
        notes = evaluated(here / "sae", model=name, text="text.txt").notes
        assert len([note for note in notes if "trained on activations of" in note]) == n, name
        tuned = verbs.finetune(
            here / "sae", model=str(name), text="text.txt", out=f"tuned{len([*here.iterdir()])}",
            epochs=1, steps_per_epoch=1, ctx_len=CTX_LEN, heldout_contexts=2, device="cpu",
        )  # fmt: skip
        assert len([note for note in tuned.notes if "and is fine-tuned at" in note]) == n, name


def test_a_model_that_was_moved_is_to_be_named(here):
    (here / "model").rename(here / "moved")
    own = "it is the one that sae was trained on; if it was moved, name it with `model`"
    with refused(ModelError, f"model 'model' is neither .*: {own}"):
        evaluated(here / "sae", text="text.txt")
    with pytest.raises(ModelError) as told:
        evaluated(here / "sae", text="text.txt", model="gone")
    assert "was moved" not in str(told.value)
    assert evaluated(here / "sae", text="text.txt", model="moved").model == "moved"


def test_a_store_is_given_more_under_another_name_of_its_model(here):
    plan = make_plan(config_of_store(model="./model", text="./text.txt", tokens=10 * CTX_LEN))
    assert plan.state == "extend"


def test_an_evaluation_on_another_text_is_kept_beside_the_new_one(here, capsys):
    make_text(here / "b.txt", n_contexts=12, seed=1)
    said, run = [], here / "sae"
    first, then = "text.txt", "b.txt"
    for text, tokens in ((first, 4), (first, 5), (then, 5), (then, 4), (then, 4)):
        config = EvalConfig(
            runs=(Path("sae"),), text=text, tokens=tokens * CTX_LEN, device="cpu", n_bootstrap=0
        )
        commands.run_eval(config, screen=Screen())
        said.append("is kept beside this one" in capsys.readouterr().out)
    assert said == [False, False, True, True, False]
    kept = {path.name: json.loads(path.read_text()) for path in run.glob("eval*.json")}
    told = {name: (report["text"], report["n_tokens"] // CTX_LEN) for name, report in kept.items()}
    assert told == {
        "eval.json": ("b.txt", 4), "eval-1.json": ("text.txt", 5), "eval-2.json": ("b.txt", 5),
    }  # fmt: skip
    for text in (first, then, first):  # what is kept already is not kept again
        evaluated(run, text=text, tokens=5 * CTX_LEN)
    assert len([*run.glob("eval*")]) == 4
    (run / "eval.json").write_text("{")
    evaluated(run, text="text.txt")
    assert len([*run.glob("eval*")]) == 4, "what cannot be read is replaced"


def test_features_of_a_store_that_was_given_a_site_say_nothing_of_that(here):
    harvest(config_of_store(sites=("mlp_out.0",)))
    notes = collect_features(config_of(here / "sae")).facts.notes
    assert not [note for note in notes if "is not the store" in note]
