"""A connector as people read it: equations, how inputs combine, and what removing one does."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float64

from pipeline.config.checks import require_positive
from pipeline.config.stages import Device
from pipeline.connect.connector import End
from pipeline.errors import ConfigError

Kind = Literal["or", "and-not", "and"]
KINDS: tuple[Kind, ...] = ("or", "and-not", "and")


@dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """One reading of a connector."""

    run: Path
    store: Path | None = None
    """None means the one it was trained from."""
    tokens: int = 200_000
    """Rows to read, from all over the store; fewer where latents fill the memory."""
    n_terms: int = 6
    """Inputs with a positive weight to name of each output, and half as many with a negative one.
    """
    n_outputs: int = 40
    """Outputs whose terms are removed in the model; as many unconnected pairs are drawn, too."""
    seed: int = 0
    """Of what is drawn."""
    device: Device = "auto"

    def __post_init__(self) -> None:
        require_positive(self, "tokens", "n_terms", "n_outputs")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One input feature in the equation of an output feature."""

    feature: int
    weight: float
    contribution: float
    """The weight times the input's mean activation, over the rows that `Equation` names."""
    share: float
    """Its magnitude, as a share of what all positive weights together add on those rows."""


@dataclass(frozen=True, kw_only=True)
class Equation:
    """An output feature as a weighted sum of input features, `OF30 = 0.26 IF2797 + 0.23 IF259`."""

    output: int
    bias: float
    adding: tuple[Term, ...]
    """Positive weights, by what they contribute on the rows on which the output is active."""
    subtracting: tuple[Term, ...]
    """Negative weights, by what they take away on the rows on which the output is silent although
    an input of `adding` is active: there they may be the reason."""
    n_nonzero: int
    """Weights of the output that are not zero."""
    n_above: int
    """Weights above `TAU` in magnitude."""
    explained: float | None
    """Share of the output's variance that the connector predicts; None where it does not vary."""
    explained_shown: float | None
    """The same with the terms named here and the bias alone."""
    n_active: int
    """Rows, of those read, on which the output is active."""
    frequency: float
    mean: float
    """Of its activations above zero."""

    @property
    def terms(self) -> tuple[Term, ...]:
        """Those that add, then those that subtract."""
        return (*self.adding, *self.subtracting)

    @property
    def n_further(self) -> int:
        """Weights that are not zero and not named here."""
        return self.n_nonzero - len(self.terms)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Rows that are alike in which of two inputs are active."""

    n: int
    n_active: int
    """Those on which the output is active, too."""

    @property
    def p(self) -> float | None:
        """How often the output is active; None without rows."""
        return self.n_active / self.n if self.n else None

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which the probability lies, by chance; 0 and 1 without rows."""
        return wilson(self.n_active, self.n)


@dataclass(frozen=True, kw_only=True)
class Relation:
    """How two inputs together decide on an output: see `relations.py`."""

    kind: Kind
    output: int
    a: int
    b: int
    """The input that must be absent, in `and-not`."""
    weight_a: float
    weight_b: float
    a_only: Cell
    b_only: Cell
    both: Cell
    neither: Cell
    score: float
    """How far apart what must be likely and what must be unlikely are, at the least."""

    @property
    def cells(self) -> tuple[Cell, Cell, Cell, Cell]:
        """Rows with a only, b only, both, neither."""
        return self.a_only, self.b_only, self.both, self.neither

    @property
    def inside(self) -> float:
        """Share of the rows with `b` on which `a` is active, too: 1 where b is a part of a."""
        return self.both.n / max(1, self.both.n + self.b_only.n)


@dataclass(frozen=True, kw_only=True)
class Effect:
    """What removing an input feature takes from an output feature, where the input is active."""

    input: int
    output: int
    weight: float
    linear: float
    """Mean drop of what the connector predicts."""
    true: float
    """Mean drop of the output in the model."""
    n_tokens: int
    """That the means are over."""
    control: bool = False
    """Drawn from the pairs that the connector leaves unconnected, not from its terms."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of pairs (predicted, true); None where one of both does not vary."""

    n: int
    pearson: float | None
    spearman: float | None
    """Pearson's of the ranks, equals sharing their mean rank."""
    slope: float | None
    """Least squares of the true on the predicted, with an intercept."""


