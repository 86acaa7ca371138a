"""The figures of a fine-tuning, drawn into its folder from what lies there."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
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
    tuned = done.load_sae(torch.device("cpu"))
    figures = {
        done.path / "loss.png": loss_figure(done),
        done.path / "scales_biases.png": scales_and_biases_figure(
            tuned.c.numpy(), tuned.d.numpy(), learned=tuned.learned.numpy()
        ),
    }
    for file, figure in figures.items():
        save(figure, file)
    return tuple(figures)


def loss_figure(run: FinetunedRun) -> Figure:
    """The training loss of a fine-tuning, with the held-out losses it started from and reached."""
    figure = make_figure(width=6.4, height=3.4)
    axes = axes_in(figure, (1, 1, 1), title="Fine-tuning only c and d", y="cross-entropy (nats)")
    losses, report = run.losses(), run.report
    steps = np.arange(1, len(losses) + 1)
    axes.plot(steps, losses, color=BLUE, alpha=0.25, lw=0.7)
    axes.plot(*smoothed(steps, losses), color=BLUE, lw=1.8, label="training batches")
    for loss, name, color, style in (
        (report.ce_base, "model without the SAE", GRAY, ":"),
        (report.ce_spliced, "SAE spliced in, c = 1, d = 0", RED, "--"),
        (report.ce_finetuned, "after fine-tuning", INK, "-"),
    ):
        axes.axhline(loss, color=color, ls=style, lw=1.3, label=f"held out, {name}: {loss:.3f}")
    axes.set_xlabel("step")
    axes.margins(x=0)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.94), **LEGEND)
    return figure


def scales_and_biases_figure(
    c: Float[np.ndarray, " d_sae"],
    d: Float[np.ndarray, " d_sae"],
    *,
    learned: Bool[np.ndarray, " d_sae"],
) -> Figure:
    """Learned scales and learned biases, each in ascending order: what fell red, what rose blue.

    Of features that were never active nothing was learned: they are left out, and counted.
    """
    c, d, n_left_out = c[learned], d[learned], int((~learned).sum())
    left_out = f" ({n_left_out:,} were never active)" if n_left_out else ""
    figure = make_figure(width=8.0, height=3.2)
    for place, values, start, title, y in (
        (1, c, 1, "Learned scales", "scale c"),
        (2, d, 0, "Learned biases", "bias d"),
    ):
        axes = axes_in(figure, (1, 2, place), title=title, y=y)
        ordered, index = np.sort(values), np.arange(values.size)
        below, above = ordered < start, ordered > start
        axes.fill_between(index, start, ordered, where=below, color=RED, alpha=0.35, lw=0)
        axes.fill_between(index, start, ordered, where=above, color=BLUE, alpha=0.35, lw=0)
        axes.plot(index, ordered, color=INK, lw=1.3)
        axes.axhline(start, color=GRAY, lw=0.9, ls="--")
        for chosen, side, height, color in (
            (above, "above", 0.93, BLUE),
            (below, "below", 0.86, RED),
        ):
            style: dict[str, Any] = {"xycoords": "axes fraction", "fontsize": 8, "color": color}
            share = chosen.mean() if len(chosen) else 0.0
            axes.annotate(f"{share:.0%} {side} {start}", (0.06, height), **style)
        axes.set_xlabel(f"features, sorted by {y}{left_out}")
        axes.margins(x=0.02)
    return figure
