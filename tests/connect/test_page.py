"""The page about connectors as a file. `test_page_in_browser.py` opens it."""

import json
import re
from dataclasses import replace

import pytest

from pipeline.config.stages import ReportConfig
from pipeline.connect.page.connections import choose_outputs, connector_data
from pipeline.connect.page.part import ConnectorExhibit, frontier_drawings
from pipeline.connect.page.tables import main_heads, main_rows, map_groups, relation_tables
from pipeline.connect.reading.read import read_connector, save_reading
from pipeline.connect.reading.values import Cell, Equation, ReadingConfig
from pipeline.connect.report import load_connector_report, save_connector_report
from pipeline.evaluate.report import Interval
from pipeline.features.feature import BEFORE
from pipeline.report.page import gather, view, write_page
from pipeline.report.render import render
from pipeline.text.token_text import TokenTexts
from tests.helpers.connector_pages import (
    make_connections,
    make_connector_exhibit,
    make_connector_run,
    make_equation,
    make_reading,
    make_relation,
)
from tests.helpers.connector_reports import make_map, make_report
from tests.helpers.featured import SITES, make_world
from tests.helpers.pages import HOSTILE, VOCABULARY, make_run
from tests.helpers.reading_pages import Reader, data_of
from tests.helpers.readings import connect


def bare(path, **changes):
    """Without figures, which take long to draw."""
    exhibit = make_connector_exhibit(path)
    connections = make_connections(make_reading(exhibit.run, effects=None))
    return replace(exhibit, **({"evaluation": None, "connections": connections} | changes))


@pytest.fixture(scope="module")
def exhibit(tmp_path_factory):
    return make_connector_exhibit(tmp_path_factory.mktemp("connectors") / "small")


@pytest.fixture(scope="module")
def page(exhibit):
    return render(view([exhibit]))


# --- which outputs ---------------------------------------------------------------------------


def test_outputs_of_clear_relations_and_of_removed_inputs_are_always_shown(exhibit):
    reading = make_reading(exhibit.run, n=30)
    related = {relation.output for relation in reading.relations}
    removed = {point.output for point in reading.effects.points if not point.control}
    for n in (6, 12, 30, 50):
        chosen = choose_outputs(reading, n=n, n_relations=8)
        assert len(chosen) == len(set(chosen)) == min(n, 30)
        assert related | removed <= set(chosen)
        rest = [o for o in chosen if o not in related | removed]
        best = [e.output for e in reading.clearest if e.output not in related | removed]
        n_best = (n - len(related | removed)) // 2
        assert rest[:n_best] == best[:n_best]
        others = sorted(best[n_best:], key=lambda o: (-reading.equation(o).n_active, o))
        if len(rest) - n_best > 1:
            assert [rest[n_best], rest[-1]] == [others[0], others[-1]], "both ends of frequency"
    assert choose_outputs(make_reading(exhibit.run, n=0), n=5, n_relations=8) == []


def test_a_relation_beyond_those_in_the_table_has_no_claim_to_be_shown(exhibit):
    relations = tuple(make_relation("or", make_equation(20 + i)) for i in range(9))
    reading = make_reading(exhibit.run, n=9, relations=relations, effects=None)
    assert choose_outputs(reading, n=3, n_relations=3) == [20, 21, 22]


# --- data for the script ---------------------------------------------------------------------


def test_an_output_is_told_with_its_terms_and_their_effects(exhibit):
    data = connector_data(exhibit.connections)
    reading = exhibit.connections.reading
    first, equation = data["items"][0], reading.equations[0]
    told = {"index": equation.output, "nAdding": 4, "nFurther": 3}
    assert {name: first[name] for name in told} == told
    points = {(p.input, p.output): p for p in reading.effects.points if not p.control}
    for told, term in zip(first["terms"], equation.terms, strict=True):
        point = points[term.feature, equation.output]
        assert told[0] == term.feature
        numbers = [term.weight, term.contribution, term.share, point.linear, point.true]
        assert told[1:6] == pytest.approx(numbers, rel=5e-3)
        assert told[6] == point.n_tokens
    assert [len(term) for term in data["items"][5]["terms"]] == [4] * 6, "none was removed"
    controls = tuple(replace(point, control=True) for point in reading.effects.points)
    reading = replace(reading, effects=replace(reading.effects, points=controls))
    items = connector_data(make_connections(reading))["items"]
    assert {len(term) for item in items for term in item["terms"]} == {4}, "no effects of terms"


