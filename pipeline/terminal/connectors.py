"""Tables of connectors.

A connector in words, 80 columns wide where it is a pipe: equations and logic.

Texts come from data sets: they are shown as `Text`, never as markup, and through `label`.

One output feature of a connector: its equation, and what it and its inputs fire on.

Texts come from data sets: they are shown as `Text`, never as markup, and through `visible`.
"""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from pipeline.connect.reading.document import top_tokens
from pipeline.connect.reading.values import (
    KINDS,
    Agreement,
    Cell,
    Effect,
    Equation,
    Kind,
    Reading,
    Relation,
)
from pipeline.features.feature import BEFORE, Examples
from pipeline.features.files import FeatureSet
from pipeline.terminal.words import many
from pipeline.text.token_text import TokenTexts, label, visible

Ends = tuple[FeatureSet | None, FeatureSet | None]
"""What the features of the source and of the target fire on; None where nobody knows."""

_EQUATION_CELLS = 69
_N_NAMED = 3
"""Terms of an equation whose tokens are told in a table."""
_TITLES: dict[Kind, str] = {
    "or": "OR: either input suffices",
    "and-not": "AND-NOT: the first input, unless the second is active",
    "and": "AND: neither input suffices",
}
JOINS: dict[Kind, str] = {"or": "or", "and-not": "and not", "and": "and"}


def reading_tables(reading: Reading, ends: Ends, *, rows: int) -> list[Table]:
    """Equations that explain most, then the clearest of each relation, `rows` lines each."""
    tables = [_equations(reading, reading.clearest[:rows], ends)]
    tables += [
        _relations(kind, related[:rows], ends, n=len(related))
        for kind in KINDS
        if (related := reading.related(kind))
    ]
    if reading.effects is not None:
        tables.append(_agreement(reading))
    return tables


def equation_words(equation: Equation, *, n_cells: int | None = None) -> str:
    """`OF505 = 0.68 IF3021 - 0.21 IF729`, and how many weights are left out.

    Args:
        equation: Of an output feature.
        n_cells: Terms are left out until it is no longer; None names all there are.
    """
    n = max(len(equation.adding), 2 * len(equation.subtracting))
    words = _words(equation, n)
    while n > 1 and n_cells is not None and len(words) > n_cells:
        n -= 1
        words = _words(equation, n)
    return words


