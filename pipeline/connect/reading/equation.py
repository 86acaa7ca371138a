"""Output features as weighted sums of input features, the terms that matter first.

A weight alone does not say what a term does: its input may never be active. Of an output `o`, the
positive weight of an input `i` contributes `W[i, o] * mean(z1_i)`, the mean over the rows on which
the output is active. A negative weight does its work where the output is *not* active: its
contribution is the same product with the mean over the rows on which the output is silent although
one of the inputs named with a positive weight is active, at most `MAX_SILENT` of them. Shares are
of what all positive weights together add on the same rows; terms below `MIN_SHARE` are not named.
"""

import numpy as np
from jaxtyping import Float32, Float64, Int32

from pipeline.connect.connector import Connector
from pipeline.connect.reading.active import Active, evenly, rows_of_any
from pipeline.connect.reading.observe import Observed
from pipeline.connect.reading.values import TAU, Equation, Term

MAX_SILENT = 2048
MIN_SHARE = 0.01


def equations(observed: Observed, connector: Connector, *, n_terms: int) -> tuple[Equation, ...]:
    """The equation of every output that was active, with at most `n_terms` positive terms."""
    W, b = (p.detach().cpu().numpy() for p in (connector.W, connector.b))
    rectified = connector.activation == "relu"
    return tuple(
        _equation(observed, o, W[:, o], float(b[o]), n_terms=n_terms, rectified=rectified)
        for o in np.flatnonzero(observed.target.n_active).tolist()
    )


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
