"""The part of a page about connectors: plain values for its template, and data for its script."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, final

from pipeline.connect.connector import End
from pipeline.connect.figures import (
    connector_frontier_figure,
    effects_figure,
    explained_figure,
    weights_figure,
)
from pipeline.connect.page.connections import Connections, connector_data, load_connections
from pipeline.connect.page.tables import (
    DEFINITION,
    main_heads,
    main_rows,
    map_groups,
    map_names,
    relation_tables,
)
from pipeline.connect.reading.values import Effects
from pipeline.connect.report import ConnectorReport, load_connector_report
from pipeline.connect.run import ConnectorRun
from pipeline.features.files import has_features
from pipeline.report.figures import WIDE, Drawings, curve_drawings, curves_lost, curves_of, drawings
from pipeline.report.render import Exhibit, Part, Tile
from pipeline.report.saes import named, settings_of, trained_on
from pipeline.report.tables import Row, number
from pipeline.runs.names import public, typed

_STARTS = {
    "random": "random weights",
    "weights": "E2 W D1 of the layer between",
    "regression": "ridge regression",
}


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class ConnectorExhibit(Exhibit):
    """One connector. What is absent is None."""

    noun: ClassVar[str] = "connector"
    title: ClassVar[str] = "Connector report"

    run: ConnectorRun
    curves: Path | None
    """Its metrics.jsonl, if it has any lines, and they are its own."""
    evaluation: ConnectorReport | None
    connections: Connections | None

    @classmethod
    def gather(cls, path: Path, name: str, *, n_features: int) -> "ConnectorExhibit":
        """What is known of the connector in a folder."""
        run = ConnectorRun.open(path)
        return cls(
            name=name,
            path=path,
            run=run,
            curves=curves_of(run),
            evaluation=load_connector_report(path),
            connections=load_connections(path, n=n_features),
        )

    @property
    def route(self) -> str:
        """From where to where: `resid_pre.1 → mlp_out.1 (l1 = 0.01)`."""
        return f"{' → '.join(end.site for end in self.run.ends)} (l1 = {self.run.config.l1:g})"

    @property
    def headline(self) -> str:
        """Of a page about it alone."""
        return f"Connector {self.route}"

    @property
    def tiles(self) -> list[Tile]:
        """Its scores, and how its effects agree with the model's."""
        tiles = _scores(self.evaluation) if self.evaluation else []
        if self.connections and self.connections.reading.effects:
            found = self.connections.reading.effects.connected
            tiles.append(
                Tile(
                    name="predicted and true effect",
                    value=number(found.pearson),
                    note=f"correlation over {found.n:,} removed inputs",
                )
            )
        return tiles

    @property
    def facts(self) -> dict[str, str]:
        """The few that say what one is looking at."""
        run, config, store = self.run, self.run.config, self.provenance
        line = f"z1 W{' + b' if config.bias else ''}"
        how = "proximal steps" if config.proximal else "by gradient"
        return {
            "reads": _end(run.source),
            "predicts": _end(run.target),
            "language model": named(store.model, store.revision),
            "text trained on": public(store.text) or "unknown",
            "map": f"z2 = {f'relu({line})' if config.activation == 'relu' else line}",
            "penalty": f"{config.l1:g} Σ|W|, {how}",
            "began with": _STARTS[config.start],
            **trained_on(config, store),
        }

    @staticmethod
    def part(exhibits: Sequence["ConnectorExhibit"]) -> "ConnectorsPart":
        """The part about these connectors."""
        reports = [exhibit.evaluation for exhibit in exhibits]
        evaluated = [report for report in reports if report is not None]
        several = len(exhibits) > 1
        names = {exhibit.name: exhibit.route for exhibit in exhibits}
        return ConnectorsPart(
            heads=main_heads(evaluated) if several and evaluated else (),
            rows=main_rows(names, reports) if several and evaluated else (),
            frontier=frontier_drawings(evaluated),
            runs=[
                _view(exhibit, place=i, single=not several)
                for i, exhibit in enumerate(exhibits, start=1)
            ],
            browsed=[_browsed(exhibit) for exhibit in exhibits],
        )


@dataclass(frozen=True, kw_only=True)
class ConnectorsPart(Part):
    """All of them."""

    template: ClassVar[str] = "pipeline.connect.page/connectors.html"
    scripts: ClassVar[Sequence[str]] = ("browser.js", "pipeline.connect.page/connections.js")
    heads: Sequence[tuple[str, str]]
    rows: Sequence[Row]
    """The main numbers of several; empty for one."""
    frontier: Drawings
    runs: Sequence[Mapping[str, object]]
    """What `_view` gives of each."""
    browsed: Sequence[Mapping[str, object]]
    """What the script is given of each."""
    definition: str = DEFINITION
    """Of relations."""

    @property
    def data(self) -> dict[str, object]:
        """What the script is given."""
        return {"connectors": self.browsed}

    @property
    def sections(self) -> dict[str, str]:
        """What there is to go to."""
        scored = any(run["groups"] for run in self.runs)
        related = any(run["relations"] for run in self.runs)
        return {
            **({"scores": "Scores"} if scored else {}),
            "connectors": "Connector" if len(self.runs) == 1 else "Connectors",
            **({"logic": "Logic"} if related else {}),
            "connections": "Equations",
        }


