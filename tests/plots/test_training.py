import json
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, strategies as st
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure

from pipeline.errors import CheckpointError
from pipeline.plots import training as plots_training
from pipeline.plots.training import frontier, sweep_figure, training_curves
from tests.helpers.refusals import refused


@pytest.fixture
def draw(tmp_path, drawn):
    """The figure of the curves that these lines are."""

    def draw(lines) -> Figure:
        training_curves(write(tmp_path / "metrics.jsonl", lines), tmp_path / "curves.png")
        return drawn[-1]

    return draw


@pytest.fixture
def drawn(monkeypatch):
    """The figures that would be saved, to look inside: rendering them all takes long."""
    figures: list[Figure] = []

    def keep(figure, *outs):
        assert [out.suffix for out in outs] == [".png", ".svg"]
        figures.append(figure)

    monkeypatch.setattr(plots_training, "save", keep)
    return figures


def write(path: Path, lines) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def falling(n: int = 50, **constant: float) -> list[dict[str, float]]:
    """Lines of a training whose loss falls by decades."""
    return [
        {"rows": i * 1024, "l0": 100 / (i + 1), "recon": 10.0 ** (-i / 10), "n_dead": i} | constant
        for i in range(n)
    ]


def write_end(path: Path, *, l0: float, explained_variance: float, n: int = 1) -> Path:
    """Curves that end there, after lines far from it."""
    lines = [{"step": i, "l0": 1e6, "explained_variance": -9.0} for i in range(n - 1)]
    return write(path, [*lines, {"step": n, "l0": l0, "explained_variance": explained_variance}])


def titles_of(figure: Figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_training_curves_show_each_metric_there_is_against_the_rows(draw):
    figure = draw(falling())
    assert titles_of(figure) == ["L0", "Reconstruction loss", "Dead features"]
    raw = figure.axes[0].lines[0]
    assert raw.get_xydata()[3].tolist() == [3 * 1024, 25]
    level = draw(falling(recon=0.0))  # only a loss that spans a decade has a log axis
    assert [f.axes[1].get_yscale() for f in (figure, level)] == ["log", "linear"]


@pytest.mark.parametrize("content", [None, "", '{"rows": 1}\n'])
def test_metrics_that_hold_no_curve_are_one_line(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with refused(CheckpointError, r"metrics\.jsonl"):
        training_curves(path, tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


CHANGES = {
    "beta": r"Sparsity coefficient $\beta$",
    "n_resampled": "Resampled features",
    "lr": "Learning rate",
    "rows_per_s": "Speed",
}


@pytest.mark.parametrize("key", CHANGES)
def test_what_may_change_has_a_panel_only_where_it_does(draw, key):
    same, changed = (
        draw(
            {"rows": i, "l0": 1.0} | dict.fromkeys(CHANGES, 3.0) | {key: 3.0 if i < 25 else later}
            for i in range(50)
        )
        for later in (3.0, 9.0)
    )
    assert [titles_of(figure) for figure in (same, changed)] == [["L0"], ["L0", CHANGES[key]]]
    assert changed.axes[1].lines[0].get_ydata()[24:26].tolist() == [3.0, 9.0]


@pytest.mark.parametrize("n", [4, 400])
def test_a_speed_that_only_flickers_after_a_slow_start_is_not_drawn(draw, n):
    speeds = np.random.default_rng(0).uniform(*((9e3, 9.1e3) if n == 4 else (5e3, 15e3)), size=n)
    lines = [{"rows": i, "l0": 1.0, "rows_per_s": s} for i, s in enumerate([10.0, *speeds])]
    assert titles_of(draw(lines)) == ["L0"]


def test_the_first_steps_do_not_flatten_the_explained_variance(draw):
    below, above = (
        draw({"rows": i, "explained_variance": first if i == 0 else 0.9} for i in range(9))
        for first in (-5.0, 0.25)
    )
    assert below.axes[0].get_ylim()[0] == 0
    assert 0 < above.axes[0].get_ylim()[0] < 0.25


def test_the_figures_are_png_and_svg_and_leave_no_state_behind(tmp_path):
    before = dict(matplotlib.rcParams)
    metrics = write(tmp_path / "metrics.jsonl", falling(n=1))
    training_curves(metrics, tmp_path / "curves.png")
    write_end(metrics, l0=4.0, explained_variance=0.5)
    sweep_figure({"topk,k=4": metrics}, tmp_path / "sweep.png")
    for name in ("curves", "sweep"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (tmp_path / f"{name}.svg").read_text()
    assert len([*tmp_path.iterdir()]) == 5
    assert not Gcf.figs
    assert dict(matplotlib.rcParams) == before


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_frontier_is_what_no_other_point_beats(points):
    kept = frontier([(float(x), float(y)) for x, y in points])
    unbeaten = {
        p for p in points if not any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)
    }
    assert {points[i] for i in kept} == unbeaten
    assert len(kept) == len(unbeaten)
    assert [points[i] for i in kept] == sorted(unbeaten)


def test_a_sweep_shows_each_member_where_it_ended_and_each_kinds_frontier(tmp_path, drawn):
    ends = {
        "relu+l1=1": (10, 0.5), "relu+l1=2": (20, 0.7), "relu+l1=3": (30, 0.6),
        "topk+k=8": (8, 0.8),
    }  # fmt: skip
    members = {
        name: write_end(tmp_path / f"{name}.jsonl", l0=l0, explained_variance=ev, n=9)
        for name, (l0, ev) in ends.items()
    }
    sweep_figure(members | {"topk+k=16": tmp_path / "absent.jsonl"}, tmp_path / "sweep.png")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["relu", "topk"]
    assert [text.get_text() for text in axes.texts] == ["l1=1", "l1=2", "l1=3", "k=8"]
    assert [text.xy for text in axes.texts] == [*ends.values()]
    relu, topk = (line.get_xydata().tolist() for line in axes.lines)
    assert relu == [[10, 0.5], [20, 0.7]]
    assert topk == [[8, 0.8]]
    assert axes.get_xscale() == "linear"


def test_the_end_of_a_member_is_the_mean_of_its_last_lines(tmp_path, drawn):
    lines = [{"l0": float(i), "explained_variance": i / 1000} for i in range(100)]
    sweep_figure({"lr=1": write(tmp_path / "m.jsonl", lines)}, tmp_path / "sweep.png")
    assert drawn[0].axes[0].texts[0].xy == (98, pytest.approx(0.098))
    assert drawn[0].axes[0].get_legend() is None


def test_of_many_members_those_on_the_frontier_are_labelled(tmp_path, drawn):
    members = {
        f"seed={i}": write_end(tmp_path / f"{i}", l0=1.0 + i, explained_variance=0.9 - i / 100)
        for i in range(20)
    }
    sweep_figure(members, tmp_path / "sweep.png")
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["seed=0"]
    assert drawn[0].axes[0].get_xscale() == "log"


def test_a_sweep_without_any_curves_is_one_line(tmp_path):
    (tmp_path / "empty").write_text("")
    with pytest.raises(CheckpointError, match="no member of the sweep has curves yet"):
        sweep_figure({"a": tmp_path / "empty", "b": tmp_path / "none"}, tmp_path / "sweep.png")
    assert not (tmp_path / "sweep.png").exists()
