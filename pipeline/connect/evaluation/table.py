"""Several connectors as one table of numbers, for a spreadsheet or a data frame."""

import csv
from collections.abc import Sequence
from dataclasses import fields
from io import StringIO
from pathlib import Path

from actstore.files import write_file
from pipeline.connect.evaluation.report import QUANTILES, ConnectorReport, ScoredMap

_LEFT_OUT = frozenset({"layer", "maps", "explained", "above", "intervals"})
"""What has a value per output, or is made of several."""
_OF_NONE = {"run": "", "activation": "", "start": "", "l1": ""}
"""What baselines do not have."""
_BOUNDED = ("fvu", "loss_recovered", "recovered_of_sae")
_AT = {
    "explained_quantiles": "explained", "nonzero_quantiles": "nonzero", "above_quantiles": "above",
}  # fmt: skip
"""What quantiles are of, by their field."""


def write_connector_table(reports: Sequence[ConnectorReport], path: Path) -> None:
    """A line for each connector, and one for each baseline of its ends.

    Connectors between the same SAEs have the same baselines: those of the first are written. An
    empty field is a ratio that would have divided by nothing, or an interval that is not there.

    Raises:
        OSError: the file cannot be written.
    """
    rows = list[dict[str, object]]()
    seen = set[tuple[object, ...]]()
    for report in reports:
        rows.append(_row(report, report.connector))
        ends = (report.source, report.target, report.model, report.text)
        if ends not in seen:
            rows += (_row(report, baseline) | _OF_NONE for baseline in report.baselines)
        seen.add(ends)
    text = StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, [text.getvalue().encode()])


def _row(report: ConnectorReport, scored: ScoredMap) -> dict[str, object]:
    """The fields of one line, by the names of their columns."""
    row: dict[str, object] = {"map": scored.name}
    for f in fields(report):
        value = getattr(report, f.name)
        if f.name not in _LEFT_OUT:
            row[f.name] = "; ".join(value) if isinstance(value, tuple) else value
    layer = report.layer
    row |= {"layer_n": layer and layer.n, "layer_n_above": layer and layer.n_above}
    intervals = {interval.metric: interval for interval in scored.intervals}
    for f in fields(scored):
        value = getattr(scored, f.name)
        if f.name in _AT:
            padded = value or (None,) * len(QUANTILES)
            names = (f"{_AT[f.name]}_q{round(100 * q):02}" for q in QUANTILES)
            row |= zip(names, padded, strict=True)
        elif f.name == "l1":
            row["mean_abs_W"] = value  # the coefficient of the penalty has the name l1
        elif f.name not in {*_LEFT_OUT, "name"}:
            row[f.name] = value
        if f.name in _BOUNDED:
            found = intervals.get(f.name)
            row[f"{f.name}_low"] = found and found.low
            row[f"{f.name}_high"] = found and found.high
    return row
