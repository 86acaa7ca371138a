"""The figures of an evaluation: of one run, and of several against each other.

One run shows how often its features are active and where their directions lie; several, where they
stand between few active features and much of the loss recovered.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from pipeline.evaluate.metrics import FREQUENT, RARE
from pipeline.evaluate.report import EvalReport
from pipeline.lm.sites import Site
from pipeline.plots.style import (
    AMBER,
    BLUE,
    GRAY,
    GREEN,
    INK,
    KINDS,
    LEGEND,
    RED,
    Label,
    as_log_if_wide,
    axes_in,
    label_points,
    make_figure,
    save_all,
    say,
)
from pipeline.plots.training import frontier
from pipeline.runs.names import middle_out, names_of, words_of

_NAME = 26
"""Characters of a run's name."""


@dataclass(frozen=True, kw_only=True)
class FrontierPoint:
    """One run."""

    kind: str
    """Its architecture, and of site, model and text those in which the runs differ."""
    name: str
    """What tells it from others of its kind."""
    l0: float
    recovered: float
    below: float
    """How far its interval reaches down from `recovered`; 0 without one."""
    above: float
    best: bool
    """No other run of its model, text and site recovers as much with fewer active features."""


def frontier_points(reports: Sequence[EvalReport]) -> list[FrontierPoint]:
    """Where runs stand, in their order; those whose ablation costs no loss stand nowhere."""
    there = [(r, r.loss_recovered) for r in reports if None not in (r.loss_recovered, r.l0)]
    settings = [(report.site, report.model, report.text) for report, _ in there]
    best = set[int]()
    for setting in set(settings):
        members = [i for i, other in enumerate(settings) if other == setting]
        unbeaten = frontier([(there[i][0].l0, there[i][1]) for i in members])
        best |= {members[i] for i in unbeaten}
    kinds = _kinds([report for report, _ in there])
    names = _names([report.run for report, _ in there], kinds)
    found = list[FrontierPoint]()
    for i, (report, recovered) in enumerate(there):
        intervals = {interval.metric: interval for interval in report.intervals}
        interval = intervals.get("loss_recovered")
        low, high = (interval.low, interval.high) if interval else (recovered, recovered)
        found.append(
            FrontierPoint(
                kind=kinds[i],
                name=names[i],
                l0=report.l0,
                recovered=recovered,
                below=max(recovered - low, 0.0),
                above=max(high - recovered, 0.0),
                best=i in best,
            )
        )
    return found


def _kinds(reports: Sequence[EvalReport]) -> list[str]:
    """Architectures, with that of site, model and text in which the runs differ."""
    words = [(report.site, Path(report.model).name, report.text) for report in reports]
    differs = [len(set(values)) > 1 for values in zip(*words, strict=True)]
    return [
        ", ".join([report.arch, *compress(its, differs)])
        for report, its in zip(reports, words, strict=True)
    ]


def _names(runs: Sequence[Path], kinds: Sequence[str]) -> list[str]:
    """Settings such as `k=32` of a sweep's folders where these suffice, or else the folders."""
    settings = [", ".join(word for word in words_of(run.name) if "=" in word) for run in runs]
    alone = Counter(zip(kinds, settings, strict=True))
    return [
        middle_out(its if its and alone[kind, its] == 1 else name, _NAME)
        for its, kind, name in zip(settings, kinds, names_of(runs), strict=True)
    ]


_BIN = 0.2
"""Width of a bin of `density_figure`, in powers of ten: 1, 2 and 3 tokens fill one each."""
_ROOM = 1.3
"""Height of a histogram's axes, that of its highest bar being 1."""
_MANY = 12
"""Bars of `inserted_figure` from which on their numbers stand upright."""
_LABELS = 16
"""Runs of `frontier_figure`; with more, those on a frontier alone are named."""


def dead_cosine_figure(
    cosine: Float[np.ndarray, " d_sae"] | None, dead: Bool[np.ndarray, " d_sae"], *, n_tokens: int
) -> Figure:
    """Histograms of each latent's cosine with the mean dead row: the dead against the living.

    Without dead latents there is no such direction; the figure then says so.
    """
    figure = make_figure(width=6.0, height=3.4)
    title = "Do dead features point the same way?"
    axes = axes_in(figure, (1, 1, 1), title=title, y="% of each group")
    axes.set_xlabel("cosine of a feature's decoder row with the mean dead row")
    if cosine is None:
        say(
            axes, f"none is dead: each of {dead.size:,} features fired on these {n_tokens:,} tokens"
        )
        return figure
    low = min(-0.25, float(cosine.min()))
    bins = np.linspace(low, 1, 81).tolist()
    for chosen, color, name in ((~dead, BLUE, "alive"), (dead, RED, "dead")):
        if not chosen.any():
            continue
        mean = float(cosine[chosen].mean())
        label = f"{name}: {int(chosen.sum()):,} features, mean {mean:.2f}"
        share = np.full(int(chosen.sum()), 100 / chosen.sum())
        axes.hist(cosine[chosen], bins, weights=share, color=color, alpha=0.55, label=label)
        axes.axvline(mean, ymax=1 / _ROOM, color=color, lw=1.2, ls="--")
    axes.set_xlim(low, 1)
    _make_room(axes)
    axes.legend(loc="best", title=f"dead: never active on {n_tokens:,} tokens", **LEGEND)
    return figure


