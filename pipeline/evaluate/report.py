"""What an evaluation says: plain numbers, ready for JSON; what they mean is in `metrics.py`.

The latest report of a run is kept in its folder as `eval.json`. Several are one table, `eval.csv`,
for a spreadsheet or a data frame.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from actstore.files import in_turn, write_file
from pipeline.config.serialization import FLAT, from_json, located, portable, to_json
from pipeline.errors import CheckpointError, ConfigError, DataError
from pipeline.evaluate.metrics import METRICS, Number, sections
from pipeline.frame import make_frame
from pipeline.runs.belongs import is_of
from pipeline.tables import Column, Table, as_html, cell, write_csv

EVAL_FILE = "eval.json"
"""In the folder of a run, its latest report."""
TABLE = "eval.csv"
"""Of several runs."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""Of the number of latents above zero on a token."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Between what bounds 95 of 100 resamplings of the contexts put a metric."""

    metric: str
    """The name of the metric."""
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Inserted:
    """The one coder, spliced in at another layer."""

    site: str
    ce_patched: float
    added: float
    """`ce_patched - ce_clean`."""


@dataclass(frozen=True, kw_only=True)
class WorstContext:
    """A context whose loss the coder raises most."""

    context: int
    """Its number in the text."""
    ce_clean: float
    ce_patched: float
    perplexity_difference: float
    text: str


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """How much of a run's dictionary another run has found too."""

    run: Path
    """The other run."""
    mmcs: float
    """Mean, over this run's features, of the largest cosine with one of the other's."""


@dataclass(frozen=True, kw_only=True)
class EvalReport:
    """One run, evaluated inside one language model on one text. Losses are nats per prediction.

    Ratios are None where they would divide by nothing.
    """

    run: Path
    sha256: str = ""
    """Of the weights of the run; empty in reports of versions that did not say."""
    site: str
    arch: str
    d_in: int
    d_sae: int
    model: str
    """The language model the coder was spliced into."""
    trained_on_model: str
    """The language model whose activations the coder was trained on."""
    text: str
    precision: str
    """Of the language model; the coder always computes in float32."""
    ctx_len: int
    n_tokens: int
    """Tokens whose activations were read and counted: whole contexts, less what is excluded."""
    n_predictions: int
    """Predictions whose losses were summed: at every counted token but the last of a context."""
    excluded: tuple[str, ...]
    """What was left as it is and not counted, as training left it out; empty for nothing."""

    metrics: Mapping[str, Number] = field(hash=False, metadata=FLAT)
    """By name, those of `METRICS`. An older version that wrote a report had fewer, a newer one has
    more; each is an attribute of the report too, None if it is not there."""
    l0_quantiles: tuple[float, ...]
    """Over tokens, at `QUANTILES`."""
    density: tuple[float, ...]
    """Per latent, the fraction of the `n_tokens` on which it is above zero."""
    dead_cosine: tuple[float, ...] | None
    """Per latent, the cosine of its decoder row with the mean dead row; None without dead."""
    encoder_decoder_cosine: tuple[float, ...]
    """Per latent, between what it reads and what it writes."""
    max_cosine: tuple[float, ...]
    """Per latent, the largest cosine of its dictionary row with that of another."""
    overlaps: tuple[Overlap, ...]
    """With each other run of this evaluation that is as wide; none of one of many runs."""

    intervals: tuple[Interval, ...]
    inserted: tuple[Inserted, ...]
    """One for each layer that was asked for."""
    worst: tuple[WorstContext, ...]
    """In descending order of their added loss."""
    notes: tuple[str, ...]
    """What a reader of these numbers must know, one sentence each."""

    def to_frame(self) -> Any:  # noqa: ANN401 - pandas need not be installed
        """One row, as in eval.csv: every single value, and the ends of its interval.

        Raises:
            ConfigError: pandas is not installed.
        """
        bounded = {interval.metric for interval in self.intervals}
        row = _row(self, dict.fromkeys([*METRICS, *self.metrics]), bounded)
        return make_frame({key: [str(x) if isinstance(x, Path) else x] for key, x in row.items()})

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        ends = {one.metric: f"{one.low:.4g} to {one.high:.4g}" for one in self.intervals}
        told = [
            [
                [metric.words, cell(self.metrics.get(metric.name)), ends.get(metric.name, "")]
                for metric in metrics
            ]
            for metrics in sections().values()
        ]
        title = f"{self.run.name} on {self.n_tokens:,} tokens of {self.text}"
        columns = [Column(), Column(align="right"), Column(head="95 % interval")]
        return as_html(Table(title=title, columns=columns, sections=told))

    def __repr__(self) -> str:
        shown = {
            "loss added": self.ce_added,
            "loss recovered": self.loss_recovered,
            "explained variance": self.explained_variance,
            "L0": self.l0,
            "dead features": self.n_dead,
        }
        told = ", ".join(f"{words} {x:.4g}" for words, x in shown.items() if x is not None)
        return (
            f"EvalReport({self.run}: {self.arch} at {self.site}, {self.d_sae:,} features, {told}, "
            f"on {self.n_tokens:,} tokens of {self.text})"
        )

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - what a field may be
        """A metric."""
        metrics = vars(self).get("metrics", {})  # not there yet while a copy is made
        if name in metrics or name in METRICS:
            return metrics.get(name)
        close = get_close_matches(name, [*metrics, *METRICS, *vars(self)], n=1)
        hint = f"did you mean {close[0]!r}?" if close else "dir(report) lists what it has"
        raise AttributeError(f"an evaluation has no {name!r}: {hint}")

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *METRICS, *self.metrics]


