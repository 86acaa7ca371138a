"""A feature as people look at it: how often, on what, and to what end."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int32, Int64

BEFORE, AFTER = 24, 8
"""Tokens of an example before and after the one it is about; the context may end earlier."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Examples:
    """Contexts of one feature, each looked at around the token of its largest activation."""

    context: Int64[np.ndarray, " n"]
    """Numbers in the store."""
    position: Int32[np.ndarray, " n"]
    """Of that token in its context."""
    value: Float32[np.ndarray, " n"]
    """The activation there."""
    tokens: Int32[np.ndarray, "n window"]
    """`BEFORE` tokens, the one, and `AFTER` tokens; -1 beyond the ends of the context."""
    values: Float32[np.ndarray, "n window"]
    """The activation at each of them; 0 beyond the ends."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TokenValues:
    """Activations above zero of one feature, drawn at random, each with its token."""

    token: Int32[np.ndarray, " n"]
    value: Float32[np.ndarray, " n"]


@dataclass(frozen=True, kw_only=True)
class TokenEffect:
    """A token of the vocabulary, and what happens to its logit."""

    token: int
    text: str
    effect: float


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """Another feature that writes in nearly the same direction."""

    index: int
    cosine: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Feature:
    """One feature of a coder."""

    index: int
    n_active: int
    """Tokens, of those read, on which it is above zero."""
    frequency: float
    """As a fraction."""
    mean: float
    """Of its activations above zero; 0 for a dead one."""
    max: float
    top: Examples
    """In descending order of their activation."""
    spread: Examples
    """Drawn at random from all contexts it is active in; in descending order, too."""
    sample: TokenValues
    promoted: tuple[TokenEffect, ...]
    """Tokens whose logits its decoder row raises most, in descending order; empty where a site
    does not write to the residual stream."""
    suppressed: tuple[TokenEffect, ...]
    """Those it lowers most, in ascending order."""
    neighbours: tuple[Neighbour, ...]
    """In descending order of their cosine."""
    dead_cosine: float | None
    """Of its dictionary row with the mean dead row; None without dead features."""
    encoder_decoder_cosine: float
