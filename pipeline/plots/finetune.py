"""The figures of a fine-tuning, drawn into its folder from what lies there."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from pipeline.finetune.effects import SHARE, Effects
from pipeline.finetune.run import FinetunedRun
from pipeline.plots.style import (
    AMBER,
    BLUE,
    GRAY,
    INK,
    LEGEND,
    RED,
    Label,
    axes_in,
    few_ticks,
    label_points,
    make_figure,
    save,
    say,
    smoothed,
)


def save_finetune_figures(run: str | Path) -> tuple[Path, ...]:
    """Draw a fine-tuning into its folder: losses, scales and biases, effects of changes."""
    done = FinetunedRun.open(run)
    figures = {done.path / "loss.png": loss_figure(done)}
    figures |= {done.path / f"{name}.png": figure for name, figure in meaning_figures(done).items()}
    for file, figure in figures.items():
        save(figure, file)
    return tuple(figures)


def meaning_figures(run: FinetunedRun) -> dict[str, Figure]:
    """What was learned, and what it does: the latter of runs that say so."""
    tuned, meaning = run.load_sae(torch.device("cpu")), run.meaning()
    figures = {
        "scales_biases": scales_and_biases_figure(
            tuned.c.numpy(), tuned.d.numpy(), learned=tuned.learned.numpy(),
            decayed=run.decayed_scale,
        )
    }  # fmt: skip
    if meaning is not None and meaning.effects is not None:
        figures["effects"] = effects_figure(meaning.effects)
    return figures


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
    low, high = axes.get_ylim()  # the legend stands above all lines
    axes.set_ylim(low, high + 0.45 * (high - low))
    axes.legend(loc="upper right", **LEGEND)
    return figure


def scales_and_biases_figure(
    c: Float[np.ndarray, " d_sae"],
    d: Float[np.ndarray, " d_sae"],
    *,
    learned: Bool[np.ndarray, " d_sae"],
    decayed: float = 1.0,
) -> Figure:
    """Learned scales and learned biases, each in ascending order: what fell red, what rose blue.

    Of features that were never active nothing was learned: they are left out, and counted.

    Args:
        c: Scales.
        d: Biases.
        learned: Of which features something was.
        decayed: What weight decay alone makes of a scale, which is drawn if it does anything.
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
        if place == 1 and decayed != 1:
            told = f"weight decay alone: {decayed:.3g}"
            axes.axhline(decayed, color=AMBER, lw=1.2, ls=":", label=told)
            axes.legend(loc="lower right", **LEGEND)
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


_N_NAMED = 6
"""Features that have their number beside their point."""


def effects_figure(effects: Effects) -> Figure:
    """How few changes make the gain, and what each of the first does, against its scale."""
    figure = make_figure(width=8.0, height=3.2)
    axes = axes_in(figure, (1, 2, 1), title="Gain kept", y="share of the gain")
    _draw_kept(axes, effects)
    axes = axes_in(figure, (1, 2, 2), title="Effect of single changes", y="effect (nats)")
    measured = effects.measured
    if not measured:
        say(axes, "nothing changed")
        return figure
    axes.axhline(0, color=GRAY, lw=0.9, ls="--")
    axes.axvline(1, color=GRAY, lw=0.9, ls="--")
    color = [BLUE if one.c >= 1 else RED for one in measured]
    axes.scatter([x.c for x in measured], [x.effect for x in measured], c=color, s=16, lw=0)
    axes.set_xlabel(f"scale c, of the {len(measured):,} features that were measured")
    axes.margins(0.08)
    figure.draw_without_rendering()
    labels = [
        Label(at=(one.c, one.effect), text=str(one.latent), color=shade)
        for one, shade in zip(measured, color, strict=True)
    ]
    label_points(axes, labels, n_shown=_N_NAMED)
    return figure


def _draw_kept(axes: Axes, effects: Effects) -> None:
    """The curve of kept gain."""
    if (n := effects.n_for_share) is None:
        say(axes, "nothing was gained")
        return
    points = [point for point in effects.curve if point.n]
    shares = [effects.share(point) or 0.0 for point in points]
    axes.plot([point.n for point in points], shares, color=BLUE, lw=1.6, marker="o", ms=3.5)
    axes.axhline(SHARE, color=GRAY, lw=0.9, ls="--")
    axes.axvline(n, color=GRAY, lw=0.9, ls=":")
    axes.annotate(
        f"{n:,} of {effects.n_changed:,} make {SHARE:.0%}", (n, SHARE), (-6, 5),
        textcoords="offset points", ha="right", fontsize=8, color=INK,
    )  # fmt: skip
    if effects.n_changed > 1:
        axes.set_xscale("log")
        few_ticks(axes.xaxis)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.set_xlabel("features whose change is kept, in order of effect")
