"""Features on the screen, 80 columns wide where it is a pipe.

Texts come from data sets: they are shown through `label` and `visible`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import zip_longest

import numpy as np
from jaxtyping import Float32, Int64
from rich.cells import cell_len, set_cell_size

from actstore.errors import StoreError
from pipeline.config.serialization import to_json
from pipeline.config.stages import FeatureOrder
from pipeline.errors import ConfigError, ModelError
from pipeline.features.ablation import AblationEffect, ablation_effects
from pipeline.features.before import Before, before_tuning
from pipeline.features.feature import (
    Examples,
    Feature,
    TokenEffect,
    TokenValues,
    feature_document,
    rounded,
)
from pipeline.features.files import FeatureSet, ordered
from pipeline.tables import Column, Shown, Style, Table, Words, many, percent
from pipeline.terminal.lines import features_line
from pipeline.text.token_text import TokenTexts, label, visible

_TOKEN_CELLS = 16
_LEFT_CELLS = 30
"""Of the text before an example's token."""
_N_SPREAD = 8


def shown(found: FeatureSet, chosen: Sequence[int], *, order: FeatureOrder, rows: int) -> Shown:
    """Some features closely, or else a table of those that come first."""
    indices, notes = ordered(found, order)[:rows], [*found.facts.notes]
    try:
        effects = ablation_effects(found, chosen)
    except (ModelError, ConfigError) as error:  # as of a model that is out of reach
        effects = dict.fromkeys(chosen)
        notes.append(f"what is lost without a feature was not measured: {error}")
    before: dict[int, Before] = {}
    try:
        before = before_tuning(found, chosen)
    except (ConfigError, StoreError) as error:  # as of a store that is gone
        notes.append(f"what it was before fine-tuning was not looked up: {error}")
    if not chosen:
        tables = [features_table(found, indices)]
    else:
        tables = [
            table
            for i in chosen
            for table in feature_tables(found, i, effect=effects[i], before=before.get(i))
        ]
    documents = [
        feature_document(found.feature(i), found.texts)
        | ({"ablation": to_json(effects[i])} if chosen else {})
        | ({"before": _before_document(before[i])} if i in before else {})
        for i in chosen or indices.tolist()
    ]
    return Shown(lines=[features_line(found)], tables=tables, documents=documents, notes=notes)


def features_table(features: FeatureSet, indices: Int64[np.ndarray, " n"]) -> Table:
    """Some features, a line each, in the order given."""
    facts = features.facts
    with_dead = bool(np.isfinite(features.dead_cosine).any())
    numbers = ("feature", "frequency", "max", "mean", *(["dead\ncosine"] if with_dead else []))
    words = ("fires on", *(["promotes"] if facts.attributed else []))
    rows: list[list[str]] = []
    for index in indices.tolist():
        feature = features.feature(index)
        rows.append([
            str(index), percent(feature.frequency), f"{feature.max:.3g}", f"{feature.mean:.3g}",
            *([] if feature.dead_cosine is None else [f"{feature.dead_cosine:.2f}"]),
            _listed(features.fires_on(feature)),
            *([_listed(told.text for told in feature.promoted)] if facts.attributed else []),
        ])  # fmt: skip
    columns = [Column(head=name, align="right") for name in numbers]
    columns += [Column(head=name, fills=True) for name in words]
    title = f"features of {features.run.name}, {facts.site}, {facts.n_tokens:,} tokens"
    return Table(title=title, columns=columns, sections=[rows], ruled=False)