@dataclass(frozen=True, kw_only=True)
class Effects:
    """Predicted effects beside true ones."""

    points: tuple[Effect, ...]

    @property
    def connected(self) -> Agreement:
        """Over terms of equations."""
        return agreement([(p.linear, p.true) for p in self.points if not p.control])

    @property
    def every(self) -> Agreement:
        """Over controls, too, for which the connector predicts nothing."""
        return agreement([(p.linear, p.true) for p in self.points])

    @property
    def control_true(self) -> float | None:
        """Mean magnitude of the true effect of controls; None without any."""
        sizes = [abs(p.true) for p in self.points if p.control]
        return sum(sizes) / len(sizes) if sizes else None


@dataclass(frozen=True, kw_only=True)
class Reading:
    """All that was read of one connector."""

    config: ReadingConfig
    """As it ran, the paths absolute."""
    connector: str
    """SHA-256 of its weights."""
    source: End
    target: End
    store: Path
    store_fingerprint: str
    model: str
    """Empty where the store does not say."""
    revision: str
    model_fingerprint: str = ""
    """Of its weights; empty where they were not found, and where an earlier version wrote this."""
    n_tokens: int
    equations: tuple[Equation, ...]
    """Of every output that was active, in order."""
    relations: tuple[Relation, ...]
    """The clearest first; of each output the clearest of a kind."""
    effects: Effects | None
    """None without the language model."""
    notes: tuple[str, ...] = ()
    """What a reader must know, one sentence each."""

    def equation(self, output: int) -> Equation:
        """That of one output feature.

        Raises:
            ConfigError: there is no such feature, or it was never active.
        """
        for equation in self.equations:
            if equation.output == output:
                return equation
        if not 0 <= output < self.target.d_sae:
            raise ConfigError(
                f"{self.target.run} has features 0 to {self.target.d_sae - 1}, got {output}"
            )
        raise ConfigError(
            f"output feature {output} was active on none of {self.n_tokens:,} tokens: choose "
            f"another, or read more with --tokens"
        )

    def __repr__(self) -> str:
        found = f"{len(self.equations):,} equations, {len(self.relations):,} relations"
        return (
            f"Reading({self.config.run}: {found}, from {self.n_tokens:,} tokens; "
            ".equation(output), .clearest, .related(kind))"
        )

    def related(self, kind: Kind) -> tuple[Relation, ...]:
        """Relations of one kind, the clearest first."""
        return tuple(relation for relation in self.relations if relation.kind == kind)

    @property
    def clearest(self) -> tuple[Equation, ...]:
        """Equations by how much of the output the terms named explain."""
        told = [e for e in self.equations if e.explained_shown is not None and e.adding]
        return tuple(sorted(told, key=lambda e: -(e.explained_shown or 0)))


def agreement(points: Sequence[tuple[float, float]]) -> Agreement:
    """That of some points."""
    predicted, true = np.array(points, dtype=np.float64).reshape(-1, 2).T
    slope = None
    if len(points) and float(np.ptp(predicted)) > 0:
        centred = predicted - predicted.mean()
        slope = float(centred @ true / (centred @ centred))
    return Agreement(
        n=len(points),
        pearson=_correlation(predicted, true),
        spearman=_correlation(_ranks(predicted), _ranks(true)),
        slope=slope,
    )


def _correlation(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"]) -> float | None:
    if len(x) < 2:
        return None
    varies = min(float(np.ptp(x)), float(np.ptp(y))) > 0
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if varies else None


def _ranks(x: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Each value's place in order; equals get the mean of their places."""
    _, where, n = np.unique(x, return_inverse=True, return_counts=True)
    last = np.cumsum(n).astype(np.float64)
    return (last - (n - 1) / 2)[where]


Z = 3.0
"""Standard errors on either side: many pairs are looked at, and chance must not win among them."""


def wilson(n_hits: int, n: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of `Z` standard errors, 99.7 %; 0 and 1 for `n` of 0."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = n_hits / n, Z * Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    reach = Z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return max(0.0, middle - reach), min(1.0, middle + reach)