def _view(exhibit: ConnectorExhibit, *, place: int, single: bool) -> dict[str, object]:
    """One connector, as the template shows it."""
    run, report, connections = exhibit.run, exhibit.evaluation, exhibit.connections
    link = "#output=" if single else f"#connector={place}&output="
    return {
        "name": exhibit.name,
        "headline": exhibit.route,
        "facts": exhibit.facts,
        "settings": settings_of(
            run.config,
            folder=exhibit.path,
            source=run.source,
            target=run.target,
            store=run.provenance,
        ),
        "missing": _missing(exhibit),
        "evaluated": _evaluated(report) if report else (),
        "maps": map_names(report) if report else (),
        "groups": map_groups(report) if report else (),
        "figures": _drawings(exhibit, place=place),
        "curves": curve_drawings(exhibit.curves, prefix=f"w{place}-"),
        "curves_lost": curves_lost(run),
        "relations": relation_tables(connections, link=link) if connections else (),
        "read": _read(exhibit),
    }


def _evaluated(report: ConnectorReport) -> list[str]:
    """On what, between which bounds, and what a reader must know."""
    excluded = f"; left out: {', '.join(report.excluded)}" if report.excluded else ""
    told = [
        f"In {public(report.model)} on {public(report.text)}: {report.n_tokens:,} tokens in "
        f"contexts of {report.ctx_len}, the model in {report.precision}{excluded}. "
        f"{report.n_alive:,} of {report.n_out:,} outputs are active on any of them.",
        f"Cross-entropy of the model alone {number(report.ce_clean)}, with the SAE of the second "
        f"site spliced in {number(report.ce_sae)} (loss recovered "
        f"{number(report.loss_recovered_sae)}), with the site zeroed {number(report.ce_zero)}.",
    ]
    if report.layer:
        told.append(
            f"The model's own layer between the two sites has {report.layer.n:,} weights, "
            f"{report.layer.n_above:,} of them above {report.tau:g} in magnitude."
        )
    return [*told, *map(public, report.notes)]


def _read(exhibit: ConnectorExhibit) -> list[str]:
    """From what it was read, and what a reader must know; nothing if it was not."""
    if exhibit.connections is None:
        return []
    reading = exhibit.connections.reading
    told = [f"Read from {reading.n_tokens:,} tokens of {reading.store.name}."]
    if reading.effects:
        told.append(_agreement(reading.effects))
    return [*told, *map(public, reading.notes)]


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
    """What is not there yet, and the command that makes it."""
    missing: dict[str, str] = {}
    if exhibit.evaluation is None:
        missing["It has not been evaluated yet."] = f"saepipe eval {typed(exhibit.path)}"
    if exhibit.connections is None:
        missing["It has not been read yet."] = exhibit.command
    for end in exhibit.run.ends:
        if not has_features(end.run):
            what = f"Features of {end.run.name} have not been collected yet."
            missing[what] = f"saepipe features {typed(end.run)}"
    return missing


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


def _browsed(exhibit: ConnectorExhibit) -> dict[str, object]:
    """A connector as the browser of outputs shows it."""
    head: dict[str, object] = {"name": exhibit.name, "command": exhibit.command}
    if exhibit.connections is None:
        return head | {"nTokens": 0, "tokens": [], "inputs": {}, "items": []}
    return head | connector_data(exhibit.connections)


def frontier_drawings(reports: Sequence[ConnectorReport]) -> Drawings:
    """Several connectors against each other; none where there are not several."""
    if len(reports) < 2:
        return {}
    return drawings(
        {
            "weights-fvu": connector_frontier_figure(reports),
            "weights-recovered": connector_frontier_figure(reports, "recovered_of_sae"),
        }
    )


_HIGH = 4.4
"""Inches: of figures that stand in one row."""


def _drawings(exhibit: ConnectorExhibit, *, place: int) -> Drawings:
    """What its evaluation and its reading show."""
    figures, report = {}, exhibit.evaluation
    if report is not None:
        figures = {"explained": explained_figure(report), "weights": weights_figure(report)}
    if exhibit.connections and (effects := exhibit.connections.reading.effects):
        figures["effects"] = effects_figure(effects)
    return drawings(figures, prefix=f"w{place}-", size=(WIDE, _HIGH))
