"""What the figures of evaluations show, looked at from inside."""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from pipeline.evaluate.report import EvalReport, Inserted, Interval
from pipeline.plots.evaluation import (
    dead_cosine_figure,
    density_figure,
    encoder_decoder_figure,
    frontier_figure,
    frontier_points,
    inserted_figure,
    save_figures,
    save_frontier,
)
from pipeline.plots.style import BLUE, RED
from tests.helpers.eval_reports import make_report, with_everything


def texts_of(figure: Figure) -> str:
    parts = [text for axes in figure.axes for text in axes.texts]
    parts += [t for axes in figure.axes if axes.legend_ for t in axes.legend_.get_texts()]
    parts += [axes.legend_.get_title() for axes in figure.axes if axes.legend_]
    return " | ".join(text.get_text() for text in parts)


def heights(figure: Figure, *, color: str) -> list[float]:
    """Of the bars of one colour."""
    bars = figure.axes[0].patches
    return [bar.get_height() for bar in bars if to_hex(bar.get_facecolor()) == color]


def test_dead_and_living_features_are_counted_and_averaged_apart():
    cosine = np.array([0.9, 0.7, 0.1, -0.1, 0.3])
    figure = dead_cosine_figure(cosine, cosine > 0.5, n_tokens=1000)
    labels = texts_of(figure)
    assert "alive: 3 features, mean 0.10" in labels
    assert "dead: 2 features, mean 0.80" in labels
    for color in (RED, BLUE):
        assert sum(heights(figure, color=color)) == pytest.approx(100)  # each group is 100 %


def test_none_dead_and_all_dead_are_drawn_too():
    said = texts_of(dead_cosine_figure(None, np.full(4, False), n_tokens=1234))
    assert "none is dead" in said
    assert "1,234 tokens" in said
    said = texts_of(dead_cosine_figure(np.linspace(-0.9, 1, 4), np.full(4, True), n_tokens=1234))
    assert "dead: 4 features" in said
    assert "alive" not in said


def test_every_feature_is_in_one_bar_of_the_densities_and_the_dead_stand_apart():
    n_tokens = 10**7
    density = np.array([0, 0, 0, 1, 5, 9.99, 10, 500, 10**6, 2 * 10**6, 10**7]) / n_tokens
    figure = density_figure(density, n_tokens=n_tokens)
    said = texts_of(figure)
    for words in (
        "dead, never active: 3", "rare, below one in a million: 3", "in between: 3",
        "frequent, above 10 %: 2", "of 11 features",
    ):  # fmt: skip
        assert words in said
    bars = figure.axes[0].patches
    assert sum(bar.get_height() for bar in bars) == density.size
    (dead,) = [bar for bar in bars if to_hex(bar.get_facecolor()) == RED]
    filled = [bar.get_x() for bar in bars if bar.get_height() and bar is not dead]
    assert dead.get_height() == 3
    assert dead.get_x() + dead.get_width() < min(filled)


def test_a_feature_lies_in_the_bar_of_its_density():
    density = np.array([1, 3, 40]) / 1000
    bars = list(density_figure(density, n_tokens=1000).axes[0].patches)
    for value in np.log10(density):
        (bar,) = [b for b in bars if b.get_x() <= value < b.get_x() + b.get_width()]
        assert bar.get_height() == 1


def test_bars_of_one_density_stand_on_each_other():
    density = np.array([0.09, 0.09, 0.11])  # in between and frequent, in one bin
    bars = density_figure(density, n_tokens=1000).axes[0].patches
    low, high = sorted((bar for bar in bars if bar.get_height()), key=lambda bar: bar.get_y())
    assert (low.get_y(), low.get_height()) == (0, 2)
    assert (high.get_y(), high.get_height()) == (2, 1)
    assert low.get_x() == high.get_x()


@pytest.mark.parametrize("density", [np.zeros(5), np.ones(5), np.full(5, 1 / 700)])
def test_features_that_are_all_alike_are_drawn_too(density):
    figure = density_figure(density, n_tokens=700)
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 5
    assert f"dead, never active: {5 if density[0] == 0 else 0}" in texts_of(figure)


