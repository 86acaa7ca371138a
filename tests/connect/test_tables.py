"""Connectors evaluated, as people see them in 80 columns."""

from dataclasses import replace
from pathlib import Path

from pipeline.connect.tables import connector_tables
from pipeline.terminal.screen import Screen
from tests.helpers.connector_reports import make_map, make_report, make_sweep


def shown(capsys, *reports) -> str:
    screen = Screen()
    for table in connector_tables(reports):
        screen.draw(table)
    return capsys.readouterr().out


def cells_of(text: str, name: str) -> list[str]:
    """What stands beside a name."""
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines()]
    (row,) = [row for row in rows if row[0] == name]
    return row[1:]


def test_a_connector_stands_beside_its_baselines(capsys):
    text = shown(capsys, make_report())
    heads = [cell.strip() for cell in text.splitlines()[1].split("┃")][1:]
    assert heads == ["connector", "mean", "E2 W D1", "best input", "ridge"]
    assert cells_of(text, "FVU") == ["0.4100", "1.0100", "7.2500", "0.8500", "0.3500"]
    assert cells_of(text, "weights > 0.1") == ["128", "0", "128", "128", "128"]
    assert cells_of(text, "loss recovered")[0] == "0.8000"
    assert cells_of(text, "median of outputs")[0] == "0.3000"
    lines = text.splitlines()
    at = next(i for i, line in enumerate(lines) if line.strip().startswith("loss recovered "))
    assert "0.7100" in lines[at + 1] and "0.8600" in lines[at + 2]
    assert cells_of(text, "loss, SAE spliced in (the ceiling)") == ["2.6000"]
    assert cells_of(text, "the MLP's weights > 0.1") == ["8,875 of 204,800"]
    assert "640 features of resid_pre.1, 16.0 active" in text
    assert max(map(len, lines)) <= 80


def test_a_ratio_that_would_divide_by_nothing_is_a_dash_and_no_mlp_has_no_line(capsys):
    scored = make_map(loss_recovered=None, recovered_of_sae=None, intervals=())
    text = shown(capsys, make_report(layer=None, maps=(scored,)))
    assert cells_of(text, "loss recovered") == cells_of(text, "of what the SAE does") == ["-"]
    assert "MLP" not in text


def test_of_several_each_has_a_line_and_the_baselines_come_once(capsys):
    reports = [*make_sweep(0.3, 0.5), *make_sweep(0.4, at=2)]
    reports[2] = replace(reports[2], run=Path("runs/other/l1=1"))
    text = shown(capsys, *reports)
    assert cells_of(text, "sweep/l1=2") == ["0.02", "0.5000", "2", "16", "0.8000", "0.8800"]
    assert cells_of(text, "other/l1=1")[1] == "0.4000"
    assert text.count("ridge") == text.count("best input") == 2  # once for each pair of SAEs
    assert max(map(len, text.splitlines())) <= 80


def test_long_names_and_such_as_look_like_markup_stand_as_they_are(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    reports = [make_report(Path(f"[bold]{name}[/bold]{'x' * 60}")) for name in "ab"]
    text = shown(capsys, *reports)
    assert "[bold]a[/bold]" in text and text.count("0.4100") == 2
    assert max(map(len, text.splitlines())) <= 80
