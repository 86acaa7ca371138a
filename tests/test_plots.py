import json

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.figure import Figure

from pipeline import plots
from pipeline.errors import CheckpointError


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look inside."""
    figures: list[Figure] = []
    save = plots._save

    def keep(figure, out):
        figures.append(figure)
        save(figure, out)

    monkeypatch.setattr(plots, "_save", keep)
    return figures


def write_metrics(path, *, n: int = 50, **constant: float):
    lines = (
        {"rows": i * 1024, "l0": 100 / (i + 1), "recon": 10.0 ** (-i / 10), "n_dead": i} | constant
        for i in range(n)
    )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def texts_of(figure: Figure) -> str:
    parts = [text for axes in figure.axes for text in axes.texts]
    parts += [t for axes in figure.axes if axes.legend_ for t in axes.legend_.get_texts()]
    return " | ".join(text.get_text() for text in parts)


def test_training_curves_show_each_metric_there_is_against_the_rows(tmp_path, drawn):
    write_metrics(tmp_path / "metrics.jsonl")
    plots.training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == [
        "L0",
        "Reconstruction loss",
        "Dead features",
    ]
    raw = drawn[0].axes[0].lines[0]
    assert raw.get_xdata()[3] == 3 * 1024
    assert raw.get_ydata()[3] == 25


def test_only_a_loss_that_spans_a_decade_is_drawn_on_a_log_axis(tmp_path, drawn):
    write_metrics(tmp_path / "metrics.jsonl")
    plots.training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    write_metrics(tmp_path / "metrics.jsonl", recon=0.0)
    plots.training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert [figure.axes[1].get_yscale() for figure in drawn] == ["log", "linear"]


def test_a_run_of_one_step_still_has_curves(tmp_path):
    write_metrics(tmp_path / "metrics.jsonl", n=1)
    plots.training_curves(tmp_path / "metrics.jsonl", tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("content", [None, "", '{"rows": 1}\n'])
def test_metrics_that_hold_no_curve_are_one_line(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    if content is not None:
        path.write_text(content)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl") as caught:
        plots.training_curves(path, tmp_path / "curves.png")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "curves.png").exists()


def test_the_smoothed_line_of_a_straight_line_is_that_line_until_it_ends():
    x = np.arange(200)
    _, y = plots._smoothed(x, 3.0 * x)
    np.testing.assert_allclose(y[:-3], 3.0 * x[:-3])


def test_the_smoothed_line_is_a_mean_of_neighbours():
    values = np.random.default_rng(0).normal(size=300)
    _, y = plots._smoothed(np.arange(300), values)
    half = round(0.03 * 300 / 2)
    assert y[100] == pytest.approx(values[100 - half : 100 + half + 1].mean())
    assert y[0] == values[0]


def test_dead_and_living_features_are_counted_and_averaged_apart(tmp_path, drawn):
    cosine = np.array([0.9, 0.7, 0.1, -0.1, 0.3])
    dead = np.array([True, True, False, False, False])
    plots.dead_cosine(cosine, dead, tmp_path / "dead.png", n_tokens=1000)
    labels = texts_of(drawn[0])
    assert "alive: 3 features, mean 0.10" in labels
    assert "dead: 2 features, mean 0.80" in labels
    heights = [patch.get_height() for patch in drawn[0].axes[0].patches]
    assert sum(heights) == pytest.approx(200)  # each group is 100 %


@pytest.mark.parametrize("n_dead", [0, 4])
def test_none_dead_and_all_dead_are_drawn_too(tmp_path, drawn, n_dead):
    dead = np.arange(4) < n_dead
    cosine = np.linspace(-0.9, 1, 4) if n_dead else None
    plots.dead_cosine(cosine, dead, tmp_path / "dead.png", n_tokens=1234)
    said = texts_of(drawn[0])
    assert ("none is dead" in said and "1,234 tokens" in said) == (n_dead == 0)
    assert (tmp_path / "dead.png").stat().st_size > 1000


def test_scales_and_biases_ascend_and_their_shares_are_told(tmp_path, drawn):
    c, d = np.array([1.2, 0.5, 0.9, 1.0]), np.array([0.1, 0.3, -0.2, 0.0])
    plots.scales_and_biases(c, d, tmp_path / "scales.png")
    left, right = drawn[0].axes
    assert left.lines[0].get_ydata().tolist() == [0.5, 0.9, 1.0, 1.2]
    assert right.lines[0].get_ydata().tolist() == [-0.2, 0.0, 0.1, 0.3]
    assert [t.get_text() for t in left.texts] == ["25% above 1", "50% below 1"]
    assert [t.get_text() for t in right.texts] == ["50% above 0", "25% below 0"]


def test_the_loss_figure_names_the_three_heldout_losses(tmp_path, drawn):
    plots.finetune_loss(
        [3.0, 2.0, 1.5], tmp_path / "loss.png", ce_base=3.1, ce_spliced=3.2, ce_finetuned=1.4
    )
    said = texts_of(drawn[0])
    for loss in ("without the coder: 3.100", "c = 1, d = 0: 3.200", "after fine-tuning: 1.400"):
        assert loss in said


def test_figures_are_whole_files_and_leave_no_state_behind(tmp_path):
    before = dict(matplotlib.rcParams)
    plots.scales_and_biases(np.ones(3), np.zeros(3), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert not Gcf.figs
    assert dict(matplotlib.rcParams) == before