def test_the_median_of_what_features_write_and_read_is_marked():
    figure = encoder_decoder_figure(np.array([-0.5, 0.2, 0.7, 0.9, 1.0]))
    assert "median 0.70" in texts_of(figure)
    assert figure.axes[0].lines[0].get_xdata()[0] == 0.7
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 5


def sweep(*added: float) -> EvalReport:
    inserted = tuple(
        Inserted(site=f"mlp_out.{i}", ce_patched=2.6231 + x, added=x) for i, x in enumerate(added)
    )
    return make_report(inserted=inserted)


def test_a_layer_has_a_bar_of_the_clean_loss_and_on_it_one_of_what_is_added():
    figure = inserted_figure(sweep(1.5, 0.25, 0.04))
    bars = figure.axes[0].patches
    green, red = bars[:3], bars[3:]
    assert [bar.get_height() for bar in green] == pytest.approx([2.6231] * 3)
    assert {bar.get_y() for bar in red} == {2.6231}
    assert [bar.get_height() for bar in red] == pytest.approx([1.5, 0.25, 0.04])
    said = texts_of(figure)
    for words in ("+1.500", "+0.250", "+0.040", "the model alone: 2.623"):
        assert words in said
    assert "removed" not in said
    bold = [t.get_text() for t in figure.axes[0].get_xticklabels() if t.get_fontweight() == "bold"]
    assert bold == ["2"]  # where it was trained


def test_a_loss_that_falls_ends_below_the_clean_one():
    figure = inserted_figure(sweep(0.5, -0.25))
    bars = figure.axes[0].patches
    tops = [bar.get_y() + bar.get_height() for bar in bars]
    assert tops[:2] == pytest.approx([2.6231, 2.6231 - 0.25])
    assert tops[2:4] == pytest.approx([2.6231 + 0.5, 2.6231])
    assert tops[4] == pytest.approx(2.6231 - 0.25)
    assert len(tops) == 5  # nothing is outlined where the loss rises
    said = texts_of(figure)
    assert "-0.250" in said
    assert "removed" in said


def run(name: str, l0: float, recovered: float | None, **changes: object) -> EvalReport:
    return make_report(Path(name), l0=float(l0), loss_recovered=recovered, **changes)


def test_the_best_are_those_that_none_beats_in_their_own_setting():
    reports = [
        run("a", 10, 0.6), run("b", 20, 0.8), run("c", 30, 0.7), run("d", 40, 0.9, arch="relu"),
        run("e", 12, 0.3, site="mlp_out.0"), run("f", 50, 0.05, site="mlp_out.0"),
        run("g", 1, None),
    ]  # fmt: skip
    found = frontier_points(reports)
    assert [(one.name, one.best) for one in found] == [
        ("a", True), ("b", True), ("c", False), ("d", True), ("e", True), ("f", False),
    ]  # fmt: skip
    assert [one.kind for one in found[3:5]] == ["relu, mlp_out.2", "topk, mlp_out.0"]
    assert [one.kind for one in frontier_points(reports[:4])] == ["topk"] * 3 + ["relu"]


def test_members_of_a_sweep_are_named_by_their_settings_others_by_their_folders():
    members = [run(f"sweep/mlp_out.2,{arch},k=32", 30, 0.9, arch=arch) for arch in ("topk", "x")]
    assert [one.name for one in frontier_points(members)] == ["k=32", "k=32"]
    alike = [run(f"{folder}/mlp_out.2,topk,k=32", 30, 0.9) for folder in "ab"]
    assert [one.name for one in frontier_points(alike)] == [
        f"{folder}/mlp_out.2,topk,k=32" for folder in "ab"
    ]
    (long,) = frontier_points([run("x" * 40 + "end", 30, 0.9)])
    assert len(long.name) == 26
    assert long.name.endswith("end")


def markers(figure: Figure) -> dict[tuple[float, float], tuple[str, bool]]:
    """By their place, the shape of each marker and whether it is filled."""
    points = [line for line in figure.axes[0].lines if len(line.get_xdata()) == 1]
    return {
        tuple(line.get_xydata()[0]): (line.get_marker(), line.get_markerfacecolor() != "white")
        for line in points
        if line.get_marker() in ("o", "v")
    }


