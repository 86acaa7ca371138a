"""Connectors on a screen of 80 columns: evaluated, as equations and logic, an output closely.

Texts come from data sets: they are shown through `label` and `visible`.
"""

from collections.abc import Iterable, Sequence

from pipeline.config.stages import FeatureOrder
from pipeline.connect.reading.document import (
    FeaturesOfEnds,
    output_document,
    reading_document,
    top_tokens,
)
from pipeline.connect.reading.read import effects_on, features_of_both
from pipeline.connect.reading.values import KINDS, Agreement, Cell, Effect, Equation, Kind, Reading
from pipeline.connect.report import ConnectorReport, MapScores, map_words
from pipeline.evaluate.report import QUANTILES
from pipeline.features.feature import BEFORE, Examples
from pipeline.features.files import FeatureSet
from pipeline.runs.names import names_of
from pipeline.tables import Column, Shown, Style, Table, Words, cell, many
from pipeline.text.token_text import TokenTexts, label, visible


def shown(reading: Reading, chosen: Sequence[int], *, order: FeatureOrder, rows: int) -> Shown:
    """Some outputs closely, or else tables of equations and relations, in their own order."""
    del order
    ends = features_of_both(reading)
    if not chosen:
        tables = reading_tables(reading, ends, rows=rows)
        documents = [reading_document(reading, ends, rows=rows)]
    else:
        effects = {i: effects_on(reading, i, device=reading.config.device) for i in chosen}
        tables = [t for i in chosen for t in output_tables(reading, i, effects[i], ends)]
        documents = [output_document(reading, i, effects[i], ends) for i in chosen]
    notes = [note for end in ends if end is not None for note in end.facts.notes]
    return Shown(tables=tables, documents=documents, notes=[*reading.notes, *notes])


# --- evaluated -------------------------------------------------------------------------------


def connector_tables(reports: Sequence[ConnectorReport]) -> list[Table]:
    """What there is to see of some evaluations: of one all, of several what they are chosen by."""
    if len(reports) == 1:
        return [_maps(reports[0]), _bounds(reports[0])]
    return [_lines(reports)]


def _maps(report: ConnectorReport) -> Table:
    """One connector, and the baselines beside it."""
    maps, tau = report.maps, report.tau

    def line(words: str, values: Iterable[object]) -> list[str]:
        return [words, *map(_number, values)]

    def told(words: str, field: str) -> list[str]:
        return line(words, (getattr(one, field) for one in maps))

    def quantile(words: str, field: str, q: float) -> list[str]:
        found = (dict(zip(QUANTILES, getattr(one, field), strict=False)) for one in maps)
        return line(words, (quantiles.get(q) for quantiles in found))

    def ends(metric: str) -> list[list[str]]:
        found = [next((i for i in one.intervals if i.metric == metric), None) for one in maps]
        return [
            line("  95 % from", (interval and interval.low for interval in found)),
            line("  95 % to", (interval and interval.high for interval in found)),
        ]

    places = {q: "median" if q == 0.5 else f"{100 * q:g} %" for q in QUANTILES}
    predicts = [
        told("FVU", "fvu"),
        *ends("fvu"),
        told("mean squared error", "mse"),
        line("variance explained", [""] * len(maps)),
        *(quantile(f"  {at} of outputs", "explained_quantiles", q) for q, at in places.items()),
    ]
    weights = [
        told(f"weights > {tau:g}", "n_above"),
        told("  of an output, mean", "above_mean"),
        quantile("  median", "above_quantiles", 0.5),
        told("  most", "above_max"),
        told("weights not zero", "n_nonzero"),
        told("  of an output, mean", "nonzero_mean"),
        told("mean |W|", "l1"),
    ]
    losses = [
        told("loss", "ce"),
        told("KL(model || spliced)", "kl"),
        told("loss recovered", "loss_recovered"),
        *ends("loss_recovered"),
        told("of what the SAE does", "recovered_of_sae"),
    ]
    return Table(
        title=_title([report]),
        columns=[Column(), *_numbers(*map(map_words, maps))],
        sections=[predicts, weights, losses],
    )


