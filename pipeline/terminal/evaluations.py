"""Tables of evaluations."""

from collections.abc import Iterator, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from pipeline.evaluate.report import QUANTILES, EvalReport, Interval
from pipeline.runs.names import middle_out, names_of
from pipeline.terminal.words import cell
from pipeline.text.token_text import visible

EVAL_SECTIONS: Sequence[Mapping[str, str]] = (
    {
        "ce_clean": "loss, the model alone",
        "ce_patched": "loss, SAE spliced in",
        "ce_zero": "loss, site zeroed",
        "ce_mean": "loss, site at its mean",
        "loss_recovered": "loss recovered (zero)",
        "loss_recovered_mean": "loss recovered (mean)",
        "kl": "KL(model || spliced)",
        "kl_recovered": "KL recovered (zero)",
        "perplexity_clean": "perplexity, model alone",
        "perplexity_patched": "perplexity, SAE spliced in",
        "perplexity_difference": "perplexity added",
    },
    {
        "explained_variance": "explained variance",
        "mse": "mean squared error",
        "cosine": "cosine(x, x_hat)",
        "relative_bias": "relative bias",
        "l2_ratio": "L2 ratio, |x_hat| / |x|",
    },
    {
        "l0": "L0",
        "l0_quantiles": "L0, median [5 .. 95 %]",
        "l1": "L1",
        "n_dead": "dead features",
        "n_rare": "rare features, < 1e-6",
        "n_frequent": "frequent features, > 10 %",
    },
    {
        "dead_cosine_mean": "dead-feature cosine, dead",
        "alive_cosine_mean": "dead-feature cosine, alive",
        "encoder_decoder_cosine_median": "encoder-decoder cosine",
        "max_cosine_mean": "max cosine to another",
    },
)
"""Fields of a report by the words that people know them by."""

_WORDS = {key: words for section in EVAL_SECTIONS for key, words in section.items()}
EVAL_ROWS = {
    key: _WORDS[key]
    for key in (
        "ce_clean", "ce_patched", "ce_zero", "ce_mean", "loss_recovered", "loss_recovered_mean",
        "kl", "l0", "explained_variance", "mse", "cosine", "n_dead", "dead_cosine_mean",
        "alive_cosine_mean",
    )
}  # fmt: skip
"""The most telling of them."""
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


def facts_table(title: str, rows: Mapping[str, object]) -> Table:
    """Names and values in two columns."""
    table = Table(title=Text(title), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(cell(value)))
    return table


def eval_tables(reports: Sequence[EvalReport]) -> Iterator[Table]:
    """What there is to see of some evaluations: of few all, of many what they are chosen by."""
    if len(reports) > _COLUMNS:
        yield lines_table(reports)
    else:
        yield columns_table(reports)
        if any(report.inserted for report in reports):
            yield inserted_table(reports)
        yield from (worst_table(report) for report in reports if report.worst)
    if any(report.overlaps for report in reports):
        yield overlaps_table(reports)


def columns_table(reports: Sequence[EvalReport]) -> Table:
    """One column a run. A lone run has the intervals of all metrics, others that of one."""
    table = _table(title=_title(reports))
    table.show_edge = False  # three runs fit into 80 columns
    table.add_column(no_wrap=True)
    for report, name in zip(reports, _heads(reports), strict=True):
        head = Text(f"{name}\n{report.arch} {report.site}")
        table.add_column(head, justify="right", overflow="fold")
    alone = len(reports) == 1
    for section in EVAL_SECTIONS:
        for key, words in section.items():
            table.add_row(words, *(Text(_told(report, key, alone=alone)) for report in reports))
        table.add_section()
    return table


def lines_table(reports: Sequence[EvalReport]) -> Table:
    """One line a run."""
    table = _table(title=_title(reports))
    table.add_column("run", overflow="fold")
    for head in ("L0", "loss\nrecovered", "KL", "explained\nvariance", "dead"):
        table.add_column(head, justify="right")
    keys = ("l0", "loss_recovered", "kl", "explained_variance", "n_dead")
    names = names_of([report.run for report in reports])
    for report, name in zip(reports, names, strict=True):
        told = (_told(report, key, alone=False) for key in keys)
        table.add_row(*map(Text, (f"{name}\n{report.arch} {report.site}", *told)))
    return table


