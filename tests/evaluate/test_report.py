"""Reports kept beside their runs, and many of them as one table."""

import csv
import json
from pathlib import Path

import pytest

from pipeline.config.serialization import located, portable, to_json
from pipeline.errors import CheckpointError, DataError
from pipeline.evaluate.report import EVAL_FILE, Interval, load_report, save_report, write_table
from pipeline.runs.names import middle_out, names_of
from pipeline.runs.sae_run import SAERun
from tests.helpers.eval_reports import make_report, with_everything
from tests.helpers.tiny import make_sae, save_sae


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_report_is_plain_json_with_a_field_a_line_and_is_loaded_equal(tmp_path):
    for report in (with_everything(tmp_path), make_report(tmp_path, dead_cosine=None, kl=0.0)):
        assert save_report(report) == tmp_path / EVAL_FILE
        assert load_report(tmp_path) == located(portable(report, tmp_path), tmp_path)
        text = (tmp_path / EVAL_FILE).read_text()
        assert json.loads(text) == json.loads(json.dumps(to_json(portable(report, tmp_path))))
        assert str(tmp_path) not in text
        assert len(text.splitlines()) == len(to_json(report)) + 2
    assert [path.name for path in tmp_path.iterdir()] == [EVAL_FILE]


def test_a_report_is_of_the_run_in_whose_folder_it_lies(tmp_path):
    assert load_report(tmp_path) is None
    (tmp_path / "a").mkdir()
    path = save_report(make_report(tmp_path / "a"))
    assert load_report(path) is None  # a file, no folder
    (tmp_path / "a").rename(tmp_path / "b")
    report = load_report(tmp_path / "b")
    assert report is not None
    assert report.run == tmp_path / "b"


DAMAGE = {
    "cut": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "list": lambda text: "[]",
    "null": lambda text: "null",
    "deep": lambda text: "[" * 100_000,
    "lacking": lambda text: text.replace('"density"', '"density_of_another_version"'),
    "no text": lambda text: '{"run": "\udcff"}',
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_report_is_refused_in_one_line_that_says_what_to_type(tmp_path, damage):
    path = save_report(with_everything(tmp_path))
    path.write_text(DAMAGE[damage](path.read_text()), errors="surrogateescape")
    with pytest.raises(CheckpointError) as error:
        load_report(tmp_path)
    message = str(error.value)
    assert message.startswith(f"{path} is not a report")
    assert message.endswith(f"saepipe eval {tmp_path}")
    assert "\n" not in message


def test_a_number_that_is_not_finite_is_not_written_and_the_last_report_stays(tmp_path):
    before = make_report(tmp_path)
    save_report(before)
    with pytest.raises(DataError, match="not finite"):
        save_report(make_report(tmp_path, encoder_decoder_cosine=(0.1, float("nan"))))
    assert load_report(tmp_path) == before


def test_the_table_has_a_line_a_run_and_every_single_value(tmp_path):
    paths = [tmp_path / "a", tmp_path / "b,c"]
    reports = [with_everything(paths[0]), make_report(paths[1], arch="relu", notes=("x", "y"))]
    write_table(reports, tmp_path / "eval.csv")
    rows = rows_of(tmp_path / "eval.csv")
    assert [row["run"] for row in rows] == ["a", "b,c"]
    assert [row["arch"] for row in rows] == ["topk", "relu"]
    for name, value in to_json(portable(reports[0], tmp_path)).items():
        if isinstance(value, list):
            assert name in ("notes", "excluded") or name not in rows[0]
        elif isinstance(value, float):
            assert float(rows[0][name]) == value  # to the last digit
        else:
            assert rows[0][name] == str(value)
    assert rows[0]["excluded"] == "position 0; token 3"
    assert rows[1]["notes"] == "x; y"
    quantiles = [float(rows[0][f"l0_q{q}"]) for q in ("05", "25", "50", "75", "95")]
    assert quantiles == [20, 26, 31, 37, 51]


def test_a_metric_is_followed_by_its_interval_and_an_absent_one_leaves_its_fields_empty(tmp_path):
    of_l0 = make_report(Path("b"), intervals=(Interval(metric="l0", low=31.5, high=33.0),))
    undefined = make_report(loss_recovered=None, dead_cosine=None)
    (tmp_path / "eval.csv").write_text("old\n" * 10_000)
    write_table([with_everything(Path("a")), of_l0, undefined], tmp_path / "eval.csv")
    assert [file.name for file in tmp_path.iterdir()] == ["eval.csv"]
    first, second, third = rows_of(tmp_path / "eval.csv")
    names = list(first)
    for metric in ("loss_recovered", "l0"):
        i = names.index(metric)
        assert names[i + 1 : i + 3] == [f"{metric}_low", f"{metric}_high"]
    assert (first["loss_recovered_low"], first["loss_recovered_high"]) == ("0.931", "0.938")
    assert (first["l0_low"], second["l0_low"], second["l0_high"]) == ("", "31.5", "33.0")
    assert second["loss_recovered_low"] == ""
    assert "kl_low" not in names and "dead_cosine" not in names
    assert third["loss_recovered"] == ""


def test_runs_are_named_by_as_much_of_their_paths_as_tells_them_apart():
    for paths, names in {
        ("x/a/sae", "x/b/relu"): ["sae", "relu"],
        ("x/a/sae", "x/b/sae"): ["a/sae", "b/sae"],
        ("/a/x/sae", "/b/x/sae"): ["a/x/sae", "b/x/sae"],
        ("sae", "a/sae"): ["sae", "a/sae"],
        (): [],
    }.items():
        assert names_of(list(map(Path, paths))) == names


@pytest.mark.parametrize("n", [5, 6, 7, 26])
def test_long_names_keep_both_ends(n):
    name = "abcdefghijklmnopqrstuvwxyz0"
    short = middle_out(name, n)
    assert len(short) == n
    assert short[0] == "a"
    assert short[-1] == "0"
    assert middle_out(name, len(name)) == name


def test_a_report_on_other_weights_is_none(tmp_path):
    run = save_sae(tmp_path / "run", make_sae(), model="builtin")
    own = SAERun.open(run).sha256
    for sha256, there in ((own, True), ("", True), ("0" * 64, False)):
        save_report(make_report(run, sha256=sha256))
        assert (load_report(run) is not None) == there
    (run / "run.json").unlink()
    assert load_report(run) is not None, "there is no run to hold it to"