def _bounds(report: ConnectorReport) -> Table:
    """What the connector lies between, and how large."""
    source, target = report.sites
    rows: dict[str, object] = {
        "reads": f"{report.n_in:,} features of {source}, {report.l0_in:.1f} active",
        "predicts": f"{report.n_out:,} features of {target}, {report.l0_out:.1f} active",
        "alive among these": report.n_alive,
        "loss, the model alone": report.ce_clean,
        "loss, SAE spliced in (the ceiling)": report.ce_sae,
        f"loss, {target} zeroed (the floor)": report.ce_zero,
        "loss recovered by the SAE": report.loss_recovered_sae,
    }
    if (layer := report.layer) is not None:
        rows[f"the MLP's weights > {report.tau:g}"] = f"{layer.n_above:,} of {layer.n:,}"
    return Table(
        columns=[Column(), Column(align="right", folds=True)],
        sections=[[[words, _number(value)] for words, value in rows.items()]],
    )


def _lines(reports: Sequence[ConnectorReport]) -> Table:
    """One line a connector, and one for each baseline of its SAEs."""
    tau, runs = reports[0].tau, [report.run for report in reports]
    heads = ("l1", "FVU", f"above\n{tau:g}", "not\nzero", "loss\nrecovered", "of the\nSAE's")
    names = dict(zip(runs, names_of(runs), strict=True))
    between: dict[object, list[ConnectorReport]] = {}
    for report in reports:
        between.setdefault(report.shared, []).append(report)
    return Table(
        title=_title(reports),
        columns=[Column(head="run", folds=True), *_numbers(*heads)],
        sections=[
            [
                *([names[r.run], f"{r.l1:g}", *_line(r.connector)] for r in members),
                *(
                    [Words(pieces=[(f"  {map_words(one)}", "dim")]), "", *_line(one)]
                    for one in members[0].baselines
                ),
            ]
            for members in between.values()
        ],
        caption=f"weights above {tau:g} and not zero: on average, of an output that is alive",
    )


def _numbers(*heads: str) -> list[Column]:
    """Columns of numbers."""
    return [Column(head=head, align="right") for head in heads]


def _line(one: MapScores) -> list[str]:
    fvu, *recovered = map(_number, (one.fvu, one.loss_recovered, one.recovered_of_sae))
    counts = (one.above_mean, one.nonzero_mean)
    return [fvu, *("-" if n is None else f"{n:.3g}" for n in counts), *recovered]


def _title(reports: Sequence[ConnectorReport]) -> str:
    """On what connectors were evaluated."""
    n = max(report.n_tokens for report in reports)
    where = dict.fromkeys(f"{report.model} on {report.text}" for report in reports)
    return f"{', '.join(where)}, {n:,} tokens; losses in nats a token"


def _number(value: object) -> str:
    """With digits left of what is very small, and few of what is large."""
    if not isinstance(value, float) or 1e-3 <= abs(value) < 100:
        return cell(value)
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.2g}"


# --- read ------------------------------------------------------------------------------------

_EQUATION_CELLS = 69
_N_NAMED = 3
"""Terms of an equation whose tokens are told in a table."""
_TITLES: dict[Kind, str] = {
    "or": "OR: either input suffices",
    "and-not": "AND-NOT: the first input, unless the second is active",
    "and": "AND: neither input suffices",
}