def density_figure(density: Float[np.ndarray, " d_sae"], *, n_tokens: int) -> Figure:
    """How many latents are above zero on which share of the tokens; the dead stand apart."""
    figure = make_figure(width=6.0, height=3.4)
    axes = axes_in(figure, (1, 1, 1), title="How often is each feature active?", y="features")
    axes.set_xlabel(f"share of the {n_tokens:,} tokens on which a feature is active")
    start = -np.log10(n_tokens) - _BIN / 2
    edges = np.arange(start, _BIN, _BIN)
    never = start - 2 * _BIN
    rare, frequent = (density > 0) & (density < RARE), density > FREQUENT
    groups = (
        (density == 0, RED, "dead, never active"),
        (rare, GRAY, "rare, below one in a million"),
        ((density >= RARE) & ~frequent, BLUE, "in between"),
        (frequent, AMBER, "frequent, above 10 %"),
    )
    bottom = np.zeros(edges.size - 1)
    for chosen, color, words in groups:
        label = f"{words}: {int(chosen.sum()):,}"
        if words.startswith("dead"):
            axes.bar(never, chosen.sum(), width=_BIN, color=color, label=label)
        elif chosen.any():
            counts, _ = np.histogram(np.log10(density[chosen]), edges)
            axes.bar(edges[:-1], counts, _BIN, bottom, align="edge", color=color, label=label)
            bottom += counts
    powers = range(int(np.ceil(start)), 1)
    axes.set_xticks([never, *powers], ["never", *(f"$10^{{{power}}}$" for power in powers)])
    axes.set_xlim(never - _BIN, edges[-1])
    _make_room(axes)
    axes.legend(loc="best", title=f"of {density.size:,} features", **LEGEND)
    return figure


def encoder_decoder_figure(cosine: Float[np.ndarray, " d_sae"]) -> Figure:
    """Histogram of the cosine of what each latent reads with what it writes."""
    figure = make_figure(width=6.0, height=3.4)
    title = "Do features write what they read?"
    axes = axes_in(figure, (1, 1, 1), title=title, y="features")
    axes.set_xlabel("cosine of a feature's encoder column with its decoder row")
    low, median = min(0.0, float(cosine.min())), float(np.median(cosine))
    axes.hist(cosine, np.linspace(low, 1, 81).tolist(), color=BLUE, alpha=0.8)
    axes.axvline(median, color=INK, lw=1.2, ls="--", label=f"median {median:.2f}")
    axes.set_xlim(low, 1)
    axes.legend(loc="upper left", **LEGEND)
    return figure


def _make_room(axes: Axes) -> None:
    """Space for a legend above the highest bar."""
    tops = [bar.get_y() + bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle)]
    axes.set_ylim(0, _ROOM * max(tops))


def inserted_figure(report: EvalReport) -> Figure:
    """A bar a layer: the model's own loss, and on it what splicing the coder in there adds.

    Where the loss falls, what it falls by is the outlined end of the bar.
    """
    sites = [Site.parse(one.site).of_layer("--layers") for one in report.inserted]
    added = np.array([one.added for one in report.inserted])
    figure = make_figure(width=max(5.0, 1.6 + 0.42 * len(sites)), height=3.6)
    title = f"The SAE of {report.site}, spliced in at each layer"
    axes = axes_in(figure, (1, 1, 1), title=title, y="cross-entropy (nats)")
    axes.set_xlabel(f"layer at whose {sites[0].kind} it is spliced in")
    at = np.arange(len(sites))
    clean, label = report.ce_clean, f"the model alone: {report.ce_clean:.3f}"
    axes.bar(at, clean + added.clip(max=0), 0.72, color=GREEN, alpha=0.75, label=label)
    axes.bar(at, added.clip(0), 0.72, clean, color=RED, label="added")
    if (fell := added < 0).any():
        axes.bar(
            at[fell], added[fell], 0.72, clean, facecolor="none", edgecolor=GREEN, ls="--",
            label="removed",
        )  # fmt: skip
    for x, height in enumerate(added):
        axes.annotate(
            f"{height:+.3f}", (x, clean + max(height, 0)), (0, 3), ha="center",
            textcoords="offset points", fontsize=7.5, color=INK,
            rotation=90 if len(sites) > _MANY else 0,
        )  # fmt: skip
    beside = max(5 - len(sites), 0) / 2
    axes.set_xlim(-0.75 - beside, len(sites) - 0.25 + beside)
    axes.grid(visible=False, axis="x")
    axes.set_xticks(at, [str(site.layer) for site in sites])
    for site, tick in zip(sites, axes.get_xticklabels(), strict=True):
        if str(site) == report.site:
            tick.set(fontweight="bold", color=INK)
    axes.set_ylim(0, 1.25 * float(clean + max(added.max(), 0)))
    axes.legend(loc="upper left", ncols=3, **LEGEND)
    return figure


