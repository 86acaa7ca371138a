"""What an evaluation of a connector says: plain numbers, in `connect_eval.json`, `connectors.csv`.

Definitions are with what finds them, in `scores.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from pipeline.config.serialization import portable
from pipeline.errors import CheckpointError
from pipeline.evaluate.report import QUANTILES, Interval, keep, kept
from pipeline.tables import write_csv

CONNECT_EVAL_FILE = "connect_eval.json"
"""In the folder of a connector's run, its latest report."""

TABLE = "connectors.csv"
"""Of several, in a folder of their own."""

CONNECTOR = "connector"
"""The name of the map that was trained; baselines have their own."""

BOUNDED = ("fvu", "loss_recovered", "recovered_of_sae")
"""Metrics of a map that get an interval."""

TAU = 0.1
"""Weights above it are counted, as in Riggs, Mitchell and Kaufman (2023)."""


@dataclass(frozen=True, kw_only=True)
class MapScores:
    """One map from latents to latents, scored. Ratios are None where they would divide by nothing.

    An output is alive if it is above zero on at least one of the tokens scored.
    """

    name: str
    """`connector`, or a baseline's: `mean`, `weights`, `correlation`, `ridge`."""

    fvu: float | None
    """Fraction of variance unexplained, over alive outputs together."""
    mse: float
    """Mean squared error over rows and all outputs."""
    explained_quantiles: tuple[float, ...]
    """At `QUANTILES`, of the variance explained of each alive output; empty without any."""

    l1: float
    """Mean of `|W|`."""
    n_nonzero: int
    """Weights that are not exactly zero."""
    nonzero_mean: float | None
    """Of them, how many an alive output has on average."""
    nonzero_quantiles: tuple[float, ...]
    """And at `QUANTILES` of the alive outputs; empty without any."""
    n_above: int
    """Weights with `|W|` above tau."""
    above_mean: float | None
    above_quantiles: tuple[float, ...]
    above_max: int
    """The most that one output has."""

    ce: float
    """Loss with `decode(map(encode(x)))` in the place of the second site."""
    kl: float
    """KL from the clean pass to that one."""
    loss_recovered: float | None
    """`(ce_zero - ce) / (ce_zero - ce_clean)`."""
    recovered_of_sae: float | None
    """`(ce_zero - ce) / (ce_zero - ce_sae)`: 1 where the map costs nothing beside the SAE."""
    intervals: tuple[Interval, ...]
    """Of the metrics in `BOUNDED`."""


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """The weights of the model's own layer between the two sites."""

    n: int
    n_above: int
    """Those with `|w|` above tau."""


