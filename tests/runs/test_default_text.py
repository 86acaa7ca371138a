"""What an evaluation without a text is on, where the default one cannot be had."""

from dataclasses import replace

import pytest

from actstore.reader import ActStore
from pipeline import verbs
from pipeline.config.stages import ReportConfig
from pipeline.errors import TextError
from pipeline.evaluate.report import load_report
from pipeline.lm.tokenizer import load_tokenizer
from pipeline.report.page import write_report
from pipeline.runs.default_text import DefaultTexts
from pipeline.runs.folder import Provenance
from pipeline.text.heldout import load_contexts
from tests.helpers.featured import SITES, World
from tests.helpers.tiny import CTX_LEN, make_model, make_text

N_STORED, N_BEHIND = 6, 4
"""Contexts."""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    """A store of the first contexts of a text."""
    folder = tmp_path_factory.mktemp("world")
    model, out = make_model(folder / "model"), folder / "acts.actstore"
    text = make_text(folder / "text.txt", n_contexts=N_STORED + N_BEHIND)
    verbs.harvest(
        out=out, model=model, text=text, sites=[SITES[0]], tokens=N_STORED * CTX_LEN,
        ctx_len=CTX_LEN, device="cpu", dtype="fp32",
    )  # fmt: skip
    return World(folder=folder, model=model, store=ActStore.open(out))


@pytest.fixture(autouse=True)
def asked(monkeypatch, tmp_path) -> list[str]:
    """The default text is away; how often it was asked for."""
    asked = list[str]()
    away = str(tmp_path / "away.txt")
    monkeypatch.setattr("pipeline.runs.default_text.heldout_text", lambda _: away)
    opened = DefaultTexts.of.__globals__["open_text"]

    def counted(source: str, **options: object) -> object:
        asked.extend([source] if source == away else [])
        return opened(source, **options)

    monkeypatch.setattr("pipeline.runs.default_text.open_text", counted)
    return asked


def test_it_is_what_lies_behind_the_store_and_says_so(world, asked):
    runs = [world.run(name) for name in ("one", "other")]
    reports = verbs.evaluate(runs, tokens=N_BEHIND * CTX_LEN, device="cpu", n_bootstrap=0)
    text = world.folder / "text.txt"
    whole = load_contexts(
        str(text), load_tokenizer(str(world.model)), ctx_len=CTX_LEN, n=N_STORED + N_BEHIND
    )
    rest = "".join(load_tokenizer(str(world.model)).decode(c.tolist()) for c in whole[N_STORED:])
    for report in reports:
        assert report.text == f"the rest of {text}"
        assert f"evaluated on what lies in {text} behind what the store holds" in report.notes[0]
        assert "away.txt" in report.notes[0]
        assert all(one.text in rest for one in report.worst)
        assert report.worst
    assert len(asked) == 1


def test_a_text_that_is_named_is_never_another(world, tmp_path):
    with pytest.raises(TextError, match="gone"):
        verbs.evaluate(world.run("named"), text=str(tmp_path / "gone.txt"), device="cpu")


def test_a_page_takes_the_settings_of_the_evaluations_that_it_lacks(world, tmp_path):
    run = world.run("paged")
    text = make_text(tmp_path / "own.txt", n_contexts=3, seed=4)
    config = ReportConfig(
        runs=(run,), out=tmp_path / "page.html", text=text, tokens=2 * CTX_LEN, device="cpu"
    )
    write_report(config)
    report = load_report(run)
    assert (report.text, report.n_tokens) == (text, 2 * CTX_LEN)


@pytest.mark.parametrize("what", ["changed", "exhausted", "gone"])
def test_a_rest_that_is_none_is_one_line_with_the_way_out(world, tmp_path, what):
    text = make_text(tmp_path / "text.txt", n_contexts=2)
    tokens = (100 if what == "exhausted" else 1) * CTX_LEN
    verbs.harvest(
        out=tmp_path / "a.actstore", model=world.model, text=text, sites=[SITES[0]], tokens=tokens,
        ctx_len=CTX_LEN, device="cpu",
    )  # fmt: skip
    trained_on = Provenance.of(ActStore.open(tmp_path / "a.actstore"), site=SITES[0])
    if what == "changed":
        make_text(tmp_path / "text.txt", n_contexts=2, seed=3)
    if what == "gone":
        (tmp_path / "a.actstore").rename(tmp_path / "elsewhere")
        gone = tmp_path / "far/gone.actstore"
        trained_on = replace(trained_on, path=gone, fingerprint="f" * 64)
    said = {
        "changed": "has changed",
        "exhausted": "holds all of",
        "gone": "is neither beside the run",
    }
    with pytest.raises(TextError, match=f"away.txt.*{said[what]}.*name a text with") as told:
        DefaultTexts("text").of(trained_on, tmp_path / "run")
    assert "\n" not in str(told.value)


def test_the_store_is_found_where_it_was_moved(world, tmp_path):
    trained_on = replace(
        Provenance.of(world.store, site=SITES[0]), path=tmp_path / "before/acts.actstore"
    )
    found = DefaultTexts("text").of(trained_on, world.folder / "runs")
    assert found.source == str(world.folder / "text.txt")
