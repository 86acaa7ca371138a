"""The page as a file: what is in it, how it is chosen, what is refused.

`test_page_in_browser.py` opens it.
"""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hypothesis import given, strategies as st

from actstore.files import write_json
from pipeline.config.serialization import to_json
from pipeline.config.stages import ReportConfig
from pipeline.errors import CheckpointError, ConfigError, TextError
from pipeline.evaluate.report import Overlap, save_report
from pipeline.features.feature import BEFORE
from pipeline.finetune.compare import Comparison, Way
from pipeline.finetune.meaning import Meaning
from pipeline.finetune.run import FinetunedRun
from pipeline.plots.style import BLUE, INK, axes_in, make_figure
from pipeline.report.feature_data import N_DEAD, choose_features, feature_data, rounded
from pipeline.report.figures import inline_svg
from pipeline.report.page import view, write_page, write_report
from pipeline.report.render import embedded_json, render
from pipeline.report.saes import SAEExhibit
from pipeline.runs.belongs import checksum_of
from pipeline.runs.curves import METRICS
from pipeline.runs.sae_run import SAERun
from tests.helpers.browser import Visit, chromium
from tests.helpers.pages import (
    HOSTILE,
    PLAIN,
    VOCABULARY,
    make_exhibit,
    make_feature,
    make_report,
    make_run,
    shown,
)
from tests.helpers.reading_pages import Reader, data_of
from tests.helpers.refusals import may_only_be_read, refused
from tests.helpers.tunings import make_meaning, make_tuned


def page_of(*exhibits) -> bytes:
    return render(view(exhibits))


def bare(run: Path, *features, **changes):
    """Without figures, which take long to draw."""
    return make_exhibit(run, *features, **({"curves": None, "evaluation": None} | changes))


def plain(run: Path, **changes):
    """An evaluation of few figures."""
    return make_report(run, **({"inserted": (), "dead": False} | changes))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "topk")


@pytest.fixture(scope="module")
def page(run) -> bytes:
    """About this run, with everything there is to show."""
    return page_of(make_exhibit(run, make_feature(1)))


# --- which features --------------------------------------------------------------------------


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(1, 40))
def test_chosen_features_are_spread_evenly_over_the_ranks_of_frequency(counts, n):
    chosen = choose_features(np.array(counts), n=n)
    alive, dead = ([i for i in chosen if bool(counts[i]) == living] for living in (True, False))
    ranks = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    n_alive = len(counts) - counts.count(0)
    assert chosen == alive + dead
    assert len(set(chosen)) == len(chosen)
    assert len(dead) == min(N_DEAD, counts.count(0), n - 1 if n_alive else n)
    assert len(alive) == min(n - len(dead), n_alive)
    places = [ranks.index(i) for i in alive]
    if len(alive) > 1:
        assert (places[0], places[-1]) == (0, n_alive - 1)
        gaps = np.diff(places)
        assert gaps.max() - gaps.min() <= 1


# --- data for the script ---------------------------------------------------------------------


def test_numbers_keep_three_significant_digits_and_what_is_no_number_is_null():
    assert [rounded(x) for x in (0.0, 1234.5, -0.0012345, 3.0)] == [0, 1230, -0.00123, 3]
    assert json.dumps(rounded(3.0)) == "3"
    assert [rounded(x) for x in (None, float("nan"), float("inf"))] == [None] * 3


def test_tokens_are_places_in_a_table_that_holds_each_text_once():
    feature, texts = make_feature(3, tokens=range(len(VOCABULARY))), shown().texts
    data = feature_data(shown(feature, make_feature(4)))
    table = data["tokens"]
    assert len(set(table)) == len(table)
    for i, example in enumerate(data["items"][0]["top"]):
        tokens = [t for t in feature.top.tokens[i].tolist() if t >= 0]
        assert len(example["tokens"]) == len(example["values"]) == len(tokens)
        assert example["position"] == feature.top.position[i]
        peak = example["values"][min(BEFORE, example["position"])]
        assert peak == max(example["values"])
        assert peak == pytest.approx(feature.top.value[i], rel=5e-3)
        for token, place in zip(tokens, example["tokens"], strict=True):
            assert token >= len(PLAIN) or table[place] == texts.alone(token)
    sample = [table[place] for place, _ in data["items"][1]["sample"]]
    assert sample == [texts.alone(t) for t in make_feature(4).sample.token.tolist()]


