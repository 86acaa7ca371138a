"""The figures of a fine-tuning, drawn into its folder from what lies there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure

from pipeline.finetune.run import FinetunedRun
from pipeline.plots.style import (
    BLUE,
    GRAY,
    INK,
    LEGEND,
    RED,
    axes_in,
    make_figure,
    save,
    smoothed,
)


def save_finetune_figures(run: str | Path) -> tuple[Path, ...]:
    """Draw the losses, and the learned scales and biases, of a fine-tuning into its folder."""
    done = FinetunedRun.open(run)
    tuned, report = done.load_sae(torch.device("cpu")), done.report
    heldout = {name: getattr(report, name) for name in ("ce_base", "ce_spliced", "ce_finetuned")}
    figures = {
        "loss": loss_figure(done.losses(), **heldout),
        "scales_biases": scales_and_biases_figure(tuned.c.numpy(), tuned.d.numpy()),
    }
    files = {name: done.path / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        save(figure, files[name])
    return tuple(files.values())


def loss_figure(
    losses: Sequence[float], *, ce_base: float, ce_spliced: float, ce_finetuned: float
) -> Figure:
    """The training loss of a fine-tuning, with the held-out losses it started from and reached."""
    figure = make_figure(width=6.4, height=3.4)
    axes = axes_in(figure, (1, 1, 1), title="Fine-tuning only c and d", y="cross-entropy (nats)")
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=BLUE, alpha=0.25, lw=0.7)
    axes.plot(*smoothed(steps, losses), color=BLUE, lw=1.8, label="training batches")
    for loss, name, color, style in (
        (ce_base, "model without the SAE", GRAY, ":"),
        (ce_spliced, "SAE spliced in, c = 1, d = 0", RED, "--"),
        (ce_finetuned, "after fine-tuning", INK, "-"),
    ):
        axes.axhline(loss, color=color, ls=style, lw=1.3, label=f"held out, {name}: {loss:.3f}")
    axes.set_xlabel("step")
    axes.margins(x=0)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.94), **LEGEND)
    return figure


def scales_and_biases_figure(
    c: Float[np.ndarray, " d_sae"], d: Float[np.ndarray, " d_sae"]
) -> Figure:
    """Learned scales and learned biases, each sorted in ascending order."""
    figure = make_figure(width=8.0, height=3.2)
    _sorted(figure, 1, c, start=1, title="Learned scales", y="scale c")
    _sorted(figure, 2, d, start=0, title="Learned biases", y="bias d")
    return figure


def _sorted(
    figure: Figure,
    place: int,
    values: Float[np.ndarray, " d_sae"],
    *,
    start: int,
    title: str,
    y: str,
) -> None:
    """One vector in ascending order: what fell below its start in red, what rose in blue."""
    axes = axes_in(figure, (1, 2, place), title=title, y=y)
    ordered, index = np.sort(values), np.arange(values.size)
    axes.fill_between(index, start, ordered, where=ordered < start, color=RED, alpha=0.35, lw=0)
    axes.fill_between(index, start, ordered, where=ordered > start, color=BLUE, alpha=0.35, lw=0)
    axes.plot(index, ordered, color=INK, lw=1.3)
    axes.axhline(start, color=GRAY, lw=0.9, ls="--")
    for share, side, height, color in (
        (float((values > start).mean()), "above", 0.93, BLUE),
        (float((values < start).mean()), "below", 0.86, RED),
    ):
        style: dict[str, Any] = {"xycoords": "axes fraction", "fontsize": 8, "color": color}
        axes.annotate(f"{share:.0%} {side} {start}", (0.06, height), **style)
    axes.set_xlabel(f"features, sorted by {y}")
    axes.margins(x=0.02)
