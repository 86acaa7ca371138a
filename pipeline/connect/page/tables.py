"""The tables of a page about connectors: their scores, and the clearest relations of inputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pipeline.connect.page.connections import N_RELATIONS, Connections
from pipeline.connect.reading.relations import CARRIES, CLEAR, MIN_ROWS, TAKES
from pipeline.connect.reading.values import KINDS, Kind, Relation
from pipeline.connect.report import ConnectorReport, MapScores, map_words
from pipeline.evaluate.report import QUANTILES
from pipeline.report.tables import Cell, Group, Row, number
from pipeline.tables import percent

_AT = f"median; below it, between what {percent(QUANTILES[-1] - QUANTILES[0])} lie"

METRICS: dict[str, dict[str, tuple[str, str]]] = {
    "How well it predicts": {
        "fvu": ("FVU", "Σ(z2 - ẑ2)² / Σ(z2 - mean z2)², over outputs that are alive"),
        "explained_quantiles": ("an output's variance explained", _AT),
        "mse": ("mean squared error", "over tokens and all outputs"),
    },
    "How sparse it is": {
        "n_above": ("weights above {tau:g}", "in magnitude"),
        "above_quantiles": ("an output's weights above {tau:g}", _AT),
        "above_max": ("the most that one output has", ""),
        "n_nonzero": ("weights that are not zero", ""),
        "nonzero_quantiles": ("an output's weights that are not zero", _AT),
        "l1": ("mean of |W|", ""),
    },
    "In the language model": {
        "loss_recovered": ("loss recovered", "(zeroed - predicted) / (zeroed - alone)"),
        "recovered_of_sae": ("of what the SAE recovers", "(zeroed - predicted) / (zeroed - SAE)"),
        "ce": ("cross-entropy, predicted", "nats per prediction, predicted features decoded"),
        "kl": ("KL divergence", "from the model's predictions to those"),
    },
}
"""By group and field of `MapScores`: name and definition."""

NOTES = {
    "mean": "of each output",
    "weights": "of the layer between",
    "correlation": "the one most correlated",
    "ridge": "regression on all inputs",
}
"""On maps."""

MAIN = {
    "fvu": "FVU",
    "above_mean": "weights above {tau:g} an output",
    "n_above": "weights above {tau:g}",
    "loss_recovered": "loss recovered",
    "recovered_of_sae": "of what the SAE recovers",
}
"""The columns where each of several connectors has a row."""


def map_names(report: ConnectorReport) -> list[tuple[str, str]]:
    """The columns of `map_groups`: a name, and what it is."""
    return [(map_words(scored), NOTES.get(scored.name, "")) for scored in report.maps]


def map_groups(report: ConnectorReport) -> list[Group]:
    """A row a metric, a cell a map."""
    return [
        Group(
            title=title,
            rows=tuple(
                Row(
                    name=name.format(tau=report.tau),
                    note=note,
                    cells=tuple(_cell(scored, key) for scored in report.maps),
                )
                for key, (name, note) in metrics.items()
            ),
        )
        for title, metrics in METRICS.items()
    ]


def main_heads(reports: Sequence[ConnectorReport]) -> list[tuple[str, str]]:
    """The columns of `main_rows`."""
    return [(name.format(tau=reports[0].tau), "") for name in MAIN.values()]


def main_rows(names: Mapping[str, str], reports: Sequence[ConnectorReport | None]) -> list[Row]:
    """A row a connector, evaluated or not, then the baselines, where all of them have the same.

    The names are those of the connectors, each with what it is.
    """
    rows = [
        _main_row(name, note, None if report is None else report.connector)
        for (name, note), report in zip(names.items(), reports, strict=True)
    ]
    evaluated = [report for report in reports if report is not None]
    if len({(r.source, r.target, r.text, r.baselines) for r in evaluated}) == 1:
        rows += [
            _main_row(f"baseline: {map_words(scored)}", NOTES.get(scored.name, ""), scored)
            for scored in evaluated[0].baselines
        ]
    return rows


def _main_row(name: str, note: str, scored: MapScores | None) -> Row:
    empty = Cell(value="", interval="")
    cells = tuple(empty if scored is None else _cell(scored, key) for key in MAIN)
    return Row(name=name, note=note, cells=cells)


def _cell(scored: MapScores, key: str) -> Cell:
    """A number with its interval; of quantiles the median, and the outermost two."""
    value = getattr(scored, key)
    found = next(((i.low, i.high) for i in scored.intervals if i.metric == key), None)
    if isinstance(value, tuple):
        quantiles = cast("tuple[float, ...]", value)
        found = (quantiles[0], quantiles[-1]) if quantiles else None
        value = quantiles[len(quantiles) // 2] if quantiles else None
    interval = f"{number(found[0])} to {number(found[1])}" if found else ""
    return Cell(value=number(value), interval=interval)


TITLES: dict[Kind, tuple[str, str]] = {
    "or": ("OR", "either input suffices"),
    "and-not": ("AND NOT", "the first input, unless the second is active"),
    "and": ("AND", "neither input suffices alone"),
}
DEFINITION = (
    "Found in the data: how often the output is active where the first input alone is, the second "
    "alone, both, neither; below, of how many tokens. A pair is shown if what must be likely and "
    f"what must be unlikely are at least {CLEAR:g} apart at the ends of their intervals (Wilson, 3 "
    f"standard errors), each over at least {MIN_ROWS} tokens, and if the weights make these inputs "
    f"the reason: what makes the output likely adds at least {CARRIES:g} of all that is added "
    f"there, what prevents it takes at least {TAKES:g} of that away."
)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A feature in a table: its number, and the tokens that it fires on."""

    index: int
    words: Sequence[str]
    weight: str = ""
    """In the equation; empty for an output."""
    link: str = ""
    """Where the page tells more; empty for an input."""


@dataclass(frozen=True, kw_only=True)
class RelationRow:
    """One relation."""

    output: Named
    inputs: Sequence[Named]
    """Both."""
    cells: Sequence[tuple[str, str]]
    """How often, and of how many: a only, b only, both, neither."""


@dataclass(frozen=True, kw_only=True)
class RelationTable:
    """The clearest of one kind."""

    title: str
    meaning: str
    rows: Sequence[RelationRow]
    n_further: int
    """That are clear, too, and are not in it."""


def relation_tables(connections: Connections, *, link: str) -> list[RelationTable]:
    """Those of which there are any; `link` is what the address of an output starts with."""
    tables: list[RelationTable] = []
    for kind in KINDS:
        title, meaning = TITLES[kind]
        found = connections.reading.related(kind)
        rows = [_row(r, connections, link=link) for r in found[:N_RELATIONS]]
        if rows:
            n_further = len(found) - len(rows)
            tables.append(
                RelationTable(title=title, meaning=meaning, rows=rows, n_further=n_further)
            )
    return tables


def _row(relation: Relation, connections: Connections, *, link: str) -> RelationRow:
    shown = relation.output in connections.outputs
    source, target = connections.source, connections.target
    return RelationRow(
        output=Named(
            index=relation.output,
            words=target.peaks(relation.output),
            link=f"{link}{relation.output}" if shown else "",
        ),
        inputs=[
            Named(index=i, words=source.peaks(i), weight=f"{weight:+.2g}")
            for i, weight in ((relation.a, relation.weight_a), (relation.b, relation.weight_b))
        ],
        cells=[
            ("-" if rows.p is None else percent(rows.p), number(rows.n)) for rows in relation.cells
        ],
    )