@dataclass(frozen=True, kw_only=True)
class ConnectorReport:
    """One connector, and the baselines of its ends, on one text. Losses are nats per prediction."""

    run: Path
    sha256: str = ""
    """Of the weights of the run; empty in reports of versions that did not say."""
    source: Path
    """Run of the SAE whose latents are read."""
    target: Path
    """Run of the SAE whose latents are predicted."""
    sites: tuple[str, ...]
    """Of the two."""
    activation: str
    start: str
    l1: float
    """Coefficient of the penalty it was trained with."""

    model: str
    revision: str
    text: str
    precision: str
    """Of the language model; coders and maps always compute in float32."""
    ctx_len: int
    n_tokens: int
    """Rows that were counted."""
    n_predictions: int
    excluded: tuple[str, ...]
    """What was left as it is and not counted, as training left it out; empty for nothing."""

    n_in: int
    n_out: int
    n_alive: int
    """Outputs that are above zero on at least one of these tokens."""
    l0_in: float
    """Inputs above zero on a token, on average."""
    l0_out: float
    tau: float
    layer: LayerWeights | None
    """None where the sites are not the input and the output of one MLP."""

    ce_clean: float
    ce_zero: float
    """The floor: the second site replaced by zero."""
    ce_sae: float
    """The ceiling: the second site replaced by what its own SAE reconstructs."""
    loss_recovered_sae: float | None

    maps: tuple[MapScores, ...]
    """The connector, then the baselines."""
    explained: tuple[float | None, ...]
    """Per output, the variance that the connector explains; None where it is dead."""
    above: tuple[int, ...]
    """Per output, weights of the connector with `|W|` above tau."""
    notes: tuple[str, ...]
    """What a reader of these numbers must know, one sentence each."""

    @property
    def shared(self) -> tuple[object, ...]:
        """What it has in common with those that stand beside the same baselines."""
        return self.source, self.target, self.model, self.text

    @property
    def connector(self) -> MapScores:
        """The map that was trained."""
        return self.maps[0]

    @property
    def baselines(self) -> tuple[MapScores, ...]:
        """The others."""
        return self.maps[1:]

    def __repr__(self) -> str:
        own = self.connector
        shown = {
            "FVU": own.fvu,
            "weights per output": own.above_mean,
            "of the SAE's loss recovered": own.recovered_of_sae,
        }
        told = ", ".join(f"{words} {x:.4g}" for words, x in shown.items() if x is not None)
        return (
            f"ConnectorReport({self.run}: {' to '.join(self.sites)}, {told}, on "
            f"{self.n_tokens:,} tokens of {self.text})"
        )


_WORDS = {"weights": "E2 W D1", "correlation": "best input"}


def map_words(scored: MapScores) -> str:
    """What people are told a map is."""
    return _WORDS.get(scored.name, scored.name)


def save_connector_report(report: ConnectorReport) -> Path:
    """Write a report into the folder of its run, whole or not at all; gives the file.

    Raises:
        DataError: a number is not finite.
    """
    return keep(report, report.run / CONNECT_EVAL_FILE)


def load_connector_report(run: Path) -> ConnectorReport | None:
    """The report in the folder of a run, wherever that was when it was made; None without one.

    Raises:
        CheckpointError: it is damaged, or another version wrote it.
    """
    report = kept(run, CONNECT_EVAL_FILE, ConnectorReport)
    if report is not None and not report.maps:
        raise CheckpointError(
            f"{run / CONNECT_EVAL_FILE} scores no map; make it again: saepipe eval {run}"
        )
    return report


_LEFT_OUT = frozenset({"layer", "maps", "explained", "above", "intervals"})
"""What has a value per output, or is made of several."""
_OF_NONE = {"run": "", "sha256": "", "activation": "", "start": "", "l1": ""}
"""What baselines do not have."""


def write_connector_table(reports: Sequence[ConnectorReport], path: Path) -> None:
    """A line for each connector, and one for each baseline of its ends.

    Connectors between the same SAEs have the same baselines: those of the first are written. An
    empty field is a ratio that would have divided by nothing, or an interval that is not there.
    """
    rows = list[dict[str, object]]()
    seen = set[tuple[object, ...]]()
    for report in (portable(report, path.parent) for report in reports):
        rows.append(_row(report, report.connector))
        if report.shared not in seen:
            rows += (_row(report, baseline) | _OF_NONE for baseline in report.baselines)
        seen.add(report.shared)
    write_csv(path, rows)


def _row(report: ConnectorReport, scored: MapScores) -> dict[str, object]:
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
        what, quantiles, _ = f.name.partition("_quantiles")
        if quantiles:
            padded = value or (None,) * len(QUANTILES)
            names = (f"{what}_q{round(100 * q):02}" for q in QUANTILES)
            row |= zip(names, padded, strict=True)
        elif f.name == "l1":
            row["mean_abs_W"] = value  # the coefficient of the penalty has the name l1
        elif f.name not in {*_LEFT_OUT, "name"}:
            row[f.name] = value
        if f.name in BOUNDED:
            found = intervals.get(f.name)
            row[f"{f.name}_low"] = found and found.low
            row[f"{f.name}_high"] = found and found.high
    return row