def feature_tables(
    features: FeatureSet,
    index: int,
    *,
    effect: AblationEffect | None = None,
    before: Before | None = None,
) -> list[Table]:
    """All that is known of one feature; of a fine-tuned one also what it was before."""
    feature, texts = features.feature(index), features.texts
    tables = [_numbers(features, feature, before)]
    if feature.n_active:
        spread = feature.spread
        some = np.unique(np.linspace(0, len(spread) - 1, _N_SPREAD).round().astype(int))
        share = [f"{100 * (1 - (i + 0.5) / len(spread)):.0f} %" for i in some.tolist()]
        tables += [
            _contexts(
                "top contexts",
                feature.top,
                range(len(feature.top)),
                texts,
                untuned=None if before is None else before.top,
            ),
            _contexts(
                "contexts at quantiles of their largest activation",
                spread,
                some.tolist(),
                texts,
                share,
                untuned=None if before is None else before.spread,
            ),
            histogram(feature.sample, texts),
        ]
    ends = {"promotes": feature.promoted, "suppresses": feature.suppressed}
    if effect is not None:
        ends |= {"lost without it": effect.dropped, "gained without it": effect.raised}
    if any(ends.values()):
        tables.append(_logits(ends, effect))
    return tables


def _numbers(features: FeatureSet, feature: Feature, before: Before | None) -> Table:
    facts, dead = features.facts, feature.dead_cosine
    near = ", ".join(f"{other.index} ({other.cosine:.2f})" for other in feature.neighbours)
    rows = {
        "active on": f"{percent(feature.frequency)} of {facts.n_tokens:,} tokens: "
        + many(feature.n_active, "token"),
        "activation": f"{feature.mean:.4g} on average where active, {feature.max:.4g} at most",
        "cosine": f"{feature.encoder_decoder_cosine:.3f} of encoder and decoder"
        + ("" if dead is None else f", {dead:.3f} with the mean dead feature"),
        "nearest": f"{near} (cosine of decoders)" if near else "no other feature",
        **({} if before is None else {"fine-tuned": _learned(before)}),
    }
    return Table(
        title=f"feature {feature.index} of {features.run.name}, {facts.arch} {facts.site}",
        columns=[Column(), Column(folds=True, fills=True)],
        sections=[list(rows.items())],
        ruled=False,
    )


def _learned(before: Before) -> str:
    """What fine-tuning made of a feature."""
    told, moved = f"scale {before.c:.4g}, bias {before.d:+.4g}", before.moved
    if moved is None or moved.estimate is None:  # of an earlier version
        return told
    effect, sure = moved.effect, ""
    if effect is None:
        effect, sure = moved.estimate, ", by an estimate"
    side = "higher" if effect > 0 else "lower"
    return f"{told}; without this change the held-out loss is {abs(effect):.4f} nats {side}{sure}"


def _before_document(before: Before) -> dict[str, object]:
    numbers = {name: rounded(getattr(before, name)) for name in ("top", "spread")}
    moved = before.moved
    effects = {name: moved and getattr(moved, name) for name in ("effect", "estimate")}
    return {"c": before.c, "d": before.d, **effects, **numbers}


def _contexts(
    title: str,
    examples: Examples,
    chosen: Sequence[int],
    texts: TokenTexts,
    share: Sequence[str] = (),
    *,
    untuned: Float32[np.ndarray, " n"] | None,
) -> Table:
    """Examples under each other at their tokens, with what each was before, if that is told."""
    rows: list[list[str | Words]] = []
    passages = examples.passages(texts)
    for i, place in enumerate(chosen):
        before, token, after = map(visible, passages[place])
        left = _last_cells(before, _LEFT_CELLS)
        line = Words(pieces=[(left, ""), (token, "bold underline"), (after, "")])
        was = [] if untuned is None else [f"{untuned[place]:.3g}"]
        rows.append([*was, f"{examples.value[place]:.3g}", *share[i : i + 1], line])
    heads = [""] if untuned is None else ["before", "after"]
    numbers = [Column(head=head, align="right") for head in (*heads, *[""][: len(share)])]
    columns = [*numbers, Column(fills=True)]
    return Table(title=title, columns=columns, sections=[rows], ruled=False)