def test_each_input_is_told_once_with_its_strongest_contexts(exhibit):
    connections = exhibit.connections
    data = connector_data(connections)
    wanted = {t.feature for e in connections.reading.equations for t in e.terms}
    assert set(data["inputs"]) == {str(i) for i in wanted}
    for index, told in data["inputs"].items():
        feature = connections.source.features[int(index)]
        assert len(told["top"]) == 4
        assert len(told["spread"]) == 2
        for example, value in zip(told["top"], feature.top.value.tolist(), strict=False):
            peak = min(BEFORE, example["position"])
            assert example["values"][peak] == pytest.approx(value, rel=5e-3)
    assert [len(item["top"]) for item in data["items"]] == [6] * 12
    assert data["tokens"] == list(dict.fromkeys(data["tokens"]))


def test_relations_are_told_by_cells(exhibit):
    first, second = (connector_data(exhibit.connections)["items"][i]["relations"] for i in (0, 1))
    assert [relation["kind"] for relation in (*first, *second)] == ["or", "and-not"]
    assert first[0]["cells"] == [[412, 0.9], [96, 0.802], [203, 0.99], [10_000, 0.0012]]
    assert second[0]["inside"] == pytest.approx(203 / (203 + 96), rel=5e-3)


def test_a_cell_without_rows_has_no_share(exhibit):
    relation = replace(make_relation("or", make_equation(20)), both=Cell(n=0, n_active=0))
    connections = make_connections(make_reading(exhibit.run, n=1, relations=(relation,)))
    assert connector_data(connections)["items"][0]["relations"][0]["cells"][2] == [0, None]
    (table,) = relation_tables(connections, link="#output=")
    assert table.rows[0].cells[2] == ("-", "0")


# --- the page --------------------------------------------------------------------------------


def test_the_page_of_one_connector_says_what_it_is_and_what_it_is_worth(page):
    text = Reader(page).text
    for words in (
        "Connector report Connector resid_pre.1 → mlp_out.1 (l1 = 0.01)",
        "model EleutherAI/pythia-70m · site mlp_out.1 · trained on somewhere",
        "FVU 0.41 of the variance of 56 outputs is unexplained",
        "weights an output",
        "loss recovered 0.8 0.9 with the SAE alone, 0 with zeros",
        "predicted and true effect 0.9946 correlation over 18 removed inputs",
        "reads 64 features at resid_pre.1, of reads",
        "z2 = relu(z1 W + b)", "0.01 Σ|W|, proximal steps", "began with random weights",
        "56 of 64 outputs are active on any of them",
        "has 204,800 weights, 8,875 of them above 0.1",
        "with the SAE of the second site spliced in 2.6 (loss recovered 0.9), with the site zeroed "
        "3.5",
        "Scores of <b>another</b> text", "The model is not linear between these <i>sites</i>.",
        "correlate at 0.9946 (slope 0.7848); of pairs that it leaves unconnected the true one is "
        "0.01 in size",
    ):  # fmt: skip
        assert words in text, words


def test_the_connector_stands_beside_its_baselines(page):
    text = Reader(page).text
    heads = (
        "connector mean of each output E2 W D1 of the layer between best input the one most "
        "correlated ridge regression on all inputs"
    )
    assert heads in text
    (fvu,) = re.findall(r"over outputs that are alive (.*?) an output's variance", text)
    assert fvu.split()[0::4] == ["0.41", "1.01", "7.25", "0.85", "0.35"]
    assert fvu.split()[1:4] == ["0.39", "to", "0.43"]
    assert "weights above 0.1 in magnitude 128 0 128 128 128" in text


def test_figures_are_drawn_of_what_there_is(page, tmp_path):
    ids = [attrs["id"] for tag, attrs in Reader(page).tags if tag == "figure"]
    assert ids == ["w1-explained", "w1-weights", "w1-effects"]
    exhibit = bare(tmp_path / "run", curves=tmp_path / "metrics.jsonl")
    lines = ({"step": i, "rows": 1024 * i, "recon": 3 / i, "fvu": 1 / i, "weights": 4.0, "lr": 1e-3}
             for i in range(1, 9))  # fmt: skip
    exhibit.curves.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (drawn,) = ConnectorExhibit.part([exhibit]).runs
    assert not drawn["figures"]
    assert [*drawn["curves"]] == ["w1-recon", "w1-fvu", "w1-weights"]