def test_runs_are_drawn_where_they_stand_and_the_best_filled():
    figure = frontier_figure([run("a", 10, 0.6), run("b", 20, 0.8), run("c", 30, 0.7)])
    assert markers(figure) == {
        (10, 0.6): ("o", True),
        (20, 0.8): ("o", True),
        (30, 0.7): ("o", False),
    }
    said = texts_of(figure)
    for name in ("a", "b", "c", "topk"):
        assert f" {name} " in f" {said} "
    assert figure.axes[0].get_xscale() == "linear"
    wide = frontier_figure([run("a", 3, 0.6), run("b", 300, 0.8)])
    assert wide.axes[0].get_xscale() == "log"


def test_a_run_that_harms_stands_at_the_lower_edge_with_its_number():
    figure = frontier_figure([run("a", 10, -7.25), run("b", 20, 0.8)])
    assert markers(figure)[10, 0.0] == ("v", True)
    assert "a (-7.25)" in texts_of(figure)
    assert figure.axes[0].get_ylim()[0] > -0.2


def test_intervals_are_drawn_as_bars():
    interval = Interval(metric="loss_recovered", low=0.55, high=0.7)
    figure = frontier_figure([run("a", 10, 0.6, intervals=(interval,))])
    bars = [c for c in figure.axes[0].collections if isinstance(c, LineCollection)]
    (segment,) = bars[0].get_segments()
    np.testing.assert_allclose(segment, [[10, 0.55], [10, 0.7]])


def test_of_many_runs_only_the_best_are_named():
    reports = [run(f"run{i}", 10 + i, 0.5 + (0.01 * i if i % 2 else 0)) for i in range(40)]
    said = texts_of(frontier_figure(reports))
    assert "run39" in said
    assert "run38" not in said


def test_no_name_covers_another_or_a_point_or_leaves_the_axes():
    near = [run(f"a_long_name_{i}", 10 + i % 4, 0.5 + 0.001 * (i // 4)) for i in range(15)]
    reports = [*near, run("far", 100, 0.9)]
    figure = frontier_figure(reports)
    axes = figure.axes[0]
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 2 < len(boxes) < 16
    points = axes.transData.transform(list(markers(figure)))
    assert len(points) == 16
    for i, box in enumerate(boxes):
        assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
        assert not box.count_contains(points)
        assert not box.count_overlaps(boxes[:i])


def test_a_name_of_odd_signs_is_written_as_it_is():
    figure = frontier_figure([run("a$_$b", 8, 0.8), run("c", 30, 0.9)])
    figure.draw_without_rendering()
    assert "a$_$b" in texts_of(figure)


def test_without_a_loss_to_recover_the_figure_says_so():
    assert "nothing to draw" in texts_of(frontier_figure([run("a", 10, None)]))


@pytest.mark.parametrize("layers", [True, False])
def test_each_figure_is_a_picture_and_vectors_beside_its_run(tmp_path, layers):
    report = with_everything(tmp_path)
    if not layers:
        report = replace(report, inserted=(), dead_cosine=None)
    names = ["dead_cosine", "density", "encoder_decoder", *(["inserted"] if layers else [])]
    paths = sorted(save_figures(report))
    assert paths == sorted(tmp_path.iterdir())
    assert [path.name for path in paths] == [f"{n}{end}" for n in names for end in (".png", ".svg")]
    for path in paths:
        start = b"\x89PNG" if path.suffix == ".png" else b"<?xml"
        assert path.read_bytes().startswith(start)
    assert not Gcf.figs


@pytest.mark.slow
def test_the_frontier_goes_into_the_folder_that_was_named(tmp_path):
    reports = [run("a", 10, 0.6), run("b", 20, 0.8)]
    reports = [replace(report, run=tmp_path / report.run.name) for report in reports]
    paths = save_frontier(reports, tmp_path)
    assert [path.name for path in paths] == ["frontier.png", "frontier.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_every_legend_is_told_its_place():
    """Where none is told matplotlib warns when the machine was slow, and a warning is an error."""
    for path in (Path(__file__).parents[2] / "pipeline").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "legend":
                assert "loc" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