def _logits(ends: dict[str, tuple[TokenEffect, ...]], effect: AblationEffect | None) -> Table:
    without = "" if effect is None else f", and without it, over {effect.n_contexts} top contexts"
    columns = [Column(head=name, fills=True) for name in ends]
    rows = [
        ["" if told is None else _effect(told) for told in row]
        for row in zip_longest(*ends.values())
    ]
    title = f"logits by its direct path{without}"
    return Table(title=title, columns=columns, sections=[rows], ruled=False)


def _effect(told: TokenEffect) -> str:
    text, n = label(told.text), _TOKEN_CELLS - 6
    cut = text if cell_len(text) <= n else f"{set_cell_size(text, n - 1)}…"
    return f"{told.effect:+.2f} {cut}"


def _listed(tokens: Iterable[str]) -> str:
    return "  ".join(map(label, tokens))


def _last_cells(text: str, n: int) -> str:
    """As much of the end of a text as fits into `n` cells of the terminal, filled up in front."""
    cut = ""
    while cell_len(cut + text) > n:
        cut, text = "…", text[1:]
    return " " * (n - cell_len(cut + text)) + cut + text


_N_BINS, _N_TOKENS = 8, 6
"""Bars, and tokens that get a letter; the others share a dot."""
_BAR = 52
_STYLES: tuple[Style, ...] = ("red", "green", "yellow", "blue", "magenta", "cyan")

Mark = tuple[str, Style]
_OTHERS: Mark = ("·", "dim")


def histogram(sample: TokenValues, texts: TokenTexts) -> Table:
    """Drawn activations by size, each bar made up of the letters of its tokens."""
    common = [token for token, _ in Counter(sample.token.tolist()).most_common(_N_TOKENS)]
    marks: list[Mark] = [(chr(ord("A") + i), _STYLES[i]) for i in range(len(common))]
    edges = np.linspace(0, sample.value.max(), _N_BINS + 1)
    bins = np.clip(np.digitize(sample.value, edges) - 1, 0, _N_BINS - 1)
    largest = np.bincount(bins, minlength=_N_BINS).max()
    rows: list[list[str | Words]] = []
    for i in range(_N_BINS):
        here = Counter(sample.token[bins == i].tolist())
        counts = [here.pop(token, 0) for token in common] + [0]
        counts[-1] = sum(here.values())
        bar = _bar(counts, [*marks, _OTHERS], cells=_BAR / largest)
        rows.append([f"{edges[i]:.3g} to {edges[i + 1]:.3g}", str(sum(counts)), bar])
    return Table(
        title=f"activations by token, {len(sample.value)} tokens drawn of all it is active on",
        columns=[Column(align="right"), Column(align="right"), Column(folds=True, fills=True)],
        sections=[[*rows, ["", "", _legend(sample, common, marks, texts)]]],
        ruled=False,
    )


def _bar(counts: list[int], marks: list[Mark], *, cells: float) -> Words:
    """A run of each mark, as long as its count; ends are rounded, so that lengths add up."""
    ends = np.ceil(np.cumsum(counts) * cells).astype(int)
    lengths = np.diff(ends, prepend=0).tolist()
    return Words(
        pieces=[(mark * n, style) for (mark, style), n in zip(marks, lengths, strict=True)]
    )


def _legend(sample: TokenValues, common: list[int], marks: list[Mark], texts: TokenTexts) -> Words:
    """Which letter is which token, and its share."""
    pieces, rest = list[Mark](), len(sample.token)
    for token, mark in zip(common, marks, strict=True):
        n = int((sample.token == token).sum())
        rest -= n
        told = f" {label(texts.alone(token))} {_share(n, sample)}  "
        pieces.extend((mark, (told, "")))
    if rest:
        pieces.extend((_OTHERS, (f" others {_share(rest, sample)}", "")))
    return Words(pieces=pieces)


def _share(n: int, sample: TokenValues) -> str:
    return f"{100 * n / len(sample.token):.0f} %"
