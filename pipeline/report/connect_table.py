"""The tables of an evaluation of connectors: what each number is called, and what it means."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

from pipeline.connect.evaluation.report import MAP_WORDS, QUANTILES, ConnectorReport, ScoredMap
from pipeline.report.fidelity import Cell, Group, Row
from pipeline.report.words import number, percent

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
"""By group and field of `ScoredMap`: name and definition."""

NOTES = {
    "mean": "of each output",
    "weights": "of the layer between",
    "correlation": "the one most correlated",
    "ridge": "regression on all inputs",
}
"""On maps."""

MAIN: dict[str, Callable[[ScoredMap], Cell]] = {
    "FVU": lambda scored: _cell(scored, "fvu"),
    "weights above {tau:g} an output": lambda scored: Cell(
        value=number(scored.above_mean), interval=""
    ),
    "weights above {tau:g}": lambda scored: _cell(scored, "n_above"),
    "loss recovered": lambda scored: _cell(scored, "loss_recovered"),
    "of what the SAE recovers": lambda scored: _cell(scored, "recovered_of_sae"),
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
                    cells=tuple(_cell(scored, key) for scored in report.maps),
                )
                for key, (name, note) in metrics.items()
            ),
        )
        for title, metrics in METRICS.items()
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


def main_names(reports: Sequence[ConnectorReport]) -> list[str]:
    """The columns of `main_rows`."""
    tau = reports[0].tau if reports else 0.1
    return [name.format(tau=tau) for name in MAIN]


def main_rows(names: Mapping[str, str], reports: Sequence[ConnectorReport | None]) -> list[Row]:
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
                for find in MAIN.values()
            ),
        )
        for (name, note), report in zip(names.items(), reports, strict=True)
    ]
    evaluated = [report for report in reports if report is not None]
    if len({(r.source, r.target, r.text, r.baselines) for r in evaluated}) == 1:
        for scored in evaluated[0].baselines:
            cells = tuple(find(scored) for find in MAIN.values())
            note = NOTES.get(scored.name, "")
            rows.append(Row(name=f"baseline: {_name(scored)}", note=note, cells=cells))
    return rows


def _name(scored: ScoredMap) -> str:
    return MAP_WORDS.get(scored.name, scored.name)


def _middle(quantiles: Sequence[float]) -> Cell:
    """The median, and the outermost two."""
    if not quantiles:
        return Cell(value="-", interval="")
    low, high = (number(value) for value in (quantiles[0], quantiles[-1]))
    return Cell(value=number(quantiles[len(quantiles) // 2]), interval=f"{low} to {high}")


def _cell(scored: ScoredMap, key: str) -> Cell:
    value = getattr(scored, key)
    if isinstance(value, tuple):
        return _middle(cast("tuple[float, ...]", value))
    found = next((i for i in scored.intervals if i.metric == key), None)
    interval = f"{number(found.low)} to {number(found.high)}" if found else ""
    return Cell(value=number(value), interval=interval)