@given(st.text())
def test_json_in_a_script_is_ascii_and_cannot_end_the_script(text):
    written = str(embedded_json({"text": [text, "</script><!--\u2028"]}))
    assert written.isascii()
    assert not set("<>&") & set(written)
    assert json.loads(written) == {"text": [text, "</script><!--\u2028"]}


# --- figures ---------------------------------------------------------------------------------


def drawn(name: str) -> str:
    figure = make_figure(width=4.0, height=3.0)
    axes = axes_in(figure, (1, 1, 1), title="a < b & c", y="$x_1$")
    axes.plot([0, 1], [0, 1], color=BLUE, marker="o")
    axes.axhspan(0, 1, color=INK, hatch="/")
    return str(inline_svg(figure, name=name, label='it"s <b>'))


def test_a_figure_in_the_page_has_text_as_text_and_the_colours_of_the_page():
    svg = drawn("one")
    for absent in (" style=", "<style", "metadata", "#2b6cb0"):
        assert absent not in svg
    for words in ("var(--blue)", "a &lt; b &amp; c</text>", 'aria-label="it&quot;s &lt;b&gt;"'):
        assert words in svg
    assert drawn("one") == svg


def test_ids_of_two_figures_differ_and_every_reference_is_met():
    one, other = drawn("one"), drawn("other")
    ids = [set(re.findall(r' id="([^"]+)"', svg)) for svg in (one, other)]
    assert not ids[0] & ids[1]
    for svg, known in zip((one, other), ids, strict=True):
        asked = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
        assert asked
        assert asked == known


# --- the page --------------------------------------------------------------------------------


def test_hostile_texts_stay_texts_wherever_they_stand(run):
    feature = make_feature(1, tokens=range(len(VOCABULARY)))
    exhibit = bare(run, feature, name="<script>run</script>\u202e\x07", evaluation=plain(run))
    page = page_of(exhibit)
    reader = Reader(page)
    assert [attrs.get("type") for tag, attrs in reader.tags if tag == "script"] == [
        "application/json", None,
    ]  # fmt: skip
    assert not {tag for tag, _ in reader.tags} & {"img", "b", "iframe", "object", "form", "base"}
    for _, attrs in reader.tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
    assert "<script>window.pwned = 1</script>" in reader.text
    assert "{{ 7 * 7 }}" in reader.text
    assert "\\u202egnp.exe" in reader.text
    raw = page.decode()
    for hidden in "\x00\x07\x1b\u202e\u2066\u200f\u2028":
        assert hidden not in raw
    texts = data_of(page)["runs"][0]["tokens"]
    assert "</script><script>window.pwned = 2</script>" in texts
    assert not any(ord(c) < 32 or 0xD800 <= ord(c) < 0xE000 for text in texts for c in text)


def test_nothing_in_the_page_points_outside_of_it(page):
    for tag, attrs in Reader(page).tags:
        for name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
            assert attrs.get(name, "#").startswith(("#", "data:,")), (tag, attrs)


def test_the_policy_names_the_one_script_and_the_one_style_sheet(page):
    tags = Reader(page).tags
    (policy,) = (a["content"] for _, a in tags if a.get("http-equiv"))
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    for name in ("script-src", "style-src"):
        assert re.fullmatch(r"'sha256-[A-Za-z0-9+/=]{44}'", rules[name])
    before = [tag for tag, _ in tags[: tags.index(("style", {}))]]
    assert "meta" in before
    assert "script" not in before


def test_a_browser_opens_it_without_a_complaint(page, tmp_path):
    (tmp_path / "page.html").write_bytes(page)
    with chromium() as browser, Visit(browser, tmp_path / "page.html") as visit:
        visit.sees("#features-heading", "Feature 1")


def test_the_same_runs_make_the_same_bytes(run, page):
    assert page_of(make_exhibit(run, make_feature(1))) == page


def test_a_page_of_200_features_is_smaller_than_5_mb(run):
    features = [make_feature(i, tokens=range(len(VOCABULARY))) for i in range(200)]
    assert len(page_of(bare(run, *features))) < 4.5e6, "figures are another 0.2 MB"


def test_the_numbers_of_an_evaluation_stand_with_their_intervals(page):
    text = Reader(page).text
    assert "loss recovered (zeroed - spliced) / (zeroed - alone) 0.9346 0.931 to 0.938" in text
    assert "loss, the model alone cross-entropy; nats 2.623 " in text
    assert "below 1 where x̂ is shrunk - " in text
    assert "dead features active on none of the tokens 8 " in text
    assert "share of dead features 12.5 %" in text
    assert "40,064 tokens in contexts of 128" in text
    assert "context 1,234: 2.5 → 3.5 nats, perplexity +20.9" in text
    assert "Numbers of <b>another</b> text" in text


