"""A feature as people look at it: how often it is active, on what, and to what end."""

from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from pipeline.config.serialization import to_json
from pipeline.frame import make_frame
from pipeline.text.token_text import TokenTexts, visible

BEFORE, AFTER = 24, 8
"""Tokens of an example before and after the one it is about; the context may end earlier."""


class Passage(NamedTuple):
    """The text of one example. It is a data set's: whoever shows it must escape it."""

    before: str
    token: str
    """The one it is about."""
    after: str


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

    def __len__(self) -> int:
        return len(self.value)

    def inside(self) -> Iterator[tuple[int, int, list[int], Float32[np.ndarray, " n"]]]:
        """Of each its context, its position, and the tokens and values within the context."""
        columns = self.context.tolist(), self.position.tolist(), self.tokens, self.values
        for context, position, tokens, values in zip(*columns, strict=True):
            yield context, position, tokens[tokens >= 0].tolist(), values[tokens >= 0]

    def passages(self, texts: TokenTexts) -> list[Passage]:
        """The text of each."""
        found: list[Passage] = []
        for tokens in self.tokens.tolist():
            pieces = texts.pieces(tokens)
            token = pieces[BEFORE] or texts.alone(tokens[BEFORE])
            found.append(Passage("".join(pieces[:BEFORE]), token, "".join(pieces[BEFORE + 1 :])))
        return found


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
    """One feature of an SAE."""

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

    def __repr__(self) -> str:
        return (
            f"Feature({self.index}, on {100 * self.frequency:.3g} % of tokens, max {self.max:.3g})"
        )


_LEFT, _RIGHT = 40, 30
"""Characters of a passage that a table shows before and after its token."""


@dataclass(frozen=True, kw_only=True, repr=False)
class TopContexts:
    """Where a feature is most active, as a table: of plain text, and in a notebook of HTML."""

    title: str
    activations: tuple[float, ...]
    """In descending order."""
    passages: tuple[Passage, ...]
    """In the same order."""

    def __len__(self) -> int:
        return len(self.passages)

    def __repr__(self) -> str:
        lines = [visible(self.title), "activation  context"]
        for value, passage in zip(self.activations, self.passages, strict=True):
            before, token, after = map(visible, passage)
            left = before if len(before) <= _LEFT else f"…{before[1 - _LEFT :]}"
            right = after if len(after) <= _RIGHT else f"{after[: _RIGHT - 1]}…"
            lines.append(f"{value:>10.4g}  {left:>{_LEFT}}«{token}»{right}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows: list[str] = []
        for value, passage in zip(self.activations, self.passages, strict=True):
            before, token, after = (escape(visible(text)) for text in passage)
            context = f"{before}<mark>{token}</mark>{after}"
            rows.append(f'<td>{value:.4g}</td><td style="text-align: left">{context}</td>')
        head = "<th>activation</th><th>context</th>"
        lines = "".join(f"<tr>{cells}</tr>" for cells in (head, *rows))
        return f"<table><caption>{escape(visible(self.title))}</caption>{lines}</table>"

    def to_frame(self) -> Any:  # noqa: ANN401 - pandas need not be installed
        """One row a context, texts as the data set has them, as a pandas DataFrame.

        Raises:
            ConfigError: pandas is not installed.
        """
        texts = {
            name: [getattr(passage, name) for passage in self.passages] for name in Passage._fields
        }
        return make_frame({"activation": list(self.activations), **texts})


def feature_document(feature: Feature, texts: TokenTexts) -> dict[str, object]:
    """All that is known of a feature, as what `json.dumps` takes.

    Examples hold the tokens of their context alone, without the places beyond its ends; `at` is
    the place, among those, of the token with the largest activation. Texts are as the tokenizer
    has them: whoever shows them must escape them.
    """
    scalars = (
        "index", "n_active", "frequency", "mean", "max", "dead_cosine", "encoder_decoder_cosine",
    )  # fmt: skip
    sample = feature.sample
    return {
        **{name: getattr(feature, name) for name in scalars},
        "top": examples_document(feature.top, texts),
        "spread": examples_document(feature.spread, texts),
        "sample": {
            "tokens": sample.token.tolist(),
            "texts": [texts.alone(token) for token in sample.token.tolist()],
            "values": rounded(sample.value),
        },
        **{
            name: to_json(getattr(feature, name))
            for name in ("promoted", "suppressed", "neighbours")
        },
    }


def examples_document(examples: Examples, texts: TokenTexts) -> list[dict[str, object]]:
    """Each example, its text cut into a piece a token."""
    return [
        {
            "context": context,
            "position": position,
            "value": value,
            "at": min(BEFORE, position),
            "tokens": tokens,
            "texts": list(texts.pieces(tokens)),
            "values": rounded(values),
        }
        for value, (context, position, tokens, values) in zip(
            examples.value.tolist(), examples.inside(), strict=True
        )
    ]


def rounded(values: Float32[np.ndarray, " n"]) -> list[float]:
    """Six digits: as many as float32 has, without the tail of its binary form."""
    return [float(f"{value:.6g}") for value in values.tolist()]