Report = TypeVar("Report")


def save_report(report: EvalReport) -> Path:
    """Write a report into the folder of its run, whole or not at all; gives the file."""
    return keep(report, report.run / EVAL_FILE)


def load_report(run: Path) -> EvalReport | None:
    """The report in the folder of a run, wherever that was when it was made.

    None without one, or where it is on the weights of another run.

    Raises:
        CheckpointError: it is damaged, or another version wrote it.
    """
    return kept(run, EVAL_FILE, EvalReport)


def keep(report: Any, path: Path) -> Path:  # noqa: ANN401 - any dataclass
    """Write a report, a key a line: a person can read it, lists of a value per latent included."""
    try:
        document: Any = to_json(portable(report, path.parent))
        lines = [
            f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}"
            for name, value in document.items()
        ]
    except ValueError as error:
        raise DataError(
            f"the evaluation of {path.parent} holds a number that is not finite: its weights hold "
            "NaN or infinity; train it again"
        ) from error
    with in_turn(path.with_name(f".{path.name}.lock")):
        _set_aside(path, report)
        write_file(path, [("{\n" + ",\n".join(lines) + "\n}\n").encode()])
    return path


def measured_on(report: object) -> tuple[int, str]:
    """How many tokens of which text a report of any kind is on."""
    return getattr(report, "n_tokens", 0), getattr(report, "text", "")


def replaces(was: tuple[int, str], now: tuple[int, str]) -> bool:
    """Whether a report on one text says less than another did, or something else."""
    return was[0] > 0 and (now[0] < was[0] or now[1] != was[1])


def _set_aside(path: Path, report: object) -> None:
    """Keep what a report would replace on more tokens, or on another text, as `eval-1.json`, ...

    Of one text and length the last alone is kept.
    """
    was = _told_on(path)
    if replaces(was, measured_on(report)):
        names = (path.with_stem(f"{path.stem}-{i}") for i in count(1))
        path.rename(next(name for name in names if not name.exists() or _told_on(name) == was))


def _told_on(path: Path) -> tuple[int, str]:
    """What the report in a file is on; nothing where there is none that can be read."""
    try:
        told = json.loads(path.read_bytes())
        return int(told["n_tokens"]), str(told["text"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0, ""


def kept(run: Path, name: str, kind: type[Report]) -> Report | None:
    """The report of a kind in a file of a run's folder, saying that it is of that run.

    None where there is none, or one on the weights of another.
    """
    path = run / name
    try:
        report: Any = located(from_json(kind, json.loads(path.read_bytes())), run)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, RecursionError, ConfigError) as error:
        raise CheckpointError(
            f"{path} is not a report that this version can read: {error}; make it again: "
            f"saepipe eval {run}"
        ) from error
    return replace(report, run=run) if is_of(run, report.sha256) else None


_LEFT_OUT = frozenset({
    "density", "dead_cosine", "encoder_decoder_cosine", "max_cosine", "overlaps", "intervals",
    "inserted", "worst",
})  # fmt: skip
"""What has a value per latent, layer, context or other run."""


def write_table(reports: Sequence[EvalReport], path: Path) -> None:
    """A line a run: every single value, and after a metric the ends of its interval.

    An empty field is a ratio that would have divided by nothing, or a metric or an interval that is
    not there.
    """
    measured = [*METRICS, *(name for report in reports for name in report.metrics)]
    bounded = {interval.metric for report in reports for interval in report.intervals}
    here = path.parent
    rows = [_row(portable(report, here), dict.fromkeys(measured), bounded) for report in reports]
    write_csv(path, rows)


def _row(
    report: EvalReport, measured: Collection[str], bounded: Collection[str]
) -> dict[str, object]:
    """The fields of one line, by the names of their columns."""
    intervals = {interval.metric: interval for interval in report.intervals}
    row: dict[str, object] = {}
    for name in (f.name for f in fields(report) if f.name not in _LEFT_OUT):
        match name:
            case "metrics":
                for metric in measured:
                    row[metric] = report.metrics.get(metric)
                    if metric in bounded:
                        found = intervals.get(metric)
                        row[f"{metric}_low"] = found and found.low
                        row[f"{metric}_high"] = found and found.high
            case "l0_quantiles":
                names = (f"l0_q{round(100 * q):02}" for q in QUANTILES)
                row |= zip(names, report.l0_quantiles, strict=True)
            case "excluded" | "notes":
                row[name] = "; ".join(getattr(report, name))
            case _:
                row[name] = getattr(report, name)
    return row
