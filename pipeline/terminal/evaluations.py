"""Tables of evaluations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.evaluate.metrics import METRICS, SHARE, Metric, sections
from pipeline.evaluate.report import QUANTILES, EvalReport, Interval
from pipeline.runs.names import middle_out, names_of, words_of
from pipeline.tables import Column, Table, cell, percent
from pipeline.text.token_text import visible

TUNED_ROWS = {
    "ce_base": "loss, the model alone",
    "ce_spliced": "loss, SAE spliced in",
    "ce_finetuned": "loss, after learning c and d",
}

_COLUMNS = 3
"""Runs that stand side by side; more have a line each."""
_NAME = 26
"""Characters of a run's name over a column."""


def named(result: object, rows: Mapping[str, str]) -> dict[str, object]:
    """Fields of a result by the words that people know them by."""
    return {words: getattr(result, key) for key, words in rows.items()}


def metric_facts(report: EvalReport) -> dict[str, str]:
    """Every metric by the words that people know it by."""
    return {m.words: _number(report.metrics.get(m.name), m.unit) for m in METRICS.values()}


def eval_tables(reports: Sequence[EvalReport]) -> Iterator[Table]:
    """What there is to see of some evaluations: of few all, of many what they are chosen by."""
    if len(reports) > _COLUMNS:
        yield lines_table(reports)
    else:
        yield columns_table(reports)
        if any(report.inserted for report in reports):
            yield inserted_table(reports)
        if len(reports) == 1 and reports[0].worst:
            yield worst_table(reports[0])
    if any(report.overlaps for report in reports):
        yield overlaps_table(reports)


def columns_table(reports: Sequence[EvalReport]) -> Table:
    """One column a run. A lone run has the intervals of all metrics, others that of one."""
    alone, parts = len(reports) == 1, list[list[list[str]]]()
    for metrics in sections().values():
        parts.append([])
        for metric in metrics:
            told = (_told(report, metric, alone=alone) for report in reports)
            parts[-1].append([metric.words, *told])
            if metric.name == "l0":
                parts[-1].append(["L0, median [5 .. 95 %]", *map(_quantiles, reports)])
    names = _names(reports)
    heads = (
        f"{name}\n{below}".strip() for name, below in zip(names.short, names.below, strict=True)
    )
    return Table(
        title=_title(reports, names),
        columns=[Column(), *(Column(head=head, align="right", folds=True) for head in heads)],
        sections=parts,
    )


def lines_table(reports: Sequence[EvalReport]) -> Table:
    """One line a run, narrow enough for a pipe."""
    names, rows = _names(reports), list[list[str]]()
    shown = [metric for metric in METRICS.values() if metric.heading]
    bounded = {one.metric for report in reports for one in report.intervals} & {_BOUNDED}
    for report, name, below in zip(reports, names.whole, names.below, strict=True):
        rows.append([f"{name}\n{below}".strip()])
        for metric in shown:
            rows[-1].append(_brief(report.metrics.get(metric.name), metric.unit))
            if metric.name in bounded:
                interval = _interval(report, metric)
                rows[-1].append(_span(interval, metric.unit) if interval else "-")
    heads = [[metric.heading, *(["95 %\ninterval"] * (metric.name in bounded))] for metric in shown]
    numbers = [Column(head=head, align="right") for some in heads for head in some]
    return Table(
        title=_title(reports, names),
        columns=[Column(head="run", folds=True), *numbers],
        sections=[rows],
        ruled=False,
    )


def inserted_table(reports: Sequence[EvalReport]) -> Table:
    """What splicing each coder in at each layer adds to the loss."""
    sites = dict.fromkeys(one.site for report in reports for one in report.inserted)
    added = [{one.site: f"{one.added:+.4f}" for one in report.inserted} for report in reports]
    columns = [Column(head=name, align="right", folds=True) for name in _names(reports).short]
    return Table(
        title="loss added, nats a token",
        columns=[Column(head="spliced in at"), *columns],
        sections=[[[site, *(its.get(site, "-") for its in added)] for site in sites]],
        edged=True,
    )


def worst_table(report: EvalReport) -> Table:
    """The contexts whose loss the coder raises most, each as far as the line goes."""
    rows: list[list[str]] = []
    for one in report.worst:
        added = one.ce_patched - one.ce_clean
        numbers = (one.context, one.ce_clean, one.ce_patched, added)
        rows.append([*map(_number, numbers), visible(one.text)])
    columns = [Column(head=head, align="right") for head in ("loss", "spliced", "added")]
    return Table(
        title=f"contexts that {report.run.name} harms most",
        columns=[Column(head="context"), *columns, Column(head="text", fills=True)],
        sections=[rows],
        edged=True,
    )