def reading_tables(reading: Reading, ends: FeaturesOfEnds, *, rows: int) -> list[Table]:
    """Equations that explain most, then the clearest of each relation, `rows` lines each."""
    tables = [_equations(reading, ends, rows=rows)]
    tables += [
        _relations(reading, kind, ends, rows=rows) for kind in KINDS if reading.related(kind)
    ]
    if reading.effects is not None:
        found = {
            "terms of equations": reading.effects.connected,
            "with unconnected pairs": reading.effects.every,
        }
        heads = ("n", "Pearson", "Spearman", "slope")
        tables.append(
            Table(
                title="removing an input: the drop predicted against the drop in the model",
                columns=[Column(head="pairs", fills=True), *_numbers(*heads)],
                sections=[[[name, *_agreement(its)] for name, its in found.items()]],
                ruled=False,
            )
        )
    return tables


def equation_words(equation: Equation, *, n_cells: int | None = None) -> str:
    """`OF505 = 0.68 IF3021 - 0.21 IF729`, and how many weights are left out.

    Terms are left out until it is no longer than `n_cells`; None names all there are.
    """
    n = max(len(equation.adding), 2 * len(equation.subtracting))
    words = _equation_of(equation, n)
    while n > 1 and n_cells is not None and len(words) > n_cells:
        n -= 1
        words = _equation_of(equation, n)
    return words