def _words(equation: Equation, n: int) -> str:
    """With `n` terms that add, and half as many that subtract."""
    shown = (*equation.adding[:n], *equation.subtracting[: -(-n // 2)])
    terms = [f"{abs(term.weight):.2g} IF{term.feature}" for term in shown]
    signs = ["-" if term.weight < 0 else "+" for term in shown]
    joined = " ".join(f"{sign} {term}" for sign, term in zip(signs, terms, strict=True))
    left = equation.n_nonzero - len(shown)
    further = f" + {left:,} more" if left else ""
    return f"OF{equation.output} = {joined.removeprefix('+ ') or '0'}{further}"


def fires_on(features: FeatureSet | None, index: int, *, n: int = 3) -> str:
    """The tokens that a feature is largest on, made fit for a screen."""
    return " ".join(map(label, top_tokens(features, index, n=n)))


def make_table(title: str) -> Table:
    """An empty table in this house's style."""
    return Table(
        title=Text(title, style="bold"), title_justify="left", show_header=True, box=None,
        pad_edge=False, padding=(0, 1, 0, 0), expand=True,
    )  # fmt: skip


def _equations(reading: Reading, chosen: Sequence[Equation], ends: Ends) -> Table:
    source, target = reading.source.site, reading.target.site
    table = make_table(
        f"{target} (OF) from {source} (IF), {many(reading.n_tokens, 'token')}: outputs best "
        "explained"
    )
    table.add_column("variance\nexplained", justify="right", no_wrap=True)
    table.add_column("by the terms shown", ratio=1, no_wrap=True, overflow="ellipsis")
    for equation in chosen:
        line = Text(equation_words(equation, n_cells=_EQUATION_CELLS))
        named = [f"IF{t.feature} {fires_on(ends[0], t.feature)}" for t in equation.terms[:_N_NAMED]]
        if any(ends):
            line.append(f"\n{fires_on(ends[1], equation.output)}  ←  {'; '.join(named)}", "dim")
        table.add_row(f"{equation.explained_shown:.3f}", line)
    return table


def _relations(kind: Kind, chosen: Sequence[Relation], ends: Ends, *, n: int) -> Table:
    table = make_table(f"{_TITLES[kind]} ({len(chosen)} of {n}); how often the output is active")
    table.add_column("output, inputs", ratio=1, no_wrap=True, overflow="ellipsis")
    for name in ("first\nonly", "second\nonly", "\nboth", "\nneither"):
        table.add_column(name, justify="right", no_wrap=True)
    for relation in chosen:
        line = Text(f"OF{relation.output} = IF{relation.a} {JOINS[kind]} IF{relation.b}")
        if any(ends):
            a, b = (fires_on(ends[0], i, n=2) for i in (relation.a, relation.b))
            line.append(f"\n{fires_on(ends[1], relation.output, n=2)}  ←  {a}; {b}", "dim")
        cells = (relation.a_only, relation.b_only, relation.both, relation.neither)
        table.add_row(line, *map(_chance, cells))
    return table


def _chance(cell: Cell) -> str:
    """A share and, under it, of how many rows."""
    return "-\n0" if cell.p is None else f"{cell.p:.3f}\n{_brief(cell.n)}"


def _brief(n: int) -> str:
    return f"{n:,}" if n < 100_000 else f"{n / 1000:,.0f}k"


def _agreement(reading: Reading) -> Table:
    effects = reading.effects
    assert effects is not None
    table = make_table("removing an input: the drop predicted against the drop in the model")
    table.add_column("pairs", ratio=1)
    for name in ("n", "Pearson", "Spearman", "slope"):
        table.add_column(name, justify="right", no_wrap=True)
    for name, found in (
        ("terms of equations", effects.connected),
        ("with unconnected pairs", effects.every),
    ):
        table.add_row(name, *_numbers(found))
    return table


def _numbers(found: Agreement) -> list[str]:
    values = (found.pearson, found.spearman, found.slope)
    return [f"{found.n:,}", *("-" if value is None else f"{value:.2f}" for value in values)]


_LEFT_CELLS = 30
"""Of the text before an example's token."""
_N_OF_OUTPUT, _N_OF_INPUT = 8, 5
"""Examples."""


def output_tables(
    reading: Reading, output: int, effects: Sequence[Effect], ends: Ends
) -> list[Table]:
    """All that was read of an output feature.

    Args:
        reading: Of the connector.
        output: Number of the feature.
        effects: Of its inputs on it, as `effects_on` measures them.
        ends: What the features of both SAEs fire on.

    Raises:
        ConfigError: there is no such feature, or it was never active.
    """
    equation = reading.equation(output)
    source, target = ends
    tables = [_numbers_connect_feature(reading, equation), _terms(equation, effects, source)]
    if target is not None:
        tables.append(_examples(f"OF{output}", target, output, n=_N_OF_OUTPUT))
    if source is not None:
        tables += [
            _examples(f"IF{term.feature} ({term.weight:+.2g})", source, term.feature, n=_N_OF_INPUT)
            for term in equation.terms
        ]
    return tables


def _numbers_connect_feature(reading: Reading, equation: Equation) -> Table:
    table = make_table(equation_words(equation))
    table.show_header = False
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    explained, shown = (
        "-" if value is None else f"{value:.3f}"
        for value in (equation.explained, equation.explained_shown)
    )
    rows = {
        "explained": f"{explained} of its variance; {shown} by the terms shown and the bias",
        "bias": f"{equation.bias:+.3g}",
        "weights": f"{equation.n_nonzero:,} not zero, {equation.n_above:,} above 0.1",
        "active on": f"{100 * equation.frequency:.3g} % of {reading.n_tokens:,} tokens, "
        f"{equation.mean:.3g} on average there",
    }
    for relation in reading.relations:
        if relation.output == equation.output:
            words = f"IF{relation.a} {JOINS[relation.kind]} IF{relation.b}"
            rows[f"as {relation.kind}"] = f"{words}, clear by {relation.score:.2f}"
    for name, words in rows.items():
        table.add_row(name, words)
    return table


def _terms(equation: Equation, effects: Sequence[Effect], source: FeatureSet | None) -> Table:
    table = make_table("terms; what removing each takes from the output where it is active")
    by_input = {effect.input: effect for effect in effects}
    names = ("input", "weight", "share", *(("predicted", "true") if effects else ()))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("fires on", ratio=1, no_wrap=True, overflow="ellipsis")
    for term in equation.terms:
        row = [f"IF{term.feature}", f"{term.weight:+.3f}", f"{100 * term.share:.0f} %"]
        if effects:
            effect = by_input.get(term.feature)
            row += (
                ["-", "-"] if effect is None else [f"{effect.linear:+.3g}", f"{effect.true:+.3g}"]
            )
        table.add_row(*row, Text(fires_on(source, term.feature, n=8)))
    return table


def _examples(name: str, features: FeatureSet, index: int, *, n: int) -> Table:
    """Top contexts under each other at their tokens, every token on which it is active marked."""
    feature = features.feature(index)
    table = make_table(
        f"{name}: {100 * feature.frequency:.3g} % of {features.facts.n_tokens:,} tokens, "
        f"{feature.max:.3g} at most"
    )
    table.show_header = False
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    for i, value in enumerate(feature.top.value[:n].tolist()):
        table.add_row(f"{value:.3g}", _line(feature.top, i, features.texts))
    return table


def _line(examples: Examples, i: int, texts: TokenTexts) -> Text:
    tokens, active = examples.tokens[i].tolist(), (examples.values[i] > 0).tolist()
    pieces = [visible(piece) for piece in texts.pieces(tokens)]
    pieces[BEFORE] = pieces[BEFORE] or visible(texts.alone(tokens[BEFORE]))
    first, width = BEFORE, 0
    while first > 0 and width + cell_len(pieces[first - 1]) <= _LEFT_CELLS:
        first -= 1
        width += cell_len(pieces[first])
    line = Text(" " * (_LEFT_CELLS - width))
    for place in range(first, len(pieces)):
        style = "bold underline" if place == BEFORE else ("underline" if active[place] else "")
        line.append(pieces[place], style)
    return line