def test_a_few_runs_have_a_column_each_and_many_a_row_each(tmp_path):
    runs = [make_run(tmp_path / f"run{i}", seed=i) for i in range(5)]
    exhibits = [bare(path) for path in runs]
    exhibits[0] = replace(exhibits[0], evaluation=plain(runs[0]))
    few, many = SAEExhibit.part(exhibits[:4]), SAEExhibit.part(exhibits)
    assert {len(row.cells) for group in few.groups for row in group.rows} == {4}
    assert [cell.value for cell in few.groups[0].rows[0].cells] == ["0.0411", "", "", ""]
    assert not few.rows
    assert [row.name for row in many.rows] == [f"run{i}" for i in range(5)]
    assert not many.groups
    assert {len(row.cells) for row in many.rows} == {len(many.heads)}
    assert view(exhibits[:4]).title == "4 sparse autoencoders"


def test_what_several_runs_have_in_common_is_said_once(tmp_path):
    paths = [make_run(tmp_path / name, seed=i) for i, name in enumerate(("a", "b"))]
    overlaps = (Overlap(run=paths[1], mmcs=0.75), Overlap(run=Path("/else/where"), mmcs=0.25))
    report = plain(paths[0], overlaps=overlaps)
    features = shown(make_feature(1), notes=("logits are direct",))
    exhibits = [
        bare(path, features=features, evaluation=report if path.name == "a" else None)
        for path in paths
    ]
    made = SAEExhibit.part(exhibits)
    assert made.feature_notes == ["logits are direct"]
    assert made.runs[0]["overlaps"] == {"b": "0.75", "where": "0.25"}
    assert made.runs[0]["notes"][-1] == "None of the 64 features is dead on these tokens."
    assert [*made.runs[0]["figures"]] == ["r1-density", "r1-encoder_decoder"]
    assert (
        view(exhibits).lead == "model EleutherAI/pythia-70m · site mlp_out.1 · trained on somewhere"
    )


def test_what_is_not_there_is_said_with_the_command_that_makes_it(run):
    page = page_of(bare(run, features=None))
    text = Reader(page).text
    assert f"saepipe eval {run.name}" in text
    assert f"saepipe features {run.name}" in text
    assert data_of(page)["runs"][0]["command"] == f"saepipe features {run.name}"
    assert "Fidelity" not in text


def test_each_curve_and_each_finding_is_a_figure(page):
    names = "density", "encoder_decoder", "dead_cosine", "inserted", "l0", "recon", "n_dead"
    ids = [attrs["id"] for tag, attrs in Reader(page).tags if tag == "figure"]
    assert ids == [f"r1-{name}" for name in names]


def tuned_page(run: Path, out: Path, *, meaning: Meaning | None = None) -> bytes:
    tuned = make_tuned(run, out, meaning=meaning)
    return page_of(bare(run, tuned=tuned, curves=out / METRICS))


def test_a_fine_tuned_run_tells_what_was_learned_and_from_what(run, tmp_path):
    text = Reader(tuned_page(run, tmp_path / "tuned")).text
    assert "topk SAE (k = 4) at mlp_out.3, fine-tuned" in text
    for fact in (
        "fine-tuned on sums, 2,000 steps", "held-out loss, model alone 1.5",
        "held-out loss, SAE spliced in 2.5", "held-out loss, fine-tuned 1.75",
        "finetune.weight_decay 0.01", "arch.k 4", "held out, model without the SAE: 1.500",
        "held out, SAE spliced in, c = 1, d = 0: 2.500", "held out, after fine-tuning: 1.750",
    ):  # fmt: skip
        assert fact in text


