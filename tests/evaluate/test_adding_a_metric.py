"""What adding a metric takes: one entry. Reports of before and of after it open all the same."""

import copy
import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config.serialization import to_json
from pipeline.errors import CheckpointError
from pipeline.evaluate.metrics import METRICS, OfSums, ratio
from pipeline.evaluate.report import EVAL_FILE, EvalReport, load_report, save_report, write_table
from pipeline.plots.evaluation import save_figures, save_frontier
from pipeline.report.saes import SAEExhibit
from pipeline.report.tables import main_heads, main_rows, metric_groups
from pipeline.terminal.evaluations import eval_tables, metric_facts
from pipeline.terminal.screen import Screen
from tests.helpers.eval_reports import changed, make_report
from tests.helpers.pages import make_exhibit, make_run

GOLDEN = Path(__file__).parents[1] / "golden/eval.json"


@pytest.fixture
def toy(monkeypatch) -> OfSums:
    """A metric that nobody else knows of."""
    metric = OfSums(
        name="toy", section="Sparsity", words="mean active value", definition="L1 / L0",
        heading="active\nvalue", main=True, interval=True,
        formula=lambda s: ratio(s["l1"], s["l0"]),
    )  # fmt: skip
    monkeypatch.setitem(METRICS, metric.name, metric)
    return metric


def opened(folder: Path, **changes: object) -> EvalReport:
    """The report of the golden file, with other values in it."""
    folder.mkdir(exist_ok=True)
    document = json.loads(GOLDEN.read_text()) | changes
    (folder / EVAL_FILE).write_text(json.dumps(document))
    report = load_report(folder)
    assert report is not None
    return report


def terminal(capsys, *reports: EvalReport) -> str:
    screen = Screen()
    for table in eval_tables(reports):
        screen.draw(table)
    return capsys.readouterr().out


def row_of(text: str, start: str) -> list[str]:
    (line,) = [line.strip("│ ") for line in text.splitlines() if line.strip("│ ").startswith(start)]
    return line.removeprefix(start).strip("│ ").split(maxsplit=1)


