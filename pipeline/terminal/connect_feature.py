"""One output feature of a connector: its equation, and what it and its inputs fire on.

Texts come from data sets: they are shown as `Text`, never as markup, and through `visible`.
"""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from pipeline.connect.reading.values import Effect, Equation, Reading
from pipeline.features.feature import BEFORE, Examples
from pipeline.features.files import FeatureSet
from pipeline.features.token_text import TokenTexts, visible
from pipeline.terminal.connect_reading import JOINS, Ends, equation_words, fires_on, make_table

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
    tables = [_numbers(reading, equation), _terms(equation, effects, source)]
    if target is not None:
        tables.append(_examples(f"OF{output}", target, output, n=_N_OF_OUTPUT))
    if source is not None:
        tables += [
            _examples(f"IF{term.feature} ({term.weight:+.2g})", source, term.feature, n=_N_OF_INPUT)
            for term in equation.terms
        ]
    return tables


def _numbers(reading: Reading, equation: Equation) -> Table:
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
