"""What a cell of a notebook ends in: stores, runs, evaluations and pages as tables."""

import shutil
from pathlib import Path

import pytest

from actstore.reader import ActStore
from pipeline.evaluate.report import Interval
from pipeline.report.page import ReportSummary
from pipeline.runs.sae_run import SAERun
from pipeline.tables import Column, Table, Words, as_html
from tests.golden.make_store import OLD
from tests.helpers.eval_reports import changed, make_report
from tests.helpers.reading_pages import Reader
from tests.helpers.stores import make_spec, write_store

HOSTILE = "<script>alert(1)&amp;"


def shown(what) -> Reader:
    reader = Reader(what._repr_html_().encode())
    assert "script" not in {tag for tag, _ in reader.tags}
    return reader


@pytest.fixture
def run(tmp_path) -> SAERun:
    return SAERun.open(shutil.copytree(OLD.parent / "runs" / "read", tmp_path / HOSTILE[:8]))


def test_a_store_says_what_it_holds_and_where_from(tmp_path):
    path = write_store(tmp_path / "s", make_spec(source={"model": HOSTILE}), n_rows=64)
    reader = shown(ActStore.open(path))
    for words in ("64, in contexts of 8 tokens", "mlp_out.1 (16 wide)", HOSTILE, str(path)):
        assert words in reader.text


def test_a_run_says_where_it_ended_and_shows_its_curves_where_they_are_drawn(run):
    reader = shown(run)
    assert repr(run) in reader.text
    assert str(run.metrics["step"]) in reader.text
    assert "img" not in {tag for tag, _ in reader.tags}
    (run.path / "curves.png").write_bytes(b"\x89PNG")
    (image,) = (told for tag, told in shown(run).tags if tag == "img")
    assert dict(image)["src"] == "data:image/png;base64,iVBORw=="
    (run.path / "metrics.jsonl").unlink()
    assert repr(run) in shown(run).text


def test_an_evaluation_shows_its_metrics_with_their_intervals():
    report = make_report(Path(HOSTILE))
    bounded = changed(report, intervals=(Interval(metric="l0", low=32.1, high=32.4),), kl=None)
    reader = shown(bounded)
    for words in ("loss added", "0.0411", "32.2500", "32.1 to 32.4", f"{HOSTILE} on 40,064"):
        assert words in reader.text


def test_a_page_is_a_link_to_it(tmp_path):
    page = ReportSummary(path=tmp_path / "a b.html", made=(), notes=(HOSTILE,))
    reader = shown(page)
    ((_, told),) = reader.tags
    assert dict(told)["href"] == (tmp_path / "a b.html").as_uri()
    assert HOSTILE in reader.text


def test_a_table_is_its_cells_by_their_columns():
    table = Table(
        title="t", columns=[Column(head="a"), Column(align="right")],
        sections=[[["x", Words(pieces=[("y", ""), ("z", "red")])]], [["<", "1"]]],
    )  # fmt: skip
    left, right = '<td style="text-align: left">', '<td style="text-align: right">'
    assert as_html(table) == (
        '<table><caption>t</caption><tr><th style="text-align: left">a</th>'
        f'<th style="text-align: right"></th></tr><tr>{left}x</td>{right}yz</td></tr>'
        f"<tr>{left}&lt;</td>{right}1</td></tr></table>"
    )
