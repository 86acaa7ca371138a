"""Results as tables, on the screen."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from pipeline.terminal.words import cell

if TYPE_CHECKING:  # it brings torch
    from pipeline.evaluate.report import EvalReport

EVAL_ROWS = {
    "ce_clean": "loss, the model alone",
    "ce_patched": "loss, SAE spliced in",
    "ce_zero": "loss, site zeroed",
    "ce_mean": "loss, site at its mean",
    "loss_recovered": "loss recovered (zero)",
    "loss_recovered_mean": "loss recovered (mean)",
    "kl": "KL(model || spliced)",
    "l0": "L0",
    "explained_variance": "explained variance",
    "mse": "mean squared error",
    "cosine": "cosine(x, x_hat)",
    "n_dead": "dead features",
    "dead_cosine_mean": "dead-feature cosine, dead",
    "alive_cosine_mean": "dead-feature cosine, alive",
}
TUNED_ROWS = {
    "ce_base": "loss, the model alone",
    "ce_spliced": "loss, SAE spliced in",
    "ce_finetuned": "loss, after learning c and d",
}


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


def reports_table(reports: "Sequence[EvalReport]") -> Table:
    """One column a run."""
    first = reports[0]
    title = f"{first.model} on {first.text}, {first.n_tokens:,} tokens; losses in nats a token"
    table = Table("", title=Text(title), title_justify="left")
    for report in reports:
        head = f"{report.run.name}\n{report.arch} {report.site}"
        table.add_column(Text(head), justify="right")
    columns = [named(report, EVAL_ROWS) for report in reports]
    for words in EVAL_ROWS.values():
        table.add_row(words, *(cell(column[words]) for column in columns))
    return table
