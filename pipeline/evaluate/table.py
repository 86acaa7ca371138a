"""Several reports as one table of numbers, for a spreadsheet or a data frame."""

import csv
from collections.abc import Collection, Sequence
from dataclasses import fields
from io import StringIO
from pathlib import Path

from actstore.files import write_file
from pipeline.evaluate.report import QUANTILES, EvalReport

_LEFT_OUT = frozenset({
    "density", "dead_cosine", "encoder_decoder_cosine", "max_cosine", "overlaps", "intervals",
    "inserted", "worst",
})  # fmt: skip
"""What has a value per latent, layer, context or other run."""


def write_table(reports: Sequence[EvalReport], path: Path) -> None:
    """A line a run: every single value, and after a metric the ends of its interval.

    An empty field is a ratio that would have divided by nothing, or an interval that is not there.

    Raises:
        OSError: the file cannot be written.
    """
    measured = {interval.metric for report in reports for interval in report.intervals}
    rows = [_row(report, measured) for report in reports]
    text = StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, [text.getvalue().encode()])


def _row(report: EvalReport, measured: Collection[str]) -> dict[str, object]:
    """The fields of one line, by the names of their columns."""
    intervals = {interval.metric: interval for interval in report.intervals}
    row: dict[str, object] = {}
    for name in (f.name for f in fields(report) if f.name not in _LEFT_OUT):
        match name:
            case "l0_quantiles":
                names = (f"l0_q{round(100 * q):02}" for q in QUANTILES)
                row |= zip(names, report.l0_quantiles, strict=True)
            case "excluded" | "notes":
                row[name] = "; ".join(getattr(report, name))
            case _:
                row[name] = getattr(report, name)
        if name in measured:
            found = intervals.get(name)
            row[f"{name}_low"] = found and found.low
            row[f"{name}_high"] = found and found.high
    return row