def table_of(folder: Path, *reports: EvalReport) -> list[dict[str, str]]:
    write_table(reports, folder / "eval.csv")
    with (folder / "eval.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def page_rows(report: EvalReport) -> dict[str, tuple[str, str, str]]:
    """Of each row of the page's table: what is said of it, its value, its interval."""
    rows = [row for group in metric_groups([report]) for row in group.rows]
    return {row.name: (row.note, row.cells[0].value, row.cells[0].interval) for row in rows}


def test_a_metric_of_one_entry_is_in_the_report_and_in_every_table(evals, toy, tmp_path, capsys):
    (report,) = evals.reports(evals.save())
    assert report.toy == pytest.approx(report.l1 / report.l0, rel=1e-12)
    (interval,) = [one for one in report.intervals if one.metric == "toy"]
    assert interval.low < report.toy < interval.high
    assert json.loads(save_report(report).read_text())["toy"] == to_json(report)["toy"]
    assert load_report(report.run) == report

    (line,) = table_of(tmp_path, report)
    assert [float(line[name]) for name in ("toy", "toy_low", "toy_high")] == [
        report.toy, interval.low, interval.high,
    ]  # fmt: skip
    value, bounds = row_of(terminal(capsys, report), toy.words)
    assert value == metric_facts(report)[toy.words] == f"{report.toy:.4f}"
    assert bounds == f"[{interval.low:.3f}..{interval.high:.3f}]"
    many = terminal(capsys, *(replace(report, run=Path(name), overlaps=()) for name in "abcd"))
    assert many.count(f"{report.toy:.4f}") == 4

    bounds = f"{interval.low:.4g} to {interval.high:.4g}"
    assert page_rows(report)[toy.words] == ("L1 / L0", f"{report.toy:.4g}", bounds)
    (row,) = main_rows(["a"], [report])
    assert row.cells[main_heads().index((toy.words, ""))].interval == bounds


def test_the_golden_evaluation_opens_and_is_written_as_it_was(tmp_path):
    report = opened(tmp_path)
    document = json.loads(GOLDEN.read_text())
    overlaps = [{**o, "run": str(tmp_path / o["run"])} for o in document["overlaps"]]
    said_since = {"run": str(tmp_path), "overlaps": overlaps, "sha256": ""}
    assert to_json(report) == document | said_since
    since = {"ce_added", "dead_cosine_others", "dead_cosine_chance"}
    assert METRICS.keys() - since == report.metrics.keys()
    assert all(getattr(report, name) == document.get(name) for name in METRICS)
    assert isinstance(report.n_dead, int)


def test_an_evaluation_of_before_a_metric_opens_and_shows_that_it_lacks_it(toy, tmp_path, capsys):
    report = opened(tmp_path / "old")
    assert "toy" not in report.metrics
    assert report.toy is None
    assert row_of(terminal(capsys, report), toy.words) == ["-"]
    assert page_rows(report)[toy.words][1:] == ("-", "")
    assert metric_facts(report)[toy.words] == "-"
    new = changed(report, toy=0.5)
    assert [line["toy"] for line in table_of(tmp_path, report, new)] == ["", "0.5"]
    assert to_json(report).keys() - {"sha256"} == json.loads(GOLDEN.read_text()).keys()


def test_an_evaluation_of_after_a_metric_opens_and_keeps_it(tmp_path, capsys):
    report = opened(tmp_path, of_later=0.25, count_of_later=3, none_of_later=None)
    assert (report.of_later, report.count_of_later, report.none_of_later) == (0.25, 3, None)
    save_report(report)
    assert load_report(tmp_path) == report
    assert table_of(tmp_path, make_report(), report)[1]["of_later"] == "0.25"
    assert "of_later" not in terminal(capsys, report)  # nobody knows what it is


@pytest.mark.parametrize("value", ["0.5", True, [0.5], {"kl": 0.5}, float("nan")])
@pytest.mark.parametrize("name", ["of_later", "metrics", "kl"])
def test_what_is_neither_a_field_nor_a_number_is_refused(tmp_path, name, value):
    with pytest.raises(CheckpointError, match="not a report that this version can read"):
        opened(tmp_path, **{name: value})


def test_a_report_without_any_metric_is_shown_all_the_same(tmp_path, capsys):
    whole = opened(make_run(tmp_path / "run"))
    report = replace(whole, metrics={}, intervals=())
    assert row_of(terminal(capsys, report), "explained variance") == ["-"]
    assert {page_rows(report)[metric.words][1] for metric in METRICS.values()} == {"-"}
    exhibit = make_exhibit(report.run, evaluation=report)
    assert {tile.value for tile in exhibit.tiles} == {"-"}


@pytest.mark.slow
def test_a_report_without_any_metric_is_drawn_all_the_same(tmp_path):
    whole = opened(make_run(tmp_path / "run"))
    report = replace(whole, metrics={}, intervals=())
    exhibit = make_exhibit(report.run, evaluation=report)
    assert SAEExhibit.part([exhibit, exhibit]).frontier is not None
    drawn = save_figures(report) + save_frontier([report, whole], tmp_path)
    assert drawn and all(path.exists() for path in drawn)


def test_metrics_are_attributes_of_a_report_and_of_its_copies():
    report = make_report(kl=0.125)
    for same in (copy.copy(report), copy.deepcopy(report), pickle.loads(pickle.dumps(report))):
        assert same == report
        assert same.kl == 0.125
        assert hash(same) == hash(report)
    assert {*METRICS, "run", "density"} <= set(dir(report))
    assert report != changed(report, kl=0.25)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("loss_recoverd", "did you mean 'loss_recovered'"), ("densities", "'density'"), ("x", "dir")],
)
def test_a_name_that_no_metric_has_is_an_error_in_one_line(name, hint):
    with pytest.raises(AttributeError, match=f"an evaluation has no '{name}': .*{hint}") as error:
        getattr(make_report(), name)
    assert "\n" not in str(error.value)
    assert not hasattr(make_report(), "__array__")