def inserted_table(reports: Sequence[EvalReport]) -> Table:
    """What splicing each coder in at each layer adds to the loss."""
    table = _table(title="loss added, nats a token")
    table.add_column("spliced in at", no_wrap=True)
    for head in _heads(reports):
        table.add_column(Text(head), justify="right", overflow="fold")
    sites = dict.fromkeys(one.site for report in reports for one in report.inserted)
    added = [{one.site: one.added for one in report.inserted} for report in reports]
    for site in sites:
        table.add_row(site, *(f"{its[site]:+.4f}" if site in its else "-" for its in added))
    return table


def worst_table(report: EvalReport) -> Table:
    """The contexts whose loss the coder raises most, each as far as the line goes."""
    table = _table(title=f"contexts that {report.run.name} harms most")
    table.add_column("context", no_wrap=True)
    for head in ("loss", "spliced", "perplexity\nadded"):
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("text", no_wrap=True, overflow="ellipsis", ratio=1)  # what is left
    table.expand = True
    for one in report.worst:
        numbers = (one.context, one.ce_clean, one.ce_patched, one.perplexity_difference)
        table.add_row(*map(_number, numbers), Text(visible(one.text)))
    return table


def overlaps_table(reports: Sequence[EvalReport]) -> Table:
    """The mean max cosine similarity of each dictionary, a line, to each other, a column."""
    table = _table(title="MMCS: how much of a line's dictionary a column's holds")
    table.add_column()
    for number in range(1, len(reports) + 1):
        table.add_column(str(number), justify="right")
    for number, (report, name) in enumerate(zip(reports, _heads(reports), strict=True), 1):
        found = {overlap.run: f"{overlap.mmcs:.3f}" for overlap in report.overlaps}
        cells = (found.get(other.run, "-") for other in reports)
        table.add_row(Text(f"{number} {name}"), *cells)
    return table


def _table(*, title: str) -> Table:
    return Table(title=Text(title), title_justify="left")


def _heads(reports: Sequence[EvalReport]) -> list[str]:
    return [middle_out(name, _NAME) for name in names_of([report.run for report in reports])]


def _title(reports: Sequence[EvalReport]) -> str:
    """On what the runs were evaluated."""
    models, texts = {report.model for report in reports}, {report.text for report in reports}
    tokens = sorted({report.n_tokens for report in reports})
    model = models.pop() if len(models) == 1 else f"{len(models)} models"
    text = texts.pop() if len(texts) == 1 else f"{len(texts)} texts"
    n = " to ".join(f"{n:,}" for n in dict.fromkeys((tokens[0], tokens[-1])))
    return f"{model} on {text}, {n} tokens; losses in nats a token"


def _told(report: EvalReport, key: str, *, alone: bool) -> str:
    """A field, with its interval where there is room for it."""
    if key == "l0_quantiles":
        at = dict(zip(QUANTILES, report.l0_quantiles, strict=True))
        return f"{at[0.5]:g} [{at[0.05]:g} .. {at[0.95]:g}]"
    told = _number(getattr(report, key))
    interval = next((one for one in report.intervals if one.metric == key), None)
    if interval is None or not (alone or key == "loss_recovered"):
        return told
    between = " " if alone else "\n"
    return f"{told}{between}{_span(interval)}"


def _span(interval: Interval) -> str:
    decimals = ".3f" if 1e-2 <= max(abs(interval.low), abs(interval.high)) < 1e3 else ".3g"
    return f"[{interval.low:{decimals}}..{interval.high:{decimals}}]"


def _number(value: float | int | None) -> str:
    """As in every table, but with digits left of what is very small, and few of what is large."""
    if not isinstance(value, float) or not value or 1e-3 <= abs(value) < 1e3:
        return cell(value)
    return f"{value:,.1f}" if 1e3 <= abs(value) < 1e9 else f"{value:.3g}"
