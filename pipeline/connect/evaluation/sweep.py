"""Connectors that differ in nothing but their coefficient, in its order."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

from pipeline.connect.evaluation.report import ConnectorReport, ScoredMap


@dataclass(frozen=True, kw_only=True)
class Line:
    """Connectors between the same SAEs, trained alike, and the baselines of these SAEs."""

    kind: str
    """What tells it from the other lines."""
    names: tuple[str, ...]
    """Of its connectors: their coefficients."""
    maps: tuple[ScoredMap, ...]
    baselines: tuple[ScoredMap, ...]
    """Empty where another line has the same."""


def lines_of(reports: Sequence[ConnectorReport]) -> list[Line]:
    """These connectors, sweep by sweep."""
    sweeps: dict[tuple[object, ...], list[ConnectorReport]] = {}
    for report in reports:
        sweeps.setdefault((*_ends(report), report.activation, report.start), []).append(report)
    kinds = _kinds([members[0] for members in sweeps.values()])
    seen, lines = set[tuple[object, ...]](), list[Line]()
    for kind, members in zip(kinds, sweeps.values(), strict=True):
        members.sort(key=lambda report: report.l1)
        ends = _ends(members[0])
        lines.append(
            Line(
                kind=kind,
                names=tuple(f"l1 = {report.l1:g}" for report in members),
                maps=tuple(report.connector for report in members),
                baselines=() if ends in seen else members[0].baselines,
            )
        )
        seen.add(ends)
    return lines


def _ends(report: ConnectorReport) -> tuple[object, ...]:
    return report.source, report.target, report.model, report.text


def _kinds(reports: Sequence[ConnectorReport]) -> list[str]:
    """Their sites, with those of their other properties in which they differ."""
    words = [
        (
            " → ".join(report.sites),
            f"{report.source.name} → {report.target.name}",
            report.start,
            report.activation,
            Path(report.model).name,
            report.text,
        )
        for report in reports
    ]
    differs = [len(set(values)) > 1 for values in zip(*words, strict=True)]
    if differs[0]:
        differs[1] = len({its[0] for its in words}) < len({its[:2] for its in words})
    else:
        differs[0] = not any(differs)
    return [", ".join(compress(its, differs)) for its in words]
