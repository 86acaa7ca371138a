"""Words, lines and tables, as people see them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from actstore.verify import Finding
from pipeline.evaluate.metrics import METRICS
from pipeline.evaluate.report import EvalReport, Interval, Overlap
from pipeline.progress import duration, size
from pipeline.runs.kinds import kind_named
from pipeline.tables import many
from pipeline.terminal.commands import notes_by_run
from pipeline.terminal.evaluations import eval_tables, metric_facts
from pipeline.terminal.lines import curve_words, outcome_line, together_line
from pipeline.terminal.screen import Screen
from pipeline.terminal.store import damage_words, finding_line, rows_lost
from tests.helpers.eval_reports import changed, make_report, with_everything
from tests.helpers.training import make_report as make_line


@pytest.mark.parametrize(
    ("told", "words"),
    [
        (size(999), "999B"),
        (size(1_234_567), "1.23MB"),
        (size(999_700), "1MB"),
        (size(74.8e9), "74.8GB"),
        (duration(89), "89 s"),
        (duration(600), "10 min"),
        (duration(7200), "2.0 h"),
        (many(1, "shard"), "1 shard"),
        (many(1000, "row"), "1,000 rows"),
    ],
)
def test_numbers_are_told_as_people_tell_them(told, words):
    assert told == words


def finding(*, rows: tuple[int, int] | None, shard: int | None = 0) -> Finding:
    return Finding(path=Path("s/c/0"), what="it is missing", array="x", shard=shard, rows=rows)


@pytest.mark.parametrize(
    ("rows", "lost"),
    [
        ([], 0),
        ([(0, 8), (8, 16)], 16),
        ([(0, 64), (8, 16), (0, 64)], 64),
        ([(32, 40), (0, 8), (4, 36)], 40),
    ],
)
def test_a_row_that_several_findings_name_is_lost_once(rows, lost):
    assert rows_lost([finding(rows=r) for r in rows]) == lost


def test_damage_outside_of_rows_is_told_as_such():
    journal = Finding(path=Path("s/journal.jsonl"), what="it is missing")
    assert damage_words([journal]) == "1 finding, none of them in rows"
    assert finding_line(journal) == "store: it is missing (s/journal.jsonl)"


def test_a_file_is_named_once():
    told = Finding(path=Path("s/zarr.json"), what="s/zarr.json was altered", array="x")
    assert finding_line(told) == "x: s/zarr.json was altered"


def test_where_several_evaluations_are_is_told_without_figures_too():
    line = together_line(kind_named("sae"), 4, [], Path("runs/sweep"))
    assert line == "eval      4 runs: runs/sweep/eval.csv"


def test_what_looks_like_markup_is_shown_as_it_is(capsys):
    screen = Screen()
    screen.say("model [bold]x[/bold]")
    screen.show("[red]title", {"name": "[green]value"})
    out = capsys.readouterr().out
    for text in ("model [bold]x[/bold]", "[red]title", "[green]value"):
        assert text in out


def test_json_goes_where_it_was_asked_for_and_is_whole(tmp_path, capsys):
    screen = Screen(json=str(tmp_path / "out.json"))
    screen.emit({"path": tmp_path, "rows": (1, 2)})
    screen.say("for people")
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "path": str(tmp_path),
        "rows": [1, 2],
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert capsys.readouterr().out == "for people\n"
    beside = Screen(json="-")
    beside.say("for people")
    beside.emit([None])
    assert capsys.readouterr() == ("[\n null\n]\n", "for people\n")


def shown(capsys, *reports) -> str:
    """The tables of an evaluation in 80 columns, as in a pipe."""
    screen = Screen()
    for table in eval_tables(reports):
        screen.draw(table)
    return capsys.readouterr().out


def line_of(text: str, start: str) -> str:
    (line,) = [line for line in text.splitlines() if line.strip("│ ").startswith(start)]
    return line


def test_an_evaluation_shows_every_metric_it_has(capsys):
    report = make_report()
    text = shown(capsys, report)
    for metric in METRICS.values():
        assert metric.words in text
    assert "builtin on builtin@heldout, 40,064 tokens" in text
    assert "31 [20 .. 51]" in line_of(text, "L0, median")
    assert "0.4417" in line_of(text, "max cosine")
    assert "0.5800" in line_of(text, "perplexity added")
    assert "3.1e-05" in line_of(text, "mean squared error")  # not 0.0000
    assert max(map(len, text.splitlines())) <= 80


def test_the_facts_of_an_evaluation_are_its_metrics_by_their_words():
    told = metric_facts(make_report())
    assert told["L0"] == "32.2500"
    assert told["loss recovered"] == "0.9346"
    assert told["share of dead features"] == "12.5 %"
    assert len(told) == len(METRICS)


def test_a_lone_run_shows_all_its_intervals(capsys):
    intervals = (
        Interval(metric="loss_recovered", low=0.93123, high=0.93771),
        Interval(metric="l0", low=31.9, high=32.61),
        Interval(metric="mse", low=2.95e-5, high=3.2e-5),
    )
    text = shown(capsys, make_report(intervals=intervals))
    assert "0.9346 [0.931..0.938]" in text
    assert "32.2500 [31.900..32.610]" in text
    assert "3.1e-05 [2.95e-05..3.2e-05]" in text


def test_runs_side_by_side_show_the_interval_of_the_loss_added_alone(capsys):
    intervals = (
        Interval(metric="ce_added", low=0.0333, high=0.0492),
        Interval(metric="l0", low=31.9, high=32.6),
    )
    runs = [make_report(Path(name), intervals=intervals) for name in ("a", "b", "c")]
    text = shown(capsys, *runs)
    assert text.count("[0.033..0.049]") == 3
    assert "31.900" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_many_runs_have_a_line_each(capsys):
    runs = [make_report(Path(f"sweep/k={k}"), l0=float(k)) for k in (8, 16, 32, 64)]
    text = shown(capsys, *runs, changed(runs[0], run=Path("x/k=8"), loss_recovered=None))
    assert "16.0" in line_of(text, "sweep/k=16").split()
    assert "-" in line_of(text, "x/k=8").split()
    assert max(map(len, text.splitlines())) <= 80


def of_sweep(name: str, **fields: object) -> EvalReport:
    interval = Interval(metric="ce_added", low=0.0333, high=0.0492)
    return make_report(Path("sweep", name), intervals=(interval,), **fields)


def test_a_sweep_says_once_what_its_runs_share_and_breaks_no_line(capsys):
    kinds = ("batchtopk", "jumprelu")
    runs = [of_sweep(f"{arch}+l0={k}+lr=1", arch=arch) for arch in kinds for k in (8, 16)]
    text = shown(capsys, *runs)
    assert text.count("mlp_out.2") == text.count("lr=1") == 1
    assert "all runs: mlp_out.2, lr=1" in text
    numbers = "0.0411 [0.033..0.049] 0.9346 0.0391 0.8117 32.2 8"
    assert " ".join(line_of(text, "jumprelu, l0=16").split()) == f"jumprelu, l0=16 {numbers}"
    assert len(text.splitlines()) == 2 + 2 + 4  # title, heads, runs


def test_what_a_name_does_not_say_stands_below_it_and_nothing_twice(capsys):
    runs = [of_sweep(f"{site},l0=8", site=site) for site in ("mlp_out.1", "mlp_out.2")]
    text = shown(capsys, *runs)
    assert "all runs: topk, l0=8" in text
    assert text.count("mlp_out.1") == text.count("mlp_out.2") == 1
    text = shown(capsys, *runs, make_report(Path("third"), arch="relu", site="x.3"))
    assert text.count("relu x.3") == text.count("third") == 1
    assert text.count("topk") == 2


def test_a_note_on_some_runs_names_them(capsys):
    reports = [of_sweep("a", notes=("both", "own")), of_sweep("b", notes=("both",))]
    Screen().note(notes_by_run(reports))
    Screen().note(notes_by_run(reports[:1]))
    assert capsys.readouterr().out.splitlines() == [
        "note: both", "note: a: own", "note: both", "note: own",
    ]  # fmt: skip


def test_a_note_on_many_runs_is_one_that_names_some():
    reports = [of_sweep(name, notes=("dead",) if name != "a" else ()) for name in "abcdef"]
    assert [*notes_by_run(reports)] == ["b, c, d, 2 more: dead"]
    assert [*notes_by_run(reports[:3])] == ["b, c: dead"]


def test_runs_of_several_models_and_texts_do_not_seem_to_be_of_one(capsys):
    other = make_report(Path("b"), model="elsewhere", n_tokens=99)
    text = shown(capsys, make_report(Path("a")), other)
    assert "2 models on builtin@heldout, 99 to 40,064 tokens" in text


def test_layers_and_the_worst_contexts_have_tables_whose_texts_do_nothing(capsys):
    text = shown(capsys, with_everything())
    assert "+1.4769" in line_of(text, "mlp_out.1")
    assert "+0.0411" in line_of(text, "mlp_out.2")
    worst = line_of(text, "17")
    numbers = [word for word in worst.split() if word not in "│"]
    assert numbers[:4] == ["17", "2.5000", "3.5000", "1.0000"]
    assert numbers[4].startswith("two")
    for harmful in ("\x1b[31m", "\u202e", "\nlines"):
        assert harmful not in text


def test_long_contexts_are_cut_to_the_width(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    report = with_everything()
    long = replace(report.worst[0], text="word " * 300)
    text = shown(capsys, replace(report, worst=(long,)))
    assert max(map(len, text.splitlines())) <= 80
    assert "word word" in line_of(text, "17")


def test_each_dictionary_is_compared_with_each_other_one(capsys):
    paths = [Path("a"), Path("b"), Path("c")]
    runs = [
        make_report(one, overlaps=tuple(
            Overlap(run=other, mmcs=0.1 * i + 0.01 * j)
            for j, other in enumerate(paths) if other != one
        ))
        for i, one in enumerate(paths)
    ]  # fmt: skip
    text = shown(capsys, *runs)
    cells = [word for word in line_of(text, "2 b").split() if word not in "│"]
    assert cells == ["2", "b", "0.100", "-", "0.120"]


def test_names_that_look_like_markup_are_shown_as_they_are(capsys):
    text = shown(capsys, replace(with_everything(Path("[red]a")), site="[b]"))
    assert "[red]a" in text
    assert "[b]" in text


def test_only_the_last_line_of_a_training_says_over_how_many_rows_latents_were_silent():
    report = make_line(Path("runs/a"), 9, n_dead=12, dead_over=6016)
    assert curve_words(report).endswith("dead 12")
    assert outcome_line(report, Path("runs/a")).endswith("dead 12 in the last 6,016 rows)")


def test_contexts_that_are_harmed_most_are_shown_of_a_lone_run(capsys):
    assert "harms most" in shown(capsys, with_everything())
    assert "harms most" not in shown(capsys, with_everything(), with_everything(Path("runs/b")))


def test_a_report_tells_dead_features_by_their_number():
    assert "dead features 8, on 40,064" in repr(make_report())
