"""Output features as weighted sums of input features, the terms that matter first.

A weight alone does not say what a term does: its input may never be active. Of an output `o`, the
positive weight of an input `i` contributes `W[i, o] * mean(z1_i)`, the mean over the rows on which
the output is active. A negative weight does its work where the output is *not* active: its
contribution is the same product with the mean over the rows on which the output is silent although
one of the inputs named with a positive weight is active, at most `MAX_SILENT` of them. Shares are
of what all positive weights together add on the same rows; terms below `MIN_SHARE` are not named.

Some pairs of inputs decide on an output together: OR, AND-NOT and AND, by the data alone. For
inputs `a` and `b` of an output `o` the rows fall into four cells: a alone is active, b alone, both,
neither. In each, `P(o)` is the share of rows on which the output is active.

    or        W_a > 0, W_b > 0   min(P(o | a only), P(o | b only), P(o | both)) - P(o | neither)
    and       W_a > 0, W_b > 0   P(o | both) - max(P(o | a only), P(o | b only), P(o | neither))
    and-not   W_a > 0, W_b < 0   P(o | a only) - max(P(o | both), P(o | neither))

These differences, the score, are taken at the ends of Wilson's intervals of 3 standard errors that
make them smallest, so that few rows make no clear relation; only of P(o | both) in `or` the upper
end counts: inputs that never meet may still be an OR. The cells that a kind is about (a only and b
only; all but neither; a only and both) hold at least `MIN_ROWS` rows, and the score is at least
`CLEAR`.

That is the data alone, and two inputs may merely go along with a third that does the work. So the
weights must agree. On the rows of a cell an input adds `W * mean(z1)`; of all that positive weights
add there, an input whose presence alone makes the output likely adds at least `CARRIES`; in `and`,
where both are active, they add as much together, and each at least `TAKES`; the b of an `and-not`
takes away at least `TAKES` of it where both are active.

Looked at are pairs of the terms of an output's equation; of an output the clearest of each kind is
told.
"""

from collections.abc import Callable
from itertools import combinations, product
from operator import itemgetter
from typing import final

import numpy as np
from jaxtyping import Bool, Float32, Float64, Int32, Int64

from pipeline.connect.connector import Connector
from pipeline.connect.reading.observe import Active, Observed, evenly, rows_of_any
from pipeline.connect.reading.values import Cell, Equation, Kind, Relation, Term
from pipeline.connect.report import TAU

MAX_SILENT = 2048
MIN_SHARE = 0.01


def _ignored(n_done: int) -> None:
    pass


def equations(
    observed: Observed,
    connector: Connector,
    *,
    n_terms: int,
    on_outputs: Callable[[int], None] = _ignored,
) -> tuple[Equation, ...]:
    """The equation of every output that was active, with at most `n_terms` positive terms."""
    found: list[Equation] = []
    W, b = (p.detach().cpu().numpy() for p in (connector.W, connector.b))
    rectified = connector.activation == "relu"
    for o in np.flatnonzero(observed.target.n_active).tolist():
        found.append(
            _equation(observed, o, W[:, o], float(b[o]), n_terms=n_terms, rectified=rectified)
        )
        on_outputs(len(found))
    return tuple(found)


