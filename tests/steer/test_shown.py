"""What people see of a steering: in a terminal, in a figure, on a page; and what programs get."""

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from pipeline import verbs
from pipeline.errors import CheckpointError
from pipeline.plots.draw import draw
from pipeline.plots.steer import steer_figure
from pipeline.report.page import gather, view
from pipeline.report.render import render
from pipeline.report.saes import STEERED_TEXTS
from pipeline.steer.report import keep
from pipeline.terminal.screen import drawn
from pipeline.terminal.steer import steer_tables
from tests.helpers.pages import HOSTILE, make_run
from tests.helpers.reading_pages import Reader
from tests.helpers.refusals import refused
from tests.helpers.steerings import STRENGTHS, make_steering
from tests.steer.test_steer import BAD


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run with curves, which nobody changes."""
    return make_run(tmp_path_factory.mktemp("runs") / "topk")


@pytest.fixture
def kept_in(made, tmp_path):
    """A run with these steerings."""

    def keep_in(*steerings: dict[str, object]) -> Path:
        run = shutil.copytree(made, tmp_path / "topk")
        for settings in steerings:
            keep(make_steering(run, **settings))
        return run

    return keep_in


# --- terminal --------------------------------------------------------------------------------


def lines_of(report, *, width: int = 80) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False, color_system=None)
    for table in steer_tables(report):
        console.print(drawn(table))
    return out.getvalue().splitlines()


def test_texts_stand_below_each_other_and_then_the_table(made):
    lines = lines_of(make_steering(made, texts=("one two", "three")))
    assert all(cell_len(line) <= 80 for line in lines)
    told = [line.split() for line in lines]
    assert told[0] == ["def", "f(x):,", "sample", "1"]
    assert told[1] == ["strength", "perplexity", "feature", "7", "changed", "goes", "on", "with"]
    assert told[2] == ["clean", "2", "0", "one", "two"]
    assert told[3] == ["-2x", "3", "0.5", "12.5", "%", "one", "two"]
    assert [line[0] for line in told[2:7]] == ["clean", "-2x", "+0", "+3x", "+1max"]
    assert told[7][-2:] == ["sample", "2"]
    assert any("feature 7 raised, 2 texts" in line for line in lines)
    (row,) = [line for line in lines if "+3x │" in line]
    assert row.replace("│", " ").split() == ["+3x", "11", "1.5", "37.5", "%"]


def test_texts_move_no_terminal(made):
    prompt = "".join(HOSTILE)
    for line in lines_of(make_steering(made, texts=HOSTILE, prompt=prompt), width=200):
        assert not set(line) & set("\x00\x1b\u202e\u2066\u2028\u200f")


def test_the_command_shows_and_writes_what_the_verb_gives(succeeds, run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = ("--prompt", "hello", "--prompt", "abc", "--tokens", 6, "--device", "cpu")
    out, err = succeeds("steer", "run", "--feature", 3, "--scale", "-6,6", *given, "--json", "-")
    told = json.loads(out)
    assert "steer     feature 3 raised: 2 texts for 2 strengths, in run/steer/3.json" in err
    assert [one["strength"] for one in told["effects"]] == ["-6", "6"]
    assert [one["prompt"] for one in told["texts"]] == ["hello", "abc"]
    settings = {"feature": 3, "scale": "-6,6", "prompt": ["hello", "abc"], "tokens": 6}
    report = verbs.steer("run", device="cpu", **settings)
    for one, text in zip(told["texts"], report.texts, strict=True):
        assert one["steered"][1]["text"] == text.steered[1].text
        assert err.count(text.prompt) >= 1
    assert json.loads((run / "steer" / "3.json").read_text())["texts"] == told["texts"]


def test_options_reach_the_config(succeeds, copied, monkeypatch, tmp_path):
    copied("run"), copied("later")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("hello\n")
    (tmp_path / "more.toml").write_text('batch_size = 3\nwhere = "prompt"\n')
    out, _ = succeeds(
        "steer", "run", "later", "--feature", "3,4", "--feature", 7, "--clamp", "-2",
        "--prompt-file", "prompts.txt", "--tokens", 3, "--samples", 2, "--temperature", 0.5,
        "--seed", 4, "--where", "new", "--precision", "bf16", "--config", "more.toml",
        "--json", "-",
    )  # fmt: skip
    config = json.loads(out)["config"]
    wanted = {
        "feature": [[3, 4], [7]], "clamp": ["-2"], "scale": [], "tokens": 3, "samples": 2,
        "temperature": 0.5, "seed": 4, "where": "new", "precision": "bf16", "batch_size": 3,
    }  # fmt: skip
    assert {name: config[name] for name in wanted} == wanted


@pytest.mark.parametrize("what", ["none", "words", "feature", "no prompt", "too many"])
def test_what_cannot_be_is_one_line_with_options(fails, run, what):
    settings = {"feature": 3, "prompt": "hello", "scale": 6, "tokens": 8} | BAD[what][0]
    typed = [
        (f"--{name}", value) for name, value in settings.items() if value not in ([], None)
    ]  # fmt: skip
    told = fails("steer", run, *(word for pair in typed for word in pair), "--device", "cpu")
    assert "`" not in told
    wanted = {"none": "--scale, --clamp and --ablate", "too many": "lower --tokens to 59"}
    assert wanted.get(what, "") in told


# --- figure ----------------------------------------------------------------------------------


def test_a_figure_has_a_point_and_a_name_a_strength(made):
    report = make_steering(made)
    (axes,) = steer_figure(report).axes
    line, clean = axes.lines
    assert [*line.get_xdata()] == [one.perplexity for one in report.effects]
    assert [*line.get_ydata()] == [one.activations[0] for one in report.effects]
    assert ([*clean.get_xdata()], [*clean.get_ydata()]) == ([2.0], [0.0])
    assert {text.get_text() for text in axes.texts} == {"clean", "-2x", "+0", "+3x", "+1max"}
    assert axes.get_title(loc="left") == "Effect against damage: feature 7 raised"


def test_several_features_have_a_line_and_a_color_each(made):
    report = make_steering(made, feature=((7, 8, 12),))
    figure = steer_figure(report)
    (axes,), (legend,) = figure.axes, figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*report.names]
    assert len({line.get_color() for line in axes.lines[::2]}) == 3


def test_plot_draws_the_sweeps_of_a_run(kept_in):
    run = kept_in({}, {"feature": ((9,),)})
    one = make_steering(run, feature=((5,),))
    keep(make_steering(run, feature=((5,),), effects=one.effects[:1]))
    files = [path.relative_to(run).as_posix() for path in draw([run])]
    assert [name for name in files if "steer" in name] == [
        "steer/7.png", "steer/7.svg", "steer/9.png", "steer/9.svg",
    ]  # fmt: skip
    assert all((run / name).stat().st_size > 5_000 for name in files)
    (run / "steer" / "9.json").write_text("{")
    (run / "curves.png").unlink()
    with refused(CheckpointError, "9.json is not a report"):
        draw([run])
    assert not (run / "curves.png").exists()  # nothing is drawn before all can be


# --- page ------------------------------------------------------------------------------------


def page_of(run) -> str:
    return render(view(gather([run], n_features=3))).decode()


def test_a_page_shows_what_was_steered(kept_in):
    run = kept_in({"texts": ("one two", "three")}, {"feature": ((9, 12),)})
    page = page_of(run)
    words = Reader(page.encode()).text
    for told in (
        "feature 7 raised", "feature 9, feature 12 raised", "one two", "sample 2",
        "In some/model, steered at all tokens, up to 50 new tokens, drawn at temperature 1",
        *(f"+{one}" for one in STRENGTHS[1:]),
    ):  # fmt: skip
        assert told in words, told
    assert "<b>note</b>" not in page and "&lt;b&gt;note" in page


def test_a_page_without_any_says_nothing_of_it(kept_in):
    assert "Steered" not in page_of(kept_in())


def test_texts_on_a_page_are_escaped(kept_in):
    hostile = "".join(HOSTILE)
    run = kept_in({"texts": HOSTILE[:STEERED_TEXTS], "prompt": hostile})
    page = page_of(run)
    keep(make_steering(run, texts=("plain",) * STEERED_TEXTS))
    tags, plain = ([tag for tag, _ in Reader(one.encode()).tags] for one in (page, page_of(run)))
    assert tags == plain
    assert not set(page) & set("\x00\x1b\u202e\u2066\u2028\u200f")
    assert page.count("&lt;script&gt;window.pwned = 1&lt;/script&gt;") > STEERED_TEXTS
    assert "{{ 7 * 7 }}" in page


def test_a_page_shows_some_of_many_texts(kept_in):
    texts = tuple(f"text {i}!" for i in range(STEERED_TEXTS + 3))
    page = page_of(kept_in({"texts": texts}))
    assert [text in page for text in texts] == [True] * STEERED_TEXTS + [False] * 3
    assert "3 texts more: 7.json" in page


def test_a_page_leaves_out_what_is_of_other_weights(kept_in):
    run = kept_in()
    keep(make_steering(run, sha256="0" * 64))
    assert "Steered" not in page_of(run)
