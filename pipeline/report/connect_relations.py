"""The table of the clearest relations: which pairs of inputs decide on an output, and how."""

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.connect.reading.logic import CARRIES, CLEAR, MIN_ROWS, TAKES
from pipeline.connect.reading.values import KINDS, Cell as Rows, Kind, Relation
from pipeline.report.connect_gather import N_RELATIONS, Connections, EndFeatures
from pipeline.report.words import number, percent

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
        output=_name(
            connections.target, relation.output, link=f"{link}{relation.output}" if shown else ""
        ),
        inputs=[_name(connections.source, i, weight=f"{w:+.2g}") for i, w in pairs],
        cells=[
            _cell(rows)
            for rows in (relation.a_only, relation.b_only, relation.both, relation.neither)
        ],
    )


def _name(end: EndFeatures, index: int, *, weight: str = "", link: str = "") -> Named:
    return Named(index=index, words=end.peaks(index), weight=weight, link=link)


def _cell(rows: Rows) -> tuple[str, str]:
    return "-" if rows.p is None else percent(rows.p), number(rows.n)