def test_relations_stand_by_kind_with_the_words_of_their_features(exhibit, page):
    tables = ConnectorExhibit.part([exhibit]).runs[0]["relations"]
    assert [(t.title, len(t.rows)) for t in tables] == [("OR", 2), ("AND NOT", 1), ("AND", 1)]
    relation = exhibit.connections.reading.relations[1]
    row = tables[1].rows[0]
    assert [named.index for named in (row.output, *row.inputs)] == [
        relation.output, relation.a, relation.b,
    ]  # fmt: skip
    assert row.output.link == f"#output={relation.output}"
    assert row.inputs[1].weight.startswith("-")
    assert row.output.words == exhibit.connections.target.peaks(relation.output)
    assert row.inputs[0].words == exhibit.connections.source.peaks(relation.a)
    assert row.cells == [("85 %", "412"), ("2.08 %", "96"), ("4.93 %", "203"), ("0.12 %", "10,000")]
    assert "AND NOT: the first input, unless the second is active" in Reader(page).text
    few = relation_tables(replace(exhibit.connections, outputs=(20,)), link="#output=")
    links = [row.output.link for table in few for row in table.rows]
    assert links == ["#output=20", "", "", ""], "no link to what the page does not show"


def test_the_tokens_of_a_feature_are_those_it_fires_on_most(exhibit):
    source = exhibit.connections.source
    index, feature = next(iter(source.features.items()))
    strongest = [source.texts.alone(t).strip() for t in feature.top.tokens[:, BEFORE].tolist()]
    assert source.peaks(index) == list(dict.fromkeys(strongest))[:3]
    assert source.peaks(10**6) == []
    blanks = TokenTexts(lambda token: b" " * (token + 1))
    assert set(replace(source, texts=blanks).peaks(index)) <= {"␣", "␣␣", "␣␣␣"} | {
        f"{n}␣" for n in range(4, 40)
    }


def test_what_is_not_there_is_said_with_the_command_that_makes_it(tmp_path):
    exhibit = bare(tmp_path / "run", connections=None)
    page = render(view([exhibit]))
    text = Reader(page).text
    run = exhibit.path
    for command in (
        f"saepipe eval {run.name}", f"saepipe features {run.name}", "saepipe features reads",
        "saepipe features predicts",
    ):  # fmt: skip
        assert command in text
    assert data_of(page)["connectors"][0]["command"] == f"saepipe features {run.name}"
    links = {attrs.get("href") for tag, attrs in Reader(page).tags if tag == "a"}
    assert not links & {"#scores", "#logic"}


def test_several_connectors_have_a_row_each_and_share_their_baselines(exhibit):
    first = exhibit.evaluation
    maps = (make_map(fvu=0.5), *first.baselines)
    second = replace(first, maps=maps)
    names = {"a": "l1 = 0.01", "b": "l1 = 0.1", "c": ""}
    rows = main_rows(names, [first, second, None])
    assert [row.name for row in rows] == [
        *names, "baseline: mean", "baseline: E2 W D1", "baseline: best input", "baseline: ridge",
    ]  # fmt: skip
    fvus = [row.cells[0].value for row in rows]
    assert fvus == ["0.41", "0.5", "", "1.01", "7.25", "0.85", "0.35"]
    assert [row.note for row in rows[:3]] == list(names.values())
    assert {len(row.cells) for row in rows} == {len(main_heads([first]))}
    elsewhere = replace(second, text="elsewhere")
    assert len(main_rows(names, [first, elsewhere, None])) == 3, "baselines of two texts differ"


def test_several_connectors_stand_against_each_other(exhibit, tmp_path):
    names = [*frontier_drawings([exhibit.evaluation] * 2)]
    assert names == ["weights-fvu", "weights-recovered"]
    assert frontier_drawings([exhibit.evaluation]) == {}
    made = ConnectorExhibit.part([bare(tmp_path / name) for name in ("c", "d")])
    assert made.runs[1]["relations"][0].rows[0].output.link == "#connector=2&output=20"
    assert list(made.sections) == ["connectors", "logic", "connections"]


def test_an_interval_stands_below_its_number_and_no_other():
    interval = Interval(metric="loss_recovered", low=0.7, high=0.8)
    groups = map_groups(make_report(maps=(make_map(intervals=(interval,)),)))
    cells = {row.name: row.cells[0] for group in groups for row in group.rows}
    assert cells["loss recovered"].interval == "0.7 to 0.8"
    assert cells["FVU"].interval == ""
    weights = cells["an output's weights above 0.1"]
    assert (weights.value, weights.interval) == ("1.5", "0 to 6")


def test_a_linear_map_without_bias_is_said_to_be_one(exhibit):
    config = replace(exhibit.run.config, activation="linear", bias=False, proximal=False)
    facts = replace(exhibit, run=replace(exhibit.run, config=config)).facts
    assert (facts["map"], facts["penalty"]) == ("z2 = z1 W", "0.01 Σ|W|, by gradient")


