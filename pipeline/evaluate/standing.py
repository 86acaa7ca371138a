"""Where runs stand between few active features and much of the loss recovered."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from pipeline.evaluate.names import middle_out, names_of
from pipeline.evaluate.report import EvalReport
from pipeline.plots_training import frontier

_NAME = 26
"""Characters of a run's name."""


@dataclass(frozen=True, kw_only=True)
class Standing:
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


def standings(reports: Sequence[EvalReport]) -> list[Standing]:
    """Where runs stand, in their order; those whose ablation costs no loss stand nowhere."""
    there = [(r, r.loss_recovered) for r in reports if r.loss_recovered is not None]
    settings = [(report.site, report.model, report.text) for report, _ in there]
    best = set[int]()
    for setting in set(settings):
        members = [i for i, other in enumerate(settings) if other == setting]
        unbeaten = frontier([(there[i][0].l0, there[i][1]) for i in members])
        best |= {members[i] for i in unbeaten}
    kinds = _kinds([report for report, _ in there])
    names = _names([report.run for report, _ in there], kinds)
    found = list[Standing]()
    for i, (report, recovered) in enumerate(there):
        intervals = {interval.metric: interval for interval in report.intervals}
        interval = intervals.get("loss_recovered")
        low, high = (interval.low, interval.high) if interval else (recovered, recovered)
        found.append(
            Standing(
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
    settings = [", ".join(word for word in run.name.split(",") if "=" in word) for run in runs]
    alone = Counter(zip(kinds, settings, strict=True))
    return [
        middle_out(its if its and alone[kind, its] == 1 else name, _NAME)
        for its, kind, name in zip(settings, kinds, names_of(runs), strict=True)
    ]