def test_the_page_of_a_fine_tuning_tells_which_features_it_moved(run, tmp_path):
    page = tuned_page(run, tmp_path / "tuned")
    text, tags = Reader(page).text, Reader(page).tags
    for fact in (
        "sums, at mlp_out.3 of gpt2", "loss on held-out text 1.5000 2.5000 1.7500",
        "2 of 8 changed features make 90% of the gain of 0.7500 nats on 1,024 held-out tokens.",
        "1 1.100 -0.010 +0.0345 5 % 10 % a", "4 1.400 -0.040 ~+0.0020",
        "feature 2 scale 1.200, bias -0.020, effect +0.0345 nats", "2 of 8 make 90%",
        "features, sorted by scale c (1 were never active)", "token context activation after",
        "By effect", "Most scaled up", "Most inhibited", "Bias raised most",
    ):  # fmt: skip
        assert fact in text, fact
    assert "Bias lowered most" not in text
    ids = [attrs["id"] for tag, attrs in tags if tag == "details" and "id" in attrs]
    assert ids == [f"t1-m{i}" for i in range(1, 6)]
    links = {attrs["href"] for tag, attrs in tags if tag == "a" and "t1-m" in attrs["href"]}
    assert links == {f"#{name}" for name in ids}
    figures = [attrs["id"] for tag, attrs in tags if tag == "figure"]
    assert figures == ["t1-scales_biases", "t1-effects", "r1-loss"]
    assert ("a", {"href": "#finetuning"}) in tags


def test_the_page_of_an_older_fine_tuning_has_what_there_is(run, tmp_path):
    old = replace(make_meaning(), by_effect=(), effects=None, n_tokens=0)
    moved = replace(
        old.scaled_up[0], tokens=(), n_before=None, n_after=None, estimate=None, effect=None,
        promoted=(), suppressed=(),
    )  # fmt: skip
    old = replace(old, scaled_up=(moved,), inhibited=(), raised=())
    page = tuned_page(run, tmp_path / "tuned", meaning=old)
    text = Reader(page).text
    assert "3 1.300 -0.030 - - - a" in text
    assert "nats on" not in text
    assert "t1-effects" not in page.decode()
    (tmp_path / "tuned" / "features.json").unlink()
    tuned = FinetunedRun.open(tmp_path / "tuned")
    assert "Most scaled up" not in Reader(page_of(bare(run, tuned=tuned))).text


def test_ways_that_were_compared_stand_on_the_page(run, tmp_path):
    tuned = make_tuned(run, tmp_path / "tuned")
    assert "Other ways to learn" not in Reader(page_of(bare(run, tuned=tuned))).text
    way = Way(
        name="mlp", words="all weights of the MLP", n_numbers=12345, lr=0.01, ce=1.25, exact=0.5,
        ce_general=0.0,
    )  # fmt: skip
    told = Comparison(sha256=tuned.sha256, lrs=(0.01, 0.1), ways=(way,))
    write_json(tuned.path / "compare.json", to_json(told))
    text = Reader(page_of(bare(run, tuned=tuned))).text
    assert "all weights of the MLP 12,345 0.01 1.2500 50 % 1.00" in text
    assert "some did best at the lowest or highest learning rate" in text


def test_hostile_texts_of_a_fine_tuning_stay_texts(run, tmp_path):
    page = tuned_page(run, tmp_path / "tuned", meaning=make_meaning(texts=HOSTILE))
    reader = Reader(page)
    assert [attrs.get("type") for tag, attrs in reader.tags if tag == "script"] == [
        "application/json", None,
    ]  # fmt: skip
    assert not {tag for tag, _ in reader.tags} & {"img", "iframe", "object", "form", "base"}
    for _, attrs in reader.tags:
        assert not [name for name in attrs if name.startswith("on") or name == "style"]
    assert reader.text.count("<script>window.pwned = 1</script>") > 20
    raw = page.decode()
    for hidden in "\x00\x07\x1b\u202e\u2066\u200f\u2028":
        assert hidden not in raw


# --- from and to the disk --------------------------------------------------------------------


def test_a_page_is_written_about_what_lies_in_the_folders_of_runs(tmp_path):
    runs = [make_run(tmp_path / name / "sae") for name in ("a", "b")]
    save_report(plain(runs[0]))
    (runs[1] / METRICS).unlink()
    out = write_page(ReportConfig(runs=(*runs, runs[0]), out=tmp_path / "new/folder/page.html"))
    assert out == tmp_path / "new/folder/page.html"
    data = data_of(out.read_bytes())
    assert [run["name"] for run in data["runs"]] == ["a/sae", "b/sae"]
    text = Reader(out.read_bytes()).text
    assert text.count("saepipe eval sae") == 1
    assert str(tmp_path) not in out.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["page.html"]


def test_what_needs_a_text_that_cannot_be_reached_is_noted_and_the_page_is_made(
    tmp_path, monkeypatch
):
    unreachable = Mock(side_effect=TextError("the hub could not be reached: give a local path"))
    monkeypatch.setattr("pipeline.evaluate.evaluate.evaluate", unreachable)
    config = ReportConfig(runs=(make_run(tmp_path / "sae"),), out=tmp_path / "page.html")
    summary = write_report(config)
    first, second = summary.notes
    assert first == "not evaluated: the hub could not be reached: give a local path"
    assert "is not found" in second
    assert "saepipe eval sae" in Reader(summary.path.read_bytes()).text
    with pytest.raises(TextError, match="could not be reached"):  # where it was asked for
        write_report(replace(config, text="hub:somewhere"))