def test_hostile_texts_stay_texts_wherever_they_stand(exhibit):
    connections = make_connections(
        make_reading(exhibit.run, effects=None, notes=HOSTILE), tokens=range(len(VOCABULARY))
    )
    report = replace(exhibit.evaluation, notes=HOSTILE, text="".join(HOSTILE))
    name = "<script>run</script>\u202e"
    page = render(view([replace(exhibit, connections=connections, evaluation=report, name=name)]))
    reader = Reader(page)
    assert [attrs.get("type") for tag, attrs in reader.tags if tag == "script"] == [
        "application/json", None,
    ]  # fmt: skip
    assert not {tag for tag, _ in reader.tags} & {"img", "b", "iframe", "object", "form", "base"}
    for _, attrs in reader.tags:
        assert not [n for n in attrs if n.startswith("on") or n == "style"]
    assert "<script>window.pwned = 1</script>" in reader.text
    raw = page.decode()
    for hidden in "\x00\x07\x1b\u202e\u2066\u200f\u2028":
        assert hidden not in raw


def test_a_page_of_200_outputs_is_smaller_than_5_mb(tmp_path):
    exhibit = bare(tmp_path / "run")
    n, n_terms = 40, 9
    equations = list[Equation]()
    for i in range(n):  # as if no two outputs shared an input
        equation = make_equation(1000 + i, n_adding=6, n_subtracting=3)
        terms = tuple(replace(t, feature=n_terms * i + j) for j, t in enumerate(equation.terms))
        equations.append(replace(equation, adding=terms[:6], subtracting=terms[6:]))
    reading = make_reading(exhibit.run, n=0, equations=tuple(equations), relations=())
    connections = make_connections(reading, tokens=range(len(VOCABULARY)))
    assert len(connections.source.features) == n * n_terms
    page = render(view([replace(exhibit, connections=connections)]))
    assert len(page) * 200 / n < 4.7e6, "figures are another 0.2 MB"


# --- from and to the disk --------------------------------------------------------------------


def test_a_page_is_written_about_connectors_and_autoencoders_alike(tmp_path):
    run = make_connector_run(tmp_path / "map")
    save_connector_report(make_report(run.path))
    save_reading(make_reading(run))
    coder = make_run(tmp_path / "coder")
    out = write_page(ReportConfig(runs=(coder, tmp_path / "map"), out=tmp_path / "page.html"))
    data = data_of(out.read_bytes())
    assert [one["name"] for one in data["connectors"]] == ["map"]
    assert [one["name"] for one in data["runs"]] == ["coder"]
    assert len(data["connectors"][0]["items"]) == 12
    assert data["connectors"][0]["inputs"] == {}, "nobody collected features"
    text = Reader(out.read_bytes()).text
    assert "saepipe eval coder" in text
    assert "saepipe eval map" not in text
    assert str(tmp_path) not in out.read_text()


def test_a_connector_that_was_read_stands_with_the_examples_of_its_autoencoders(tmp_path):
    world = make_world(tmp_path)
    ends = tuple(
        world.run(name, site=site) for name, site in (("first", SITES[0]), ("second", SITES[3]))
    )
    path = tmp_path / "connector"
    run = connect(world.store, ends, path)
    reading = read_connector(ReadingConfig(run=path, n_outputs=2, device="cpu"))
    (exhibit,) = gather([path], n_features=5)
    connections = exhibit.connections
    assert len(connections.outputs) == 5
    assert set(connections.target.features) == set(connections.outputs)
    wanted = {t.feature for o in connections.outputs for t in reading.equation(o).terms}
    assert set(connections.source.features) == wanted
    data = data_of(write_page(ReportConfig(runs=(path,), out=tmp_path / "page.html")).read_bytes())
    first = data["connectors"][0]["items"][0]
    assert first["top"]
    assert first["index"] == reading.equation(first["index"]).output
    changed = replace(run, target=replace(run.target, sha256="0" * 64))
    other = replace(reading, config=replace(reading.config, run=path), target=changed.target)
    save_reading(other)
    (exhibit,) = gather([path], n_features=5)
    assert exhibit.connections.source.features
    assert not exhibit.connections.target.features, "those are of other weights"


def test_what_was_found_of_another_connector_is_not_shown(tmp_path):
    run = make_connector_run(tmp_path / "map")
    for sha256, there in ((run.sha256, True), ("", True), ("0" * 64, False)):
        save_connector_report(make_report(run.path, sha256=sha256))
        assert (load_connector_report(run.path) is not None) == there
    for sha256 in (run.sha256, "0" * 64):
        save_reading(make_reading(run, connector=sha256))
        (exhibit,) = gather([run.path], n_features=5)
        assert (exhibit.connections is not None) == (sha256 == run.sha256)
