"""What the figures of connectors show, looked at from inside."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.connect.figures import (
    connector_frontier_figure as frontier_figure,
    explained_figure,
    lines_of,
    save_comparison,
    weights_figure,
)
from tests.helpers.connector_reports import make_baselines, make_map, make_report, make_sweep


def texts_of(figure: Figure) -> list[str]:
    parts = [text for axes in figure.axes for text in axes.texts]
    parts += [text for axes in figure.axes if axes.legend_ for text in axes.legend_.get_texts()]
    return [text.get_text() for text in parts]


def points(axes: Axes, marker: str) -> set[tuple[float, float]]:
    """Where single markers of this shape stand."""
    return {
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if line.get_marker() == marker and len(line.get_xdata()) == 1
    }


def joined(axes: Axes) -> list[list[tuple[float, float]]]:
    """The points that lines go through."""
    return [
        list(zip(line.get_xdata(), line.get_ydata(), strict=True))
        for line in axes.lines
        if line.get_linewidth() == 1.3
    ]


def test_connectors_of_a_sweep_are_joined_in_the_order_of_their_coefficient():
    reports = make_sweep(0.3, 0.5, 0.7)
    figure = frontier_figure([reports[2], reports[0], reports[1]])
    above, nonzero = figure.axes
    assert joined(above) == [[(4, 0.3), (2, 0.5), (1, 0.7)]]
    assert joined(nonzero) == [[(32, 0.3), (16, 0.5), (8, 0.7)]]
    assert points(above, "o") == {(4, 0.3), (2, 0.5), (1, 0.7)}
    assert {"l1 = 0.01", "l1 = 0.02", "l1 = 0.03"} <= {*texts_of(figure)}
    assert above.get_xscale() == nonzero.get_xscale() == "log"
    assert "0.1" in above.get_xlabel() and "not zero" in nonzero.get_xlabel()


def test_baselines_are_marked_and_named_and_the_mean_is_a_line():
    figure = frontier_figure(make_sweep(0.3, 0.5))
    above = figure.axes[0]
    assert points(above, "^") == {(0.5, 0.85)}
    assert points(above, "D") == {(7, 0.35)}
    (mean,) = [line for line in above.lines if line.get_linestyle() == ":"]
    assert set(mean.get_ydata()) == {1.01}
    assert {"mean", "best input", "ridge"} <= {*texts_of(figure)}


def test_what_is_beyond_the_axes_stands_at_their_edge_with_its_number():
    figure = frontier_figure(make_sweep(0.3, 0.5))
    assert points(figure.axes[0], "s") == {(99, 1.25)}
    assert "E2 W D1 (7.25)" in texts_of(figure)
    assert figure.axes[0].get_ylim()[1] < 1.4
    recovered = frontier_figure(make_sweep(0.3, 0.5), "recovered_of_sae")
    assert points(recovered.axes[0], "^") == {(0.5, 0)}
    assert "best input (-2.50)" in texts_of(recovered)


def test_the_median_of_the_outputs_is_a_tick_where_it_is_not_zero():
    above, nonzero = frontier_figure(make_sweep(0.3)).axes
    assert points(above, "|") == {(1.5, 0.3)}
    assert points(nonzero, "|") == {(8, 0.3)}
    sparse = make_map(fvu=0.9, above_mean=0.1, above_quantiles=(0.0, 0.0, 0.0, 0.0, 1.0))
    figure = frontier_figure([make_report(maps=(sparse,))])
    assert points(figure.axes[0], "|") == set()


def test_a_connector_without_any_weight_stands_at_the_left_edge():
    empty = make_map(fvu=1.0, above_mean=0.0, above_quantiles=(0.0,) * 5)
    reports = [*make_sweep(0.3), make_report(Path("b"), l1=1.0, maps=(empty, *make_baselines()))]
    above = frontier_figure(reports).axes[0]
    assert points(above, "<") == {(0.25, 1.0)}  # half of the least there is


def test_lines_of_several_layers_are_told_apart_and_have_their_own_baselines():
    reports = [report for layer in (0, 1, 2) for report in make_sweep(0.3, 0.6, at=layer)]
    figure = frontier_figure(reports)
    said = texts_of(figure)
    for layer in (0, 1, 2):
        assert f"resid_pre.{layer} → mlp_out.{layer}" in said
    assert {"ridge", "mean", "best input", "E2 W D1"} <= {*said}
    assert "l1 = 0.01" not in said  # too many to name
    assert len(joined(figure.axes[0])) == 3
    colors = {line.get_color() for line in figure.axes[0].lines if line.get_marker() == "o"}
    assert len(colors) == 3


def test_runs_trained_otherwise_make_their_own_line_and_share_the_baselines():
    reports = [*make_sweep(0.3, 0.6), *make_sweep(0.4, 0.5, start="weights")]
    random, weights = lines_of(reports)
    assert (random.kind, weights.kind) == ("random", "weights")
    assert [len(line.maps) for line in (random, weights)] == [2, 2]
    assert random.baselines == make_baselines()
    assert weights.baselines == ()
    (alone,) = lines_of(reports[:2])
    assert alone.kind == "resid_pre.1 → mlp_out.1"
    other = replace(reports[0], target=Path("runs/other"))
    assert [line.kind for line in lines_of([reports[0], other])] == [
        "resid_pre.1 → mlp_out.1",
        "resid_pre.1 → other",
    ]


def test_no_name_covers_another_or_leaves_the_axes():
    figure = frontier_figure(make_sweep(0.3, 0.31, 0.32, 0.6, 0.61))
    for axes in figure.axes:
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text() != "mean"]
        assert len(boxes) > 3
        for i, box in enumerate(boxes):
            assert axes.bbox.x0 <= box.x0 < box.x1 <= axes.bbox.x1
            assert not box.count_overlaps(boxes[:i])


def test_where_no_share_of_the_loss_has_a_meaning_none_is_drawn(tmp_path):
    maps = (make_map(recovered_of_sae=None), make_map("mean", recovered_of_sae=None))
    report = make_report(tmp_path, maps=maps)
    assert "nothing to draw" in texts_of(frontier_figure([report], "recovered_of_sae"))
    names = [path.name for path in save_comparison([report, report], tmp_path)]
    assert names == ["connectors.png", "connectors.svg"]


def test_every_alive_output_is_in_one_bar_of_what_is_explained():
    report = make_report()
    figure = explained_figure(report)
    upper, lower = figure.axes
    alive = [value for value in report.explained if value is not None]
    assert sum(bar.get_height() for bar in upper.patches) == len(alive) == 56
    least = sum(value < -0.48 for value in alive)
    assert least > 5
    assert upper.patches[0].get_height() == least  # all that are below stand there
    assert f"56 of 64 outputs, median {np.median(alive):.2f}" in texts_of(figure)
    assert [tick.get_text() for tick in lower.get_yticklabels()] == [
        "connector", "mean", "E2 W D1", "best input", "ridge",
    ]  # fmt: skip
    assert "left edge" in lower.get_xlabel()
    assert points(lower, "o") == {(0.3, float(i)) for i in range(5)}


def test_every_alive_output_is_in_the_bar_of_its_weights():
    explained = (0.5, None, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5)
    report = make_report(n_out=8, explained=explained, above=(0, 9, 1, 2, 3, 4, 5, 9))
    figure = weights_figure(report)
    axes = figure.axes[0]
    names = [tick.get_text() for tick in axes.get_xticklabels()]
    counts = {name: bar.get_height() for name, bar in zip(names, axes.patches, strict=True)}
    assert counts == {"0": 1, "1": 1, "2": 1, "3-4": 2, "5-8": 1, "9-16": 1}
    said = texts_of(figure)
    assert "median 3, mean 3.43, most 9" in said
    assert "128 of 5,120 weights" in said
    assert "the MLP itself: 8,875 of 204,800" in said
    assert not any("MLP" in text for text in texts_of(weights_figure(replace(report, layer=None))))


@pytest.mark.parametrize("draw", [explained_figure, weights_figure])
def test_without_an_output_that_is_alive_a_figure_says_so(draw):
    report = make_report(n_out=4, explained=(None,) * 4, above=(0,) * 4, n_alive=0)
    assert "no output was active on these tokens" in texts_of(draw(report))
