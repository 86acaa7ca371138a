"""The table of an evaluation on a page: each metric, what it means, and how sure it is."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pipeline.evaluate.metrics import METRICS, SHARE, Metric, sections
from pipeline.evaluate.report import QUANTILES, EvalReport
from pipeline.tables import percent


def number(value: int | float | None) -> str:
    """Four significant digits, no powers of ten from 0.0001 to a million; a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One number."""

    value: str
    interval: str
    """Its 95 % interval, empty without one."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One metric of every run, or every main metric of one."""

    name: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, kw_only=True)
class Group:
    """Rows that belong together."""

    title: str
    rows: tuple[Row, ...]


def metric_groups(reports: Sequence[EvalReport | None]) -> list[Group]:
    """A row a metric, a cell a run; empty cells for runs that were not evaluated."""
    return [
        Group(
            title=title,
            rows=tuple(row for metric in metrics for row in _metric_rows(metric, reports)),
        )
        for title, metrics in sections().items()
    ]


def main_heads() -> list[tuple[str, str]]:
    """What the main metrics are called; no more is said of them."""
    return [(metric.words, "") for metric in METRICS.values() if metric.main]


def main_rows(names: Sequence[str], reports: Sequence[EvalReport | None]) -> list[Row]:
    """A row a run, a cell a main metric."""
    main = [metric for metric in METRICS.values() if metric.main]
    return [
        Row(name=name, note="", cells=tuple(_cell(report, metric) for metric in main))
        for name, report in zip(names, reports, strict=True)
    ]


def _metric_rows(metric: Metric, reports: Sequence[EvalReport | None]) -> Iterator[Row]:
    cells = tuple(_cell(report, metric) for report in reports)
    yield Row(name=metric.words, note=metric.note, cells=cells)
    if metric.name == "l0":
        told = [
            " / ".join(map(number, report.l0_quantiles)) if report else "" for report in reports
        ]
        note = " / ".join(f"{q:.0%}" for q in QUANTILES)
        cells = tuple(Cell(value=value, interval="") for value in told)
        yield Row(name="its quantiles", note=note, cells=cells)


def _cell(report: EvalReport | None, metric: Metric) -> Cell:
    if report is None:
        return Cell(value="", interval="")
    write = percent if metric.unit == SHARE else number
    found = next((i for i in report.intervals if i.metric == metric.name), None)
    interval = f"{write(found.low)} to {write(found.high)}" if found else ""
    return Cell(value=write(report.metrics.get(metric.name)), interval=interval)