def _equation(
    observed: Observed,
    output: int,
    w: Float32[np.ndarray, " n_in"],
    bias: float,
    *,
    n_terms: int,
    rectified: bool,
) -> Equation:
    source, target = observed.source, observed.target
    rows, values = target.rows_of(output), target.values_of(output)
    adding = _terms(w, source.mean_over(rows), sign=1, n=n_terms)
    silent = _silent(source, [term.feature for term in adding], rows)
    subtracting = _terms(w, source.mean_over(silent), sign=-1, n=-(-n_terms // 2))
    explained = shown = None
    if not np.isnan(observed.explained[output]):
        explained = float(observed.explained[output])
        terms = (*adding, *subtracting)
        shown = _explained_by(source, terms, bias, rows, values, rectified=rectified)
    return Equation(
        output=output,
        bias=bias,
        adding=adding,
        subtracting=subtracting,
        n_nonzero=int(np.count_nonzero(w)),
        n_above=int((np.abs(w) > TAU).sum()),
        explained=explained,
        explained_shown=shown,
        n_active=len(rows),
        frequency=len(rows) / observed.n_rows,
        mean=float(values.mean(dtype=np.float64)),
    )


def _terms(
    w: Float32[np.ndarray, " n_in"], mean: Float64[np.ndarray, " n_in"], *, sign: int, n: int
) -> tuple[Term, ...]:
    """The largest contributions of weights of one sign."""
    contribution = w * mean
    added = np.maximum(contribution, 0).sum()
    order = np.argsort(-sign * contribution, kind="stable")[:n]
    return tuple(
        Term(
            feature=i,
            weight=float(w[i]),
            contribution=float(contribution[i]),
            share=float(abs(contribution[i]) / added),
        )
        for i in order[sign * contribution[order] > MIN_SHARE * added].tolist()
    )


def _silent(
    source: Active, inputs: list[int], rows: Int32[np.ndarray, " n"]
) -> Int32[np.ndarray, " m"]:
    """Rows on which one of the inputs is active and the output is not, evenly drawn."""
    if not inputs:
        return np.empty(0, np.int32)
    met = rows_of_any([source.rows_of(i) for i in inputs], n_rows=source.n_rows)
    return evenly(met[np.isin(met, rows, assume_unique=True, invert=True)], n=MAX_SILENT)


def _explained_by(
    source: Active,
    terms: tuple[Term, ...],
    bias: float,
    rows: Int32[np.ndarray, " n"],
    values: Float32[np.ndarray, " n"],
    *,
    rectified: bool,
) -> float:
    """Share of an output's variance that some terms and the bias predict."""
    predicted = np.full(source.n_rows, bias)
    for term in terms:
        predicted[source.rows_of(term.feature)] += term.weight * source.values_of(
            term.feature
        ).astype(np.float64)
    if rectified:
        np.maximum(predicted, 0, out=predicted)
    true = np.zeros(source.n_rows)
    true[rows] = values
    return 1 - float(np.square(predicted - true).sum() / np.square(true - true.mean()).sum())


MIN_ROWS = 20
CLEAR = 0.3
CARRIES = 0.5
TAKES = 0.25
_MAX_ROWS = 2048
"""Of a cell, to see what adds to the output there."""


def relations(
    observed: Observed,
    connector: Connector,
    equations: tuple[Equation, ...],
    *,
    on_outputs: Callable[[int], None] = _ignored,
) -> tuple[Relation, ...]:
    """Every clear relation, the clearest first."""
    W = connector.W.detach().cpu().numpy()
    found: list[Relation] = []
    for done, equation in enumerate(equations, 1):
        found += _relations(observed, equation, W[:, equation.output])
        on_outputs(done)
    return tuple(sorted(found, key=lambda r: (-r.score, r.output)))


def _relations(
    observed: Observed, equation: Equation, w: Float32[np.ndarray, " n_in"]
) -> list[Relation]:
    """The clearest of each kind for one output."""
    if len(equation.terms) < 2:
        return []
    table = _Table(observed, equation, w)
    n_adding, n_terms = len(equation.adding), len(equation.terms)
    two = list(combinations(range(n_adding), 2))
    pairs: dict[Kind, list[tuple[int, int]]] = {
        "or": two,
        "and-not": list(product(range(n_adding), range(n_adding, n_terms))),
        "and": two,
    }
    best: list[Relation] = []
    for kind, some in pairs.items():
        scored = [(score, a, b) for a, b in some if (score := table.score(kind, a, b)) >= CLEAR]
        for score, a, b in sorted(scored, key=itemgetter(0), reverse=True):
            if table.carried(kind, a, b):
                best.append(table.relation(kind, a, b, score=score))
                break
    return best


@final
class _Table:
    """In how many rows the terms of an equation meet each other, with the output and without."""

    def __init__(
        self, observed: Observed, equation: Equation, w: Float32[np.ndarray, " n_in"]
    ) -> None:
        self._observed, self._equation, self._w = observed, equation, w
        source = observed.source
        active = [source.rows_of(term.feature) for term in equation.terms]
        output = observed.target.rows_of(equation.output)
        self._rows = rows_of_any(active, n_rows=observed.n_rows)
        self._on = np.zeros((len(self._rows), len(active)), np.bool_)
        for i, some in enumerate(active):
            self._on[np.searchsorted(self._rows, some), i] = True
        with_output = self._on & np.isin(self._rows, output, assume_unique=True)[:, None]
        self._met, self._met_active = _counts(self._on, self._on), _counts(with_output, self._on)
        self._n_output = len(output)

    def score(self, kind: Kind, a: int, b: int) -> float:
        """How clear a relation is; -1 where a cell that it is about holds too few rows."""
        a_only, b_only, both, neither = self._cells(a, b)
        about = {"or": (a_only, b_only), "and": (a_only, b_only, both), "and-not": (a_only, both)}
        if min(cell.n for cell in about[kind]) < MIN_ROWS:
            return -1.0
        (low_a, high_a), (low_b, high_b) = a_only.bounds, b_only.bounds
        (low_both, high_both), (_, high_none) = both.bounds, neither.bounds
        match kind:
            case "or":
                return min(low_a, low_b, high_both) - high_none
            case "and":
                return low_both - max(high_a, high_b, high_none)
            case "and-not":
                return low_a - max(high_both, high_none)

    def carried(self, kind: Kind, a: int, b: int) -> bool:
        """Whether the weights make these terms, and no others, the reason."""
        on_a, on_b = self._on[:, a], self._on[:, b]
        match kind:
            case "or":
                alone = self._shares(on_a & ~on_b)[a], self._shares(on_b & ~on_a)[b]
                return min(alone) >= CARRIES
            case "and":
                shares = self._shares(on_a & on_b)
                return shares[a] + shares[b] >= CARRIES and min(shares[a], shares[b]) >= TAKES
            case "and-not":
                alone, both = self._shares(on_a & ~on_b), self._shares(on_a & on_b)
                return alone[a] >= CARRIES and both[b] <= -TAKES

    def relation(self, kind: Kind, a: int, b: int, *, score: float) -> Relation:
        """How two terms decide on the output."""
        a_only, b_only, both, neither = self._cells(a, b)
        first, second = self._equation.terms[a], self._equation.terms[b]
        return Relation(
            kind=kind,
            output=self._equation.output,
            a=first.feature,
            b=second.feature,
            weight_a=first.weight,
            weight_b=second.weight,
            a_only=a_only,
            b_only=b_only,
            both=both,
            neither=neither,
            score=score,
        )

    def _shares(self, cell: Bool[np.ndarray, " rows"]) -> list[float]:
        """What each term adds on some rows, as a share of all that is added there."""
        rows = evenly(self._rows[cell], n=_MAX_ROWS)
        adds = self._w * self._observed.source.mean_over(rows)
        added = float(np.maximum(adds, 0).sum())
        return [
            float(adds[term.feature]) / added if added else 0.0 for term in self._equation.terms
        ]

    def _cells(self, a: int, b: int) -> tuple[Cell, Cell, Cell, Cell]:
        """Rows with a only, b only, both, neither."""
        (n_a, n_b, n_ab), (m_a, m_b, m_ab) = (
            (int(met[a, a]), int(met[b, b]), int(met[a, b]))
            for met in (self._met, self._met_active)
        )
        n_none = self._observed.n_rows - (n_a + n_b - n_ab)
        m_none = self._n_output - (m_a + m_b - m_ab)
        return (
            Cell(n=n_a - n_ab, n_active=m_a - m_ab),
            Cell(n=n_b - n_ab, n_active=m_b - m_ab),
            Cell(n=n_ab, n_active=m_ab),
            Cell(n=n_none, n_active=m_none),
        )


def _counts(
    x: Bool[np.ndarray, "rows terms"], y: Bool[np.ndarray, "rows terms"]
) -> Int64[np.ndarray, "terms terms"]:
    """In how many rows both are true; exact in float64, and many times as fast as in integers."""
    return (x.T.astype(np.float64) @ y.astype(np.float64)).astype(np.int64)
