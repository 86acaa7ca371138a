"""The part about connectors.

What a connector is, for people: a few facts and numbers in front, every setting folded away.

The part of the page about connectors: plain values for the templates.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from pipeline.config.serialization import to_json
from pipeline.connect.connector import End
from pipeline.connect.reading.values import Effects
from pipeline.connect.report import ConnectorReport
from pipeline.features.files import has_features
from pipeline.report.data import connector_data
from pipeline.report.figures import Drawing, connector_curves, connector_drawings, frontier_drawings
from pipeline.report.gather import ConnectorExhibit
from pipeline.report.render import Tile
from pipeline.report.saes import flat, named
from pipeline.report.tables import (
    DEFINITION,
    Group,
    RelationTable,
    Row,
    bounds,
    main_names_of_connect_table as main_names,
    main_rows_of_connect_table as main_rows,
    map_groups,
    map_names,
    number,
    relation_tables,
)

_STARTS = {
    "random": "random weights",
    "weights": "E2 W D1 of the layer between",
    "regression": "ridge regression",
}


def connector_headline(exhibit: ConnectorExhibit) -> str:
    """From where to where: `resid_pre.1 → mlp_out.1 (l1 = 0.01)`."""
    run = exhibit.run
    return f"{run.source.site} → {run.target.site} (l1 = {run.config.l1:g})"


def connector_facts(exhibit: ConnectorExhibit) -> dict[str, str]:
    """The few that say what one is looking at."""
    run = exhibit.run
    config, store = run.config, run.provenance
    tokens = store.n_rows if config.tokens is None else config.tokens
    epochs = tokens / store.n_rows if store.n_rows else 0
    bias = " + b" if config.bias else ""
    line = f"z1 W{bias}"
    return {
        "reads": _end(run.source),
        "predicts": _end(run.target),
        "language model": named(store.model, store.revision),
        "text": store.text or "unknown",
        "map": f"z2 = {f'relu({line})' if config.activation == 'relu' else line}",
        "penalty": f"{config.l1:g} Σ|W|, {'proximal steps' if config.proximal else 'by gradient'}",
        "began with": _STARTS[config.start],
        "trained on": f"{tokens:,} tokens, {epochs:.3g} x the store",
        "step": f"{config.batch_size:,} tokens, learning rate {config.lr:g}",
    }


def connector_settings(exhibit: ConnectorExhibit) -> dict[str, str]:
    """Every setting and everything known of the store and of both ends."""
    run = exhibit.run
    return {
        **flat(to_json(run.config)),
        **flat(to_json(run.source), prefix="source."),
        **flat(to_json(run.target), prefix="target."),
        **flat(to_json(run.provenance), prefix="store."),
    }


def connector_tiles(exhibit: ConnectorExhibit) -> list[Tile]:
    """The few numbers in front of a page about one connector."""
    tiles: list[Tile] = []
    if exhibit.evaluation:
        tiles += _scores(exhibit.evaluation)
    if exhibit.connections and exhibit.connections.reading.effects:
        found = exhibit.connections.reading.effects.connected
        note = f"correlation over {found.n:,} removed inputs"
        tiles.append(Tile(name="predicted and true effect", value=number(found.pearson), note=note))
    return tiles


def _scores(report: ConnectorReport) -> list[Tile]:
    scored = report.connector
    tiles = [
        Tile(
            name="FVU",
            value=number(scored.fvu),
            note=f"of the variance of {report.n_alive:,} outputs is unexplained",
        ),
        Tile(
            name="weights an output",
            value=number(scored.nonzero_mean),
            note=f"not zero, of {report.n_in:,}; {number(scored.above_mean)} above {report.tau:g}",
        ),
    ]
    if scored.loss_recovered is not None:
        tiles.append(
            Tile(
                name="loss recovered",
                value=number(scored.loss_recovered),
                note=f"{number(report.loss_recovered_sae)} with the SAE alone, 0 with zeros",
            )
        )
    return tiles


def _end(end: End) -> str:
    return f"{end.d_sae:,} features at {end.site}, of {end.run.name}"


@dataclass(frozen=True, kw_only=True)
class ConnectorView:
    """One connector."""

    name: str
    headline: str
    facts: Mapping[str, str]
    settings: Mapping[str, str]
    missing: Mapping[str, str]
    """What is not there yet, and the command that makes it."""
    evaluated: Sequence[str]
    """On what, between which bounds, and what a reader must know; empty if it was not."""
    maps: Sequence[tuple[str, str]]
    """The connector and its baselines, the columns of `groups`."""
    groups: Sequence[Group]
    figures: Sequence[Drawing]
    curves: Sequence[Drawing]
    relations: Sequence[RelationTable]
    read: Sequence[str]
    """From what, and what a reader must know; empty if it was not."""


@dataclass(frozen=True, kw_only=True)
class ConnectorsView:
    """All of them."""

    template: ClassVar[str] = "connectors.html"
    scripts: ClassVar[Sequence[str]] = ("browser.js", "connections.js")
    columns: Sequence[str]
    rows: Sequence[Row]
    """The main numbers of several; empty for one."""
    frontier: Sequence[Drawing]
    runs: Sequence[ConnectorView]
    definition: str = DEFINITION
    """Of relations."""

    @property
    def sections(self) -> dict[str, str]:
        """What there is to go to."""
        scored = any(run.groups for run in self.runs)
        related = any(run.relations for run in self.runs)
        return {
            **({"scores": "Scores"} if scored else {}),
            "connectors": "Connector" if len(self.runs) == 1 else "Connectors",
            **({"logic": "Logic"} if related else {}),
            "connections": "Equations",
        }


def connectors_view(exhibits: Sequence[ConnectorExhibit]) -> ConnectorsView:
    """The part about these connectors.

    Raises:
        CheckpointError: the curves of one are damaged.
    """
    reports = [exhibit.evaluation for exhibit in exhibits]
    evaluated = [report for report in reports if report is not None]
    names = {exhibit.name: connector_headline(exhibit) for exhibit in exhibits}
    several = len(exhibits) > 1 and evaluated
    return ConnectorsView(
        columns=main_names(evaluated) if several else (),
        rows=main_rows(names, reports) if several else (),
        frontier=frontier_drawings(evaluated),
        runs=[
            _run(exhibit, place=i, single=len(exhibits) == 1)
            for i, exhibit in enumerate(exhibits, start=1)
        ],
    )


def connector_browsed(exhibit: ConnectorExhibit) -> dict[str, object]:
    """A connector as the browser of outputs shows it."""
    head: dict[str, object] = {"name": exhibit.name, "command": _read_command(exhibit)}
    if exhibit.connections is None:
        return head | {"nTokens": 0, "tokens": [], "inputs": {}, "items": []}
    return head | connector_data(exhibit.connections)


def _run(exhibit: ConnectorExhibit, *, place: int, single: bool) -> ConnectorView:
    report, connections = exhibit.evaluation, exhibit.connections
    link = "#output=" if single else f"#connector={place}&output="
    return ConnectorView(
        name=exhibit.name,
        headline=connector_headline(exhibit),
        facts=connector_facts(exhibit),
        settings=connector_settings(exhibit),
        missing=_missing(exhibit),
        evaluated=_evaluated(report) if report else (),
        maps=map_names(report) if report else (),
        groups=map_groups(report) if report else (),
        figures=connector_drawings(report, connections, place=place),
        curves=connector_curves(exhibit.curves, place=place),
        relations=relation_tables(connections, link=link) if connections else (),
        read=_read(exhibit),
    )


def _evaluated(report: ConnectorReport) -> list[str]:
    excluded = f"; left out: {', '.join(report.excluded)}" if report.excluded else ""
    where = (
        f"In {report.model} on {report.text}: {report.n_tokens:,} tokens in contexts of "
        f"{report.ctx_len}, the model in {report.precision}{excluded}."
        if report.model
        else f"On {report.n_tokens:,} rows{excluded}."
    )
    alive = f"{report.n_alive:,} of {report.n_out:,} outputs are active on any of them."
    told = [f"{where} {alive}", bounds(report)]
    if report.layer:
        told.append(
            f"The model's own layer between the two sites has {report.layer.n:,} weights, "
            f"{report.layer.n_above:,} of them above {report.tau:g} in magnitude."
        )
    return [*filter(None, told), *report.notes]


def _read(exhibit: ConnectorExhibit) -> list[str]:
    if exhibit.connections is None:
        return []
    reading = exhibit.connections.reading
    told = [f"Read from {reading.n_tokens:,} tokens of {reading.store.name}."]
    if reading.effects:
        told.append(_agreement(reading.effects))
    return [*told, *reading.notes]


def _agreement(effects: Effects) -> str:
    """How well linear predictions agree with the model."""
    found, control = effects.connected, effects.control_true
    told = (
        f"Taking an input out of the model at the first site: over {found.n:,} pairs of an input "
        f"and an output the drop of the output that the connector predicts and the true one "
        f"correlate at {number(found.pearson)} (slope {number(found.slope)})"
    )
    if control is None:
        return f"{told}."
    return f"{told}; of pairs that it leaves unconnected the true one is {number(control)} in size."


def _missing(exhibit: ConnectorExhibit) -> dict[str, str]:
    missing: dict[str, str] = {}
    if exhibit.evaluation is None:
        missing["It has not been evaluated yet."] = f"saepipe eval {exhibit.path}"
    if exhibit.connections is None:
        missing["It has not been read yet."] = _read_command(exhibit)
    for end in (exhibit.run.source, exhibit.run.target):
        if not has_features(end.run):
            what = f"Features of {end.run.name} have not been collected yet."
            missing[what] = f"saepipe features {end.run}"
    return missing


def _read_command(exhibit: ConnectorExhibit) -> str:
    return f"saepipe features {exhibit.path}"
