"""Tables of metrics and relations.

Numbers as they stand in the page.

The table of an evaluation: what each number is called, what it means, and how sure it is.

The tables of an evaluation of connectors: what each number is called, and what it means.

The table of the clearest relations: which pairs of inputs decide on an output, and how.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from pipeline.connect.reading.relations import CARRIES, CLEAR, MIN_ROWS, TAKES
from pipeline.connect.reading.values import KINDS, Cell as Rows, Kind, Relation
from pipeline.connect.report import MAP_WORDS, ConnectorReport, MapScores
from pipeline.evaluate.report import QUANTILES, EvalReport
from pipeline.report.gather import N_RELATIONS, Connections, EndFeatures


def number(value: int | float | None) -> str:
    """Four significant digits, no powers of ten from 0.0001 to a million; a dash for nothing."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e6 else f"{value:.4g}"


def percent(share: float) -> str:
    """A share in at most three digits."""
    return f"{100 * share:.3g} %"


def many(n: int, what: str) -> str:
    """`1 run`, `12 runs`."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


METRICS: dict[str, dict[str, tuple[str, str]]] = {
    "Losses, in nats per prediction": {
        "ce_clean": ("cross-entropy, the model alone", ""),
        "ce_patched": ("cross-entropy, SAE spliced in", ""),
        "ce_zero": ("cross-entropy, site zeroed", ""),
        "ce_mean": ("cross-entropy, site at its mean", ""),
        "loss_recovered": ("loss recovered", "(zeroed - spliced) / (zeroed - alone)"),
        "loss_recovered_mean": (
            "loss recovered, against the mean", "(mean - spliced) / (mean - alone)",
        ),
        "kl": ("KL divergence", "from the model's predictions to the spliced model's"),
        "kl_recovered": ("KL recovered", "1 - KL / KL of zeroing the site"),
        "perplexity_clean": ("perplexity, the model alone", ""),
        "perplexity_patched": ("perplexity, SAE spliced in", ""),
        "perplexity_difference": ("difference in perplexity", ""),
    },
    "Reconstruction": {
        "explained_variance": ("explained variance", "1 - Σ‖x - x̂‖² / Σ‖x - mean x‖²"),
        "mse": ("mean squared error", ""),
        "cosine": ("cosine of x and x̂", "mean over tokens"),
        "relative_bias": ("relative reconstruction bias", "below 1 where x̂ is shrunk"),
        "l2_ratio": ("ratio of norms", "mean of ‖x̂‖ / ‖x‖"),
    },
    "Sparsity": {
        "l0": ("L0", "features active per token"),
        "l0_quantiles": ("its quantiles", " / ".join(f"{q:.0%}" for q in QUANTILES)),
        "l1": ("L1", "sum of a token's activations"),
        "n_dead": ("dead features", "active on none of the tokens"),
        "frac_dead": ("share of dead features", ""),
        "n_rare": ("rare features", "active on fewer than one in a million tokens, the dead too"),
        "n_frequent": ("frequent features", "active on more than a tenth of the tokens"),
    },
    "Geometry": {
        "dead_cosine_mean": ("dead-feature cosine, dead", "of decoder rows with the mean dead row"),
        "alive_cosine_mean": ("dead-feature cosine, alive", "the same of living decoder rows"),
        "encoder_decoder_cosine_median": ("encoder-decoder cosine", "median"),
        "max_cosine_mean": ("largest cosine with another feature", "mean"),
    },
}  # fmt: skip
"""By group and field of `EvalReport`: name and definition."""

MAIN = (
    "loss_recovered", "kl", "explained_variance", "l0", "frac_dead", "ce_clean", "ce_patched",
    "cosine", "relative_bias",
)  # fmt: skip
"""The columns where each of many runs has a row."""

_SHARES = {"frac_dead"}


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
            rows=tuple(
                Row(name=name, note=note, cells=tuple(_cell(report, key) for report in reports))
                for key, (name, note) in metrics.items()
            ),
        )
        for title, metrics in METRICS.items()
    ]


def main_names() -> list[str]:
    """What the main metrics are called."""
    names = {key: name for metrics in METRICS.values() for key, (name, _) in metrics.items()}
    return [names[key] for key in MAIN]


def main_rows(names: Sequence[str], reports: Sequence[EvalReport | None]) -> list[Row]:
    """A row a run, a cell a main metric."""
    return [
        Row(name=name, note="", cells=tuple(_cell(report, key) for key in MAIN))
        for name, report in zip(names, reports, strict=True)
    ]


def _cell(report: EvalReport | None, key: str) -> Cell:
    if report is None:
        return Cell(value="", interval="")
    value = getattr(report, key)
    if isinstance(value, tuple):
        return Cell(value=" / ".join(map(number, cast("tuple[float, ...]", value))), interval="")
    write = percent if key in _SHARES else number
    found = next((i for i in report.intervals if i.metric == key), None)
    interval = f"{write(found.low)} to {write(found.high)}" if found else ""
    return Cell(value=write(value), interval=interval)


_AT = f"median; below it, between what {percent(QUANTILES[-1] - QUANTILES[0])} lie"

METRICS_CONNECT_TABLE: dict[str, dict[str, tuple[str, str]]] = {
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

MAIN_CONNECT_TABLE: dict[str, Callable[[MapScores], Cell]] = {
    "FVU": lambda scored: _cell_connect_table(scored, "fvu"),
    "weights above {tau:g} an output": lambda scored: Cell(
        value=number(scored.above_mean), interval=""
    ),
    "weights above {tau:g}": lambda scored: _cell_connect_table(scored, "n_above"),
    "loss recovered": lambda scored: _cell_connect_table(scored, "loss_recovered"),
    "of what the SAE recovers": lambda scored: _cell_connect_table(scored, "recovered_of_sae"),
}
"""The columns where each of several connectors has a row."""


def map_names(report: ConnectorReport) -> list[tuple[str, str]]:
    """The columns of `map_groups`: a name, and what it is."""
    return [(_name(scored), NOTES.get(scored.name, "")) for scored in report.maps]


def map_groups(report: ConnectorReport) -> list[Group]:
    """A row a metric, a cell a map; without the groups of which there is nothing."""
    return [
        Group(
            title=title,
            rows=tuple(
                Row(
                    name=name.format(tau=report.tau),
                    note=note,
                    cells=tuple(_cell_connect_table(scored, key) for scored in report.maps),
                )
                for key, (name, note) in metrics.items()
            ),
        )
        for title, metrics in METRICS_CONNECT_TABLE.items()
        if any(getattr(report.connector, key) is not None for key in metrics)
    ]


def bounds(report: ConnectorReport) -> str:
    """Between which losses the connector's lies; empty without a language model."""
    if report.ce_clean is None:
        return ""
    return (
        f"Cross-entropy of the model alone {number(report.ce_clean)}, with the SAE of the second "
        f"site spliced in {number(report.ce_sae)} (loss recovered "
        f"{number(report.loss_recovered_sae)}), with the site zeroed {number(report.ce_zero)}."
    )