def _equation_of(equation: Equation, n: int) -> str:
    """With `n` terms that add, and half as many that subtract."""
    shown = (*equation.adding[:n], *equation.subtracting[: -(-n // 2)])
    joined = " ".join(
        f"{'-' if term.weight < 0 else '+'} {abs(term.weight):.2g} IF{term.feature}"
        for term in shown
    )
    left = equation.n_nonzero - len(shown)
    further = f" + {left:,} more" if left else ""
    return f"OF{equation.output} = {joined.removeprefix('+ ') or '0'}{further}"


def _fires_on(features: FeatureSet | None, index: int, *, n: int = 3) -> str:
    """The tokens that a feature is largest on, made fit for a screen."""
    return " ".join(map(label, top_tokens(features, index, n=n)))


def _equations(reading: Reading, ends: FeaturesOfEnds, *, rows: int) -> Table:
    read, source, target = many(reading.n_tokens, "token"), reading.source.site, reading.target.site
    lines: list[list[str | Words]] = []
    for equation in reading.clearest[:rows]:
        words = equation_words(equation, n_cells=_EQUATION_CELLS)
        named = [
            f"IF{t.feature} {_fires_on(ends[0], t.feature)}" for t in equation.terms[:_N_NAMED]
        ]
        below = f"\n{_fires_on(ends[1], equation.output)}  ←  {'; '.join(named)}"
        lines.append([f"{equation.explained_shown:.3f}", _above(words, below, ends)])
    return Table(
        title=f"{target} (OF) from {source} (IF), {read}: outputs best explained",
        columns=[
            *_numbers("variance\nexplained"),
            Column(head="by the terms shown", fills=True),
        ],
        sections=[lines],
        ruled=False,
    )


def _relations(reading: Reading, kind: Kind, ends: FeaturesOfEnds, *, rows: int) -> Table:
    related = reading.related(kind)
    lines: list[list[str | Words]] = []
    for relation in related[:rows]:
        words = f"OF{relation.output} = {_joined(kind, relation.a, relation.b)}"
        output = _fires_on(ends[1], relation.output, n=2)
        a, b = (_fires_on(ends[0], i, n=2) for i in (relation.a, relation.b))
        chances = map(_chance, relation.cells)
        lines.append([_above(words, f"\n{output}  ←  {a}; {b}", ends), *chances])
    heads = ("first\nonly", "second\nonly", "\nboth", "\nneither")
    shown = f"({len(lines)} of {len(related)}); how often the output is active"
    return Table(
        title=f"{_TITLES[kind]} {shown}",
        columns=[Column(head="output, inputs", fills=True), *_numbers(*heads)],
        sections=[lines],
        ruled=False,
    )


def _joined(kind: Kind, a: int, b: int) -> str:
    return f"IF{a} {kind.replace('-', ' ')} IF{b}"


def _above(words: str, below: str, ends: FeaturesOfEnds) -> Words:
    """The second where somebody knows what features fire on."""
    return Words(pieces=[(words, ""), (below if any(ends) else "", "dim")])


def _chance(rows: Cell) -> str:
    """A share and, under it, of how many rows."""
    n = f"{rows.n:,}" if rows.n < 100_000 else f"{rows.n / 1000:,.0f}k"
    return "-\n0" if rows.p is None else f"{rows.p:.3f}\n{n}"


def _agreement(found: Agreement) -> list[str]:
    values = (found.pearson, found.spearman, found.slope)
    return [f"{found.n:,}", *("-" if value is None else f"{value:.2f}" for value in values)]


# --- one output ------------------------------------------------------------------------------

_N_OF_OUTPUT, _N_OF_INPUT = 8, 5
"""Examples."""


def output_tables(
    reading: Reading, output: int, effects: Sequence[Effect], ends: FeaturesOfEnds
) -> list[Table]:
    """All that was read of an output feature; `effects` are those of its inputs on it."""
    equation = reading.equation(output)
    source, target = ends
    tables = [_facts(reading, equation), _terms(equation, effects, source)]
    if target is not None:
        tables.append(_examples(f"OF{output}", target, output, n=_N_OF_OUTPUT))
    if source is not None:
        tables += [
            _examples(f"IF{term.feature} ({term.weight:+.2g})", source, term.feature, n=_N_OF_INPUT)
            for term in equation.terms
        ]
    return tables


def _facts(reading: Reading, equation: Equation) -> Table:
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
            words = _joined(relation.kind, relation.a, relation.b)
            rows[f"as {relation.kind}"] = f"{words}, clear by {relation.score:.2f}"
    return Table(
        title=equation_words(equation),
        columns=[Column(), Column(folds=True, fills=True)],
        sections=[list(rows.items())],
        ruled=False,
    )


def _terms(equation: Equation, effects: Sequence[Effect], source: FeatureSet | None) -> Table:
    by_input = {effect.input: effect for effect in effects}
    names = ("input", "weight", "share", *(("predicted", "true") if effects else ()))
    lines: list[list[str]] = []
    for term in equation.terms:
        line = [f"IF{term.feature}", f"{term.weight:+.3f}", f"{100 * term.share:.0f} %"]
        if effects:
            effect = by_input.get(term.feature)
            drops = (effect.linear, effect.true) if effect else None
            line += [f"{drop:+.3g}" for drop in drops] if drops else ["-", "-"]
        lines.append([*line, _fires_on(source, term.feature, n=8)])
    return Table(
        title="terms; what removing each takes from the output where it is active",
        columns=[*_numbers(*names), Column(head="fires on", fills=True)],
        sections=[lines],
        ruled=False,
    )


def _examples(name: str, features: FeatureSet, index: int, *, n: int) -> Table:
    """Top contexts under each other at their tokens, every token on which it is active marked."""
    feature, n_tokens = features.feature(index), features.facts.n_tokens
    how_often = f"{100 * feature.frequency:.3g} % of {n_tokens:,} tokens"
    values = feature.top.value[:n].tolist()
    return Table(
        title=f"{name}: {how_often}, {feature.max:.3g} at most",
        columns=[Column(align="right"), Column(fills=True)],
        sections=[
            [
                [f"{value:.3g}", _example(feature.top, i, features.texts)]
                for i, value in enumerate(values)
            ]
        ],
        ruled=False,
    )


def _example(examples: Examples, i: int, texts: TokenTexts) -> Words:
    tokens = examples.tokens[i].tolist()
    texts_of = [visible(piece) for piece in texts.pieces(tokens)]
    texts_of[BEFORE] = texts_of[BEFORE] or visible(texts.alone(tokens[BEFORE]))
    styles: list[Style] = ["underline" if value > 0 else "" for value in examples.values[i]]
    styles[BEFORE] = "bold underline"
    return Words(pieces=list(zip(texts_of, styles, strict=True)), pivot=BEFORE)