def test_of_a_run_that_may_only_be_read_a_page_is_made_elsewhere(tmp_path, monkeypatch):
    run = make_run(tmp_path / "sae")
    save_report(plain(run))
    may_only_be_read(run, monkeypatch)
    config = ReportConfig(runs=(run,), out=tmp_path / "page.html")
    summary = write_report(config)
    assert summary.path.exists()
    assert summary.made == ()
    with refused(ConfigError, r"report\.html cannot be written .* choose another --out"):
        write_report(replace(config, out=run / "report.html"))


@pytest.mark.parametrize(
    ("runs", "out", "error", "said"),
    [
        ([], "page.html", ConfigError, "a report needs a run"),
        (["run"], ".", ConfigError, r"is a folder.*--out .*/report\.html"),
        (["nowhere"], "page.html", CheckpointError, "is not a run"),
        (["run", "empty"], "page.html", CheckpointError, "is not a run"),
        (["unfinished"], "page.html", CheckpointError, "unfinished run"),
    ],
)
def test_what_cannot_be_reported_on_is_one_line(tmp_path, runs, out, error, said):
    make_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    document = json.loads((make_run(tmp_path / "unfinished") / "run.json").read_text())
    (tmp_path / "unfinished/run.json").write_text(json.dumps(document | {"sha256": ""}))
    config = ReportConfig(runs=tuple(tmp_path / name for name in runs), out=tmp_path / out)
    with refused(error, said):
        write_page(config)
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("name", ["eval.json", "metrics.jsonl", "features/features.json"])
def test_a_damaged_file_of_a_run_is_one_line_that_names_it(tmp_path, name):
    path = make_run(tmp_path / "run")
    (path / name).parent.mkdir(exist_ok=True)
    (path / name).write_text("{nonsense\n")
    with refused(CheckpointError, re.escape(name)):
        write_page(ReportConfig(runs=(path,), out=tmp_path / "page.html"))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "metrics.jsonl is lost, and with it the curves"),
        (b"", "metrics.jsonl is lost, and with it the curves"),
        (b'{"step": 0, "rows": 9, "recon": 4}\n{"st', "metrics.jsonl ends at step 0 of"),
    ],
    ids=["absent", "empty", "torn"],
)
def test_a_page_says_that_curves_are_lost(tmp_path, content, said):
    path = make_run(tmp_path / "run")
    config = ReportConfig(runs=(path,), out=tmp_path / "page.html")
    write_page(config)
    assert "metrics.jsonl" not in config.out.read_text()
    (path / "metrics.jsonl").unlink()
    if content is not None:
        (path / "metrics.jsonl").write_bytes(content)
    write_page(config)
    assert said in config.out.read_text()


def test_curves_of_another_run_are_not_drawn(tmp_path):
    path, other = (make_run(tmp_path / name) for name in ("run", "other"))
    run = SAERun.open(path)
    replace(run, curves_sha256=checksum_of(path / METRICS)).write()
    config = ReportConfig(runs=(path,), out=tmp_path / "page.html")
    write_page(config)
    assert "r1-recon" in config.out.read_text() and "metrics.jsonl" not in config.out.read_text()
    lines = (other / METRICS).read_text().replace('"n_dead": 3', '"n_dead": 4')
    (path / METRICS).write_text(lines)
    write_page(config)
    text = config.out.read_text()
    assert "metrics.jsonl is not that of this run." in text and "r1-recon" not in text


def test_what_was_copied_from_another_run_is_made_anew(tmp_path, monkeypatch):
    a, b = (make_run(tmp_path / name, seed=i) for i, name in enumerate("ab"))
    save_report(plain(a, sha256=SAERun.open(a).sha256))
    shutil.copy(a / "eval.json", b)
    asked = Mock(side_effect=TextError("no text"))
    monkeypatch.setattr("pipeline.evaluate.evaluate.evaluate", asked)
    config = ReportConfig(runs=(a, b), out=tmp_path / "page.html")
    assert "not evaluated: no text" in write_report(config).notes
    assert asked.call_args.args[0].runs == (b,)
    text = Reader(config.out.read_bytes()).text
    assert "saepipe eval b" in text and "saepipe eval a" not in text