def frontier_figure(reports: Sequence[EvalReport]) -> Figure:
    """L0 against loss recovered, with the intervals there are.

    Filled are the runs that no other of their model, text and site beats, by recovering as much
    with fewer active features. A line joins those that none of their own kind beats.
    """
    runs = frontier_points(reports)
    figure = make_figure(width=6.8, height=4.6)
    title = "Loss recovered, for how many active features"
    axes = axes_in(figure, (1, 1, 1), title=title, y="loss recovered, against zero ablation")
    axes.set_xlabel("L0: features active per token")
    if not runs:
        say(axes, "nothing to draw: zeroing these sites costs no loss")
        return figure
    for i, kind in enumerate(dict.fromkeys(run.kind for run in runs)):
        _draw_kind(axes, [run for run in runs if run.kind == kind], color=KINDS[i % len(KINDS)])
    as_log_if_wide(axes, "x", [run.l0 for run in runs])
    axes.margins(x=0.16, y=0.1)
    axes.autoscale_view()
    shown = sorted(runs, key=lambda run: not run.best)  # the best are the last to lose their names
    label_points(
        axes,
        [Label(at=_at(run), text=_told(run), color=INK if run.best else GRAY) for run in shown],
        n_shown=len(runs) if len(runs) <= _LABELS else sum(run.best for run in runs),
    )
    axes.legend(loc="best", title="filled: on the frontier", **LEGEND)
    return figure


def _draw_kind(axes: Axes, runs: Sequence[FrontierPoint], *, color: str) -> None:
    """The runs of one kind, and the line through its own frontier.

    Those that recover less than nothing stand at the lower edge, as triangles.
    """
    above = [run for run in runs if run.recovered >= 0]
    own = [above[i] for i in frontier([(run.l0, run.recovered) for run in above])]
    at = [run.l0 for run in own], [run.recovered for run in own]
    axes.plot(*at, color=color, lw=1.3, alpha=0.5)
    for run in runs:
        marker, error = "v", None
        if run.recovered >= 0:
            marker, error = "o", [[run.below], [run.above]]
        axes.errorbar(
            *_at(run), yerr=error, fmt=marker, ms=5.5, color=color, elinewidth=1, capsize=2,
            mfc=color if run.best else "white", zorder=3,
        )  # fmt: skip
    axes.plot([], [], "o", ms=5.5, color=color, label=runs[0].kind)


def _at(run: FrontierPoint) -> tuple[float, float]:
    return run.l0, max(run.recovered, 0.0)


def _told(run: FrontierPoint) -> str:
    """A run's name, with what it recovers where that cannot be seen."""
    return run.name if run.recovered >= 0 else f"{run.name} ({run.recovered:.2f})"


def evaluation_figures(report: EvalReport) -> dict[str, Figure]:
    """What the evaluation of one run shows, by name."""
    density, n_tokens = np.array(report.density), report.n_tokens
    cosine = None if report.dead_cosine is None else np.array(report.dead_cosine)
    figures = {
        "density": density_figure(density, n_tokens=n_tokens),
        "encoder_decoder": encoder_decoder_figure(np.array(report.encoder_decoder_cosine)),
        "dead_cosine": dead_cosine_figure(cosine, density == 0, n_tokens=n_tokens),
    }
    if report.inserted and report.ce_clean is not None:
        figures["inserted"] = inserted_figure(report)
    return figures


def save_figures(report: EvalReport) -> tuple[Path, ...]:
    """Draw what the evaluation of one run shows into its folder; gives the files."""
    return save_all(evaluation_figures(report), report.run)


def save_frontier(reports: Sequence[EvalReport], folder: Path) -> tuple[Path, ...]:
    """Draw what several runs recover into `folder`; gives the files, `frontier`."""
    return save_all({"frontier": frontier_figure(reports)}, folder)
