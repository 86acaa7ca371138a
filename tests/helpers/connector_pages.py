"""Connectors to make pages of: scored and read by nobody, plausible all the same."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.config.training import ConnectConfig
from pipeline.connect.connector import End
from pipeline.connect.page.connections import Connections, EndFeatures
from pipeline.connect.page.part import ConnectorExhibit
from pipeline.connect.reading.values import (
    Cell,
    Effect,
    Effects,
    Equation,
    Kind,
    Reading,
    ReadingConfig,
    Relation,
    Term,
)
from pipeline.connect.run import ConnectorRun
from pipeline.runs.folder import Provenance
from pipeline.text.token_text import TokenTexts
from tests.helpers.connector_reports import make_report
from tests.helpers.pages import D_SAE, N_TOKENS, ORDINARY, VOCABULARY, make_feature

SITES = ("resid_pre.1", "mlp_out.1")
N_OUTPUTS = 12


def make_connector_run(path: Path, *, l1: float = 0.01) -> ConnectorRun:
    """A finished run, but for its weights."""
    ends = tuple(path.parent / name for name in ("reads", "predicts"))
    config = ConnectConfig(
        store=path.parent / "x.actstore", out=path, ends=ends, l1=l1, start="random"
    )
    provenance = Provenance(
        path=config.store, fingerprint="f" * 64, model="EleutherAI/pythia-70m", revision="main",
        model_fingerprint="", text="somewhere", site=SITES[1], d_in=16, ctx_len=128,
        n_rows=1_000_000, dtype="bfloat16",
    )  # fmt: skip
    source, target = (
        End(run=run, site=site, sha256=letter * 64, d_sae=D_SAE)
        for run, site, letter in zip(ends, SITES, "ab", strict=True)
    )
    run = ConnectorRun(
        path=path, config=config, provenance=provenance, source=source, target=target,
        sha256="c" * 64,
    )  # fmt: skip
    path.mkdir(parents=True)
    run.write()
    return run


def make_equation(output: int, *, n_adding: int = 4, n_subtracting: int = 2) -> Equation:
    """An output of a few inputs, told apart by its number."""
    rng = np.random.default_rng(output)
    inputs = rng.permutation(D_SAE)[: n_adding + n_subtracting].tolist()
    weights = [
        *np.sort(rng.uniform(0.05, 0.9, n_adding))[::-1],
        *-rng.uniform(0.05, 0.4, n_subtracting),
    ]
    terms = [
        Term(feature=i, weight=float(w), contribution=float(2 * w), share=1 / max(1, n_adding))
        for i, w in zip(inputs, weights, strict=True)
    ]
    return Equation(
        output=output, bias=-0.0312, adding=tuple(terms[:n_adding]),
        subtracting=tuple(terms[n_adding:]), n_nonzero=len(terms) + 3, n_above=len(terms) + 1,
        explained=float(rng.uniform(0.3, 0.95)), explained_shown=float(rng.uniform(0.2, 0.9)),
        n_active=100 + 7 * (output * 11 % 40), frequency=(100 + 7 * (output * 11 % 40)) / N_TOKENS,
        mean=1.5,
    )  # fmt: skip


def make_relation(kind: Kind, equation: Equation) -> Relation:
    """One between its first two inputs whose signs fit."""
    a = equation.adding[0]
    b = equation.subtracting[0] if kind == "and-not" else equation.adding[1]
    shares = {"or": (0.9, 0.8, 0.99), "and-not": (0.85, 0.02, 0.05), "and": (0.03, 0.01, 0.91)}
    a_only, b_only, both = (
        Cell(n=n, n_active=round(n * p)) for n, p in zip((412, 96, 203), shares[kind], strict=True)
    )
    return Relation(
        kind=kind, output=equation.output, a=a.feature, b=b.feature, weight_a=a.weight,
        weight_b=b.weight, a_only=a_only, b_only=b_only, both=both,
        neither=Cell(n=N_TOKENS, n_active=12), score=0.5,
    )  # fmt: skip


def make_reading(run: ConnectorRun, *, n: int = N_OUTPUTS, **changes: Any) -> Reading:
    """Equations of outputs 20, 21, ...; relations of the first four, effects of the first three."""
    equations = tuple(make_equation(20 + i) for i in range(n))
    kinds: tuple[Kind, ...] = ("or", "and-not", "and", "or")
    points = [
        Effect(
            input=term.feature, output=equation.output, weight=term.weight,
            linear=term.weight * 1.1, true=term.weight * 0.9 + 0.05 * (i % 3), n_tokens=40 + i,
        )
        for equation in equations[:3]
        for i, term in enumerate(equation.terms)
    ]  # fmt: skip
    controls = [
        Effect(
            input=i, output=equations[i].output, weight=0.0, linear=0.0, true=0.01, n_tokens=9,
            control=True,
        )
        for i in range(min(3, n))
    ]  # fmt: skip
    values: dict[str, Any] = {
        "config": ReadingConfig(run=run.path), "connector": run.sha256, "source": run.source,
        "target": run.target, "store": run.provenance.path, "store_fingerprint": "f" * 64,
        "model": "builtin", "revision": "main", "n_tokens": N_TOKENS, "equations": equations,
        "relations": tuple(
            make_relation(kind, e) for kind, e in zip(kinds, equations, strict=False)
        ),
        "effects": Effects(points=(*points, *controls)),
        "notes": ("The model is not linear between these <i>sites</i>.",),
    }  # fmt: skip
    return Reading(**(values | changes))


def make_connections(
    reading: Reading, *, tokens: Sequence[int] = ORDINARY, collected: bool = True
) -> Connections:
    """What a page shows of all its equations; without examples where none are collected."""
    outputs = tuple(equation.output for equation in reading.equations)
    inputs = {term.feature for equation in reading.equations for term in equation.terms}
    texts = TokenTexts(dict(enumerate(VOCABULARY)).get)
    source, target = (
        EndFeatures(
            features={i: make_feature(i, tokens=tokens) for i in sorted(chosen) if collected},
            texts=texts,
        )
        for chosen in (inputs, outputs)
    )
    return Connections(reading=reading, outputs=outputs, source=source, target=target)


def make_connector_exhibit(path: Path, **changes: Any) -> ConnectorExhibit:
    """A connector with everything there is to show."""
    run = make_connector_run(path, l1=changes.pop("l1", 0.01))
    exhibit = ConnectorExhibit(
        name=path.name, path=path, run=run, curves=None,
        evaluation=make_report(path, notes=("Scores of <b>another</b> text are not comparable.",)),
        connections=make_connections(make_reading(run)),
    )  # fmt: skip
    return replace(exhibit, **changes)