def main_names_of_connect_table(reports: Sequence[ConnectorReport]) -> list[str]:
    """The columns of `main_rows_of_connect_table`."""
    tau = reports[0].tau if reports else 0.1
    return [name.format(tau=tau) for name in MAIN_CONNECT_TABLE]


def main_rows_of_connect_table(
    names: Mapping[str, str], reports: Sequence[ConnectorReport | None]
) -> list[Row]:
    """A row a connector, then the baselines, where all of them have the same.

    Args:
        names: Of the connectors, and what each is.
        reports: One each; None for those that were not evaluated.
    """
    rows = [
        Row(
            name=name,
            note=note,
            cells=tuple(
                Cell(value="", interval="") if report is None else find(report.connector)
                for find in MAIN_CONNECT_TABLE.values()
            ),
        )
        for (name, note), report in zip(names.items(), reports, strict=True)
    ]
    evaluated = [report for report in reports if report is not None]
    if len({(r.source, r.target, r.text, r.baselines) for r in evaluated}) == 1:
        for scored in evaluated[0].baselines:
            cells = tuple(find(scored) for find in MAIN_CONNECT_TABLE.values())
            note = NOTES.get(scored.name, "")
            rows.append(Row(name=f"baseline: {_name(scored)}", note=note, cells=cells))
    return rows


def _name(scored: MapScores) -> str:
    return MAP_WORDS.get(scored.name, scored.name)


def _middle(quantiles: Sequence[float]) -> Cell:
    """The median, and the outermost two."""
    if not quantiles:
        return Cell(value="-", interval="")
    low, high = (number(value) for value in (quantiles[0], quantiles[-1]))
    return Cell(value=number(quantiles[len(quantiles) // 2]), interval=f"{low} to {high}")


def _cell_connect_table(scored: MapScores, key: str) -> Cell:
    value = getattr(scored, key)
    if isinstance(value, tuple):
        return _middle(cast("tuple[float, ...]", value))
    found = next((i for i in scored.intervals if i.metric == key), None)
    interval = f"{number(found.low)} to {number(found.high)}" if found else ""
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
    weight: str
    """In the equation; empty for an output."""
    link: str
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
    """Those of which there are any.

    Args:
        connections: What was read.
        link: What the address of an output starts with.
    """
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
    pairs = ((relation.a, relation.weight_a), (relation.b, relation.weight_b))
    return RelationRow(
        output=_name_connect_relations(
            connections.target, relation.output, link=f"{link}{relation.output}" if shown else ""
        ),
        inputs=[
            _name_connect_relations(connections.source, i, weight=f"{w:+.2g}") for i, w in pairs
        ],
        cells=[
            _cell_connect_relations(rows)
            for rows in (relation.a_only, relation.b_only, relation.both, relation.neither)
        ],
    )


def _name_connect_relations(
    end: EndFeatures, index: int, *, weight: str = "", link: str = ""
) -> Named:
    return Named(index=index, words=end.peaks(index), weight=weight, link=link)


def _cell_connect_relations(rows: Rows) -> tuple[str, str]:
    return "-" if rows.p is None else percent(rows.p), number(rows.n)