def overlaps_table(reports: Sequence[EvalReport]) -> Table:
    """The mean max cosine similarity of each dictionary, a line, to each other, a column."""
    rows: list[list[str]] = []
    for number, (report, name) in enumerate(zip(reports, _names(reports).short, strict=True), 1):
        found = {overlap.run: f"{overlap.mmcs:.3f}" for overlap in report.overlaps}
        rows.append([f"{number} {name}", *(found.get(other.run, "-") for other in reports)])
    numbers = [Column(head=str(number + 1), align="right") for number in range(len(reports))]
    return Table(
        title="MMCS: how much of a line's dictionary a column's holds",
        columns=[Column(), *numbers],
        sections=[rows],
        edged=True,
    )


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What tells runs apart, and what they have in common, each thing said once."""

    whole: Sequence[str]
    short: Sequence[str]
    """The same for heads."""
    below: Sequence[str]
    """The architecture and the site of each, where they differ and its name does not say them."""
    common: Sequence[str]


def _names(reports: Sequence[EvalReport]) -> _Names:
    runs = [report.run for report in reports]
    words = [words_of(name) for name in names_of(runs)]
    common = [word for word in words[0] if all(word in its for its in words)]
    own = [tuple(word for word in its if word not in common) for its in words]
    if not all(own) or len({*own}) < len(own):  # a lone run, for one
        own, common = list(map(tuple, words)), []
    below: list[list[str]] = [[] for _ in reports]
    for name in ("site", "arch"):
        values = [str(getattr(report, name)) for report in reports]
        if len({*values}) == 1 and len(reports) > 1:
            common = [values[0], *(word for word in common if word != values[0])]
            continue
        for run, value, its in zip(runs, values, below, strict=True):
            if value not in words_of(run.name):
                its.insert(0, value)
    whole = [", ".join(its) for its in own]  # a long one is broken where there are spaces
    return _Names(
        whole=whole,
        short=[middle_out(name, _NAME) for name in whole],
        below=[" ".join(its) for its in below],
        common=common,
    )


def _title(reports: Sequence[EvalReport], names: _Names) -> str:
    """On what the runs were evaluated, and what is the same of all."""
    models, texts = {report.model for report in reports}, {report.text for report in reports}
    tokens = sorted({report.n_tokens for report in reports})
    model = models.pop() if len(models) == 1 else f"{len(models)} models"
    text = texts.pop() if len(texts) == 1 else f"{len(texts)} texts"
    n = " to ".join(f"{n:,}" for n in dict.fromkeys((tokens[0], tokens[-1])))
    common = f"\nall runs: {', '.join(names.common)}" if names.common else ""
    return f"{model} on {text}, {n} tokens; losses in nats a token{common}"


_BOUNDED = "ce_added"
"""The metric whose interval is told of several runs."""


def _told(report: EvalReport, metric: Metric, *, alone: bool) -> str:
    """A metric, with its interval where there is room for it."""
    told, interval = _number(report.metrics.get(metric.name), metric.unit), None
    if alone or metric.name == _BOUNDED:
        interval = _interval(report, metric)
    between = " " if alone else "\n"
    return told if interval is None else f"{told}{between}{_span(interval, metric.unit)}"


def _interval(report: EvalReport, metric: Metric) -> Interval | None:
    return next((one for one in report.intervals if one.metric == metric.name), None)


def _brief(value: float | int | None, unit: str) -> str:
    """A number in a narrow column."""
    if isinstance(value, float) and 10 <= abs(value) < 1e3 and unit != SHARE:
        return f"{value:.1f}"
    return _number(value, unit)


def _quantiles(report: EvalReport) -> str:
    at = dict(zip(QUANTILES, report.l0_quantiles, strict=True))
    return f"{at[0.5]:g} [{at[0.05]:g} .. {at[0.95]:g}]"


def _span(interval: Interval, unit: str) -> str:
    if unit == SHARE:
        return f"[{percent(interval.low)}..{percent(interval.high)}]"
    decimals = ".3f" if 1e-2 <= max(abs(interval.low), abs(interval.high)) < 1e3 else ".3g"
    return f"[{interval.low:{decimals}}..{interval.high:{decimals}}]"


def _number(value: float | int | None, unit: str = "") -> str:
    """As in every table, but with digits left of what is very small, and few of what is large."""
    if unit == SHARE:
        return percent(value)
    if not isinstance(value, float) or not value or 1e-3 <= abs(value) < 1e3:
        return cell(value)
    return f"{value:,.1f}" if 1e3 <= abs(value) < 1e9 else f"{value:.3g}"
