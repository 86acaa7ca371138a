"""The script for a GPU, tried without one; its numbers mean nothing here."""

import json
import time

import pytest
import torch

from pipeline.sae.kernels import kernels_for
from tests.gpu import run as script
from tests.gpu.cells import REAL, TOY, WAYS, Bench, Cell, Skipped, Told, cells_of
from tests.gpu.roofline import floor, moved, operations
from tests.gpu.told import TABLES, Line, lines_of, tell

FEW = (
    "step batchtopk d32 F64 B64 bf16",
    "break",
    "launches jumprelu",
    "fed topk",
    "harvest toy",
    "finetune toy 4bit",
    "evaluate",
)


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(device=torch.device("cpu"), sizes=TOY, folder=tmp_path)


def cell(name, run, *, limit=5.0, table="large") -> Cell:
    return Cell(name=name, table=table, limit=limit, run=run)


def written(cells, bench, *, budget=60.0) -> list[Line]:
    path = bench.folder / "lines.jsonl"
    script.run(cells, bench, script.Lines(path), budget=budget)
    return lines_of(path)


def test_some_cells_of_each_kind_run_at_toy_sizes(bench):
    few = [cell for cell in cells_of(TOY) if cell.name.startswith(FEW)]
    lines = written(few, bench)
    assert [line["cell"] for line in lines] == [cell.name for cell in few]
    assert not [line for line in lines if "error" in line]
    step, even, launches, fed, harvest, tuned, again, evaluated = lines
    assert step["seconds"] > 0
    assert step["plain_by_ours"] > 0
    assert step["sparse"] == (kernels_for(bench.device) is not None)
    assert step["sparse"] == ("seconds" in even)
    assert launches["operators"] > 20
    assert fed["ratio"] > 0
    assert harvest["tokens"] == 2048
    assert 0 < again["planned_bytes"] < tuned["planned_bytes"] + 2**26  # with Python's own
    assert evaluated["tokens"] > 500
    assert tell(bench.folder / "lines.jsonl").count("\n## ") == 6


def test_a_line_is_written_before_the_next_cell_begins(bench):
    seen = []

    def look(bench: Bench) -> Told:
        seen.append([line["cell"] for line in lines_of(bench.folder / "lines.jsonl")])
        return {}

    written([cell("a", look), cell("b", look), cell("c", look)], bench)
    assert seen == [[], ["a"], ["a", "b"]]


def test_a_cell_that_raises_or_takes_too_long_is_a_line_and_the_next_goes_on(bench):
    def fails(bench: Bench) -> Told:
        raise torch.OutOfMemoryError("tried to\nallocate")

    def skips(bench: Bench) -> Told:
        raise Skipped("nothing to do")

    def sleeps(bench: Bench) -> Told:
        time.sleep(60)
        return {}

    cells = [cell("f", fails), cell("s", skips), cell("t", sleeps, limit=0.2), cell("g", dict_of)]
    failed, skipped, late, good = written(cells, bench)
    assert failed["error"] == "OutOfMemoryError: tried to allocate"
    assert skipped["skipped"] == "nothing to do"
    assert late["error"].startswith("TimeoutError: ")
    assert good["value"] == 1


def dict_of(bench: Bench) -> Told:
    return {"value": 1}


def test_what_no_longer_fits_into_the_budget_is_named(bench, monkeypatch):
    monkeypatch.setattr(script, "LEAST", 0.5)

    def slow(bench: Bench) -> Told:
        time.sleep(60)
        return {}

    start = time.monotonic()
    lines = written([cell("a", slow, limit=60), cell("b", dict_of)], bench, budget=1.0)
    assert time.monotonic() - start < 30  # of the 60 that it would take
    assert "error" in lines[0]
    assert lines[1] == {"cell": "b", "table": "large", "left_out": "the budget was spent"}


def test_a_file_that_was_cut_off_in_a_line_is_told(tmp_path):
    path = tmp_path / "cut.jsonl"
    lines = [
        {"table": "about", "device": "H100", "torch": "2.11", "date": "2026-01-01"},
        {"table": "fed", "cell": "fed", "way": "topk", "d": 8, "F": 64, "B": 4, "ratio": 0.5,
         "memory_seconds": 1e-3, "store_seconds": 2e-3, "store_rows_per_s": 2e3},
        {"table": "steps", "cell": "step x", "error": "OutOfMemoryError: a | b"},
        {"table": "harvest", "cell": "harvest", "model": "160m"},
    ]  # fmt: skip
    text = "\n".join(map(json.dumps, lines))
    path.write_text(text[:-9])
    told = tell(path)
    assert told.startswith("device H100 · torch 2.11 · date 2026-01-01")
    assert "| topk | 8 | 64 | 4 | 1.00 | 2.00 | 2,000 | 0.50 |" in told
    assert "* step x: error, OutOfMemoryError: a | b" in told
    assert "160m" not in told
    for end in range(len(text)):
        path.write_text(text[:end])
        tell(path)


def test_the_command_tells_a_file_and_takes_the_place_of_none(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{"table": "about", "device": "H100"}\n')
    script.main(["--tell", str(path)])
    assert capsys.readouterr().out == "device H100\n"
    with pytest.raises(SystemExit, match="is there already: choose another --out"):
        script.main(["--toy", "--out", str(path)])


def test_a_run_that_is_interrupted_tells_what_it_has(tmp_path, capsys, monkeypatch):
    def stop(bench: Bench) -> Told:
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "cells_of", lambda _: [cell("a", dict_of), cell("b", stop)])
    path = tmp_path / "b.jsonl"
    with pytest.raises(KeyboardInterrupt):
        script.main(["--toy", "--out", str(path)])
    assert "| a | value 1 |" in capsys.readouterr().out
    about, line = lines_of(path)
    assert (about["toy"], line["value"]) == (True, 1)


def test_every_cell_has_a_name_and_a_table_of_its_own():
    for sizes in (TOY, REAL):
        cells = cells_of(sizes)
        names = [cell.name for cell in cells]
        assert len({*names}) == len(names)
        assert cells[0].name == "pytest -m gpu"
    tables = {cell.table for cell in cells_of(REAL)}
    assert tables == TABLES.keys()
    assert len(REAL.shapes) == len({*REAL.shapes}) == 12
    assert {*WAYS} >= {"topk", "batchtopk", "relu", "jumprelu"}


def test_the_floor_counts_products_and_bytes():
    B, d, F = 8, 4, 16
    assert operations(B, d, F, pairs=None, width=2) == 5 * 2 * B * F * d
    assert operations(B, d, F, pairs=6, width=4) == 2 * B * F * d + 8 * 6 * d
    assert operations(B, d, F, pairs=6, width=2) == 2 * B * F * d + 10 * 6 * d
    whole = moved(B, d, F, pairs=None, width=2, kind="jumprelu")
    assert whole == 130 * F * d + 28 * 2 * B * F
    assert moved(B, d, F, pairs=None, width=4, kind="relu") == 112 * F * d + 15 * 4 * B * F
    alone = moved(B, d, F, pairs=6, width=2, kind="relu")
    assert alone == 110 * F * d + 2 * 2 * B * F + 28 * 6 * d
    assert floor(
        B, d, F, pairs=None, width=2, kind="jumprelu", rate=1e3, copy=1e6
    ) == pytest.approx(5.12 + whole / 1e6)
