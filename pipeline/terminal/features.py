"""Features on the screen, 80 columns wide where it is a pipe.

Texts come from data sets: they are shown as `Text`, never as markup, and through `visible`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Int64
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from pipeline.config.serialization import to_json
from pipeline.config.stages import FeatureOrder
from pipeline.features.ablation import AblationEffect, ablation_effects
from pipeline.features.feature import (
    BEFORE,
    Examples,
    Feature,
    TokenEffect,
    TokenValues,
    feature_document,
)
from pipeline.features.files import FeatureSet, ordered
from pipeline.tables import Shown, many, percent
from pipeline.terminal.lines import features_line
from pipeline.text.token_text import TokenTexts, label, visible

_TOKEN_CELLS = 16
_LEFT_CELLS = 30
"""Of the text before an example's token."""
_N_SPREAD = 8
_MARKED = "bold underline"


def shown(found: FeatureSet, chosen: Sequence[int], *, order: FeatureOrder, rows: int) -> Shown:
    """Some features closely, or else a table of those that come first."""
    indices, effects = ordered(found, order)[:rows], ablation_effects(found, chosen)
    if not chosen:
        tables = [features_table(found, indices)]
    else:
        tables = [t for i in chosen for t in feature_tables(found, i, effect=effects[i])]
    documents = [
        feature_document(found.feature(i), found.texts)
        | ({"ablation": to_json(effects[i])} if chosen else {})
        for i in chosen or indices.tolist()
    ]
    lines, notes = [features_line(found)], found.facts.notes
    return Shown(lines=lines, tables=tables, documents=documents, notes=notes)


def features_table(
    features: FeatureSet, indices: Int64[np.ndarray, " n"], *, title: str = ""
) -> Table:
    """Some features, a line each, in the order given."""
    facts = features.facts
    heading = title or f"features of {features.run.name}, {facts.site}, {facts.n_tokens:,} tokens"
    table = _table(heading, show_header=True)
    with_dead = bool(np.isfinite(features.dead_cosine).any())
    for name in ("feature", "frequency", "max", "mean", *(["dead\ncosine"] if with_dead else [])):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("fires on", ratio=1, no_wrap=True, overflow="ellipsis")
    if facts.attributed:
        table.add_column("promotes", ratio=1, no_wrap=True, overflow="ellipsis")
    for index in indices.tolist():
        feature = features.feature(index)
        fires_on = dict.fromkeys(feature.top.tokens[:, BEFORE].tolist())  # each token once
        row = [
            str(index), percent(feature.frequency), f"{feature.max:.3g}", f"{feature.mean:.3g}",
            *([] if feature.dead_cosine is None else [f"{feature.dead_cosine:.2f}"]),
            _listed(map(features.texts.alone, fires_on)),
        ]  # fmt: skip
        if facts.attributed:
            row.append(_listed(told.text for told in feature.promoted))
        table.add_row(*map(Text, row))
    return table


def feature_tables(
    features: FeatureSet, index: int, *, effect: AblationEffect | None = None
) -> list[Table]:
    """All that is known of one feature."""
    feature, texts = features.feature(index), features.texts
    tables = [_numbers(features, feature)]
    if feature.n_active:
        spread = feature.spread
        some = np.unique(np.linspace(0, len(spread) - 1, _N_SPREAD).round().astype(int))
        share = [f"{100 * (1 - (i + 0.5) / len(spread)):.0f} %" for i in some.tolist()]
        tables += [
            _contexts("top contexts", feature.top, range(len(feature.top)), texts),
            _contexts(
                "contexts at quantiles of their largest activation",
                spread,
                some.tolist(),
                texts,
                share,
            ),
            histogram(feature.sample, texts),
        ]
    ends = {"promotes": feature.promoted, "suppresses": feature.suppressed}
    if effect is not None:
        ends |= {"lost without it": effect.dropped, "gained without it": effect.raised}
    if any(ends.values()):
        tables.append(_logits(ends, effect))
    return tables


def _table(title: str, *, show_header: bool = False) -> Table:
    return Table(
        title=Text(title, style="bold"), title_justify="left", show_header=show_header, box=None,
        pad_edge=False, padding=(0, 1, 0, 0), expand=True,
    )  # fmt: skip


def _numbers(features: FeatureSet, feature: Feature) -> Table:
    facts, dead = features.facts, feature.dead_cosine
    table = _table(f"feature {feature.index} of {features.run.name}, {facts.arch} {facts.site}")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=1)
    near = ", ".join(f"{other.index} ({other.cosine:.2f})" for other in feature.neighbours)
    rows = {
        "active on": f"{percent(feature.frequency)} of {facts.n_tokens:,} tokens: "
        + many(feature.n_active, "token"),
        "activation": f"{feature.mean:.4g} on average where active, {feature.max:.4g} at most",
        "cosine": f"{feature.encoder_decoder_cosine:.3f} of encoder and decoder"
        + ("" if dead is None else f", {dead:.3f} with the mean dead feature"),
        "nearest": f"{near} (cosine of decoders)" if near else "no other feature",
    }
    for name, words in rows.items():
        table.add_row(name, Text(words))
    return table


def _contexts(
    title: str,
    examples: Examples,
    chosen: Sequence[int],
    texts: TokenTexts,
    share: Sequence[str] = (),
) -> Table:
    """Examples under each other at their tokens."""
    table = _table(title)
    table.add_column(justify="right", no_wrap=True)
    if share:
        table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    passages = examples.passages(texts)
    for i, place in enumerate(chosen):
        before, token, after = map(visible, passages[place])
        line = Text.assemble(_last_cells(before, _LEFT_CELLS), (token, _MARKED), after)
        numbers = [Text(f"{examples.value[place]:.3g}"), *([Text(share[i])] if share else [])]
        table.add_row(*numbers, line)
    return table


def _logits(ends: dict[str, tuple[TokenEffect, ...]], effect: AblationEffect | None) -> Table:
    over = "" if effect is None else f"; without it, over {many(effect.n_contexts, 'top context')}"
    table = _table(f"logits{over}", show_header=True)
    for name in ends:
        table.add_column(name, no_wrap=True, overflow="ellipsis", ratio=1)
    for i in range(max(map(len, ends.values()))):
        row = [tokens[i] if i < len(tokens) else None for tokens in ends.values()]
        table.add_row(*(Text("") if told is None else _effect(told) for told in row))
    return table


def _effect(told: TokenEffect) -> Text:
    text = Text(label(told.text))
    text.truncate(_TOKEN_CELLS - 6, overflow="ellipsis")
    return Text.assemble(f"{told.effect:+.2f} ", text)


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
_STYLES = ("red", "green", "yellow", "blue", "magenta", "cyan")
_OTHERS = ("·", "dim")


def histogram(sample: TokenValues, texts: TokenTexts) -> Table:
    """Drawn activations by size, each bar made up of the letters of its tokens."""
    common = [token for token, _ in Counter(sample.token.tolist()).most_common(_N_TOKENS)]
    marks = [(chr(ord("A") + i), _STYLES[i]) for i in range(len(common))]
    title = f"activations by token, {len(sample.value)} tokens drawn of all it is active on"
    table = _table(title)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    edges = np.linspace(0, sample.value.max(), _N_BINS + 1)
    bins = np.clip(np.digitize(sample.value, edges) - 1, 0, _N_BINS - 1)
    largest = np.bincount(bins, minlength=_N_BINS).max()
    for i in range(_N_BINS):
        here = Counter(sample.token[bins == i].tolist())
        counts = [here.pop(token, 0) for token in common] + [0]
        counts[-1] = sum(here.values())
        bar = _bar(counts, [*marks, _OTHERS], cells=_BAR / largest)
        table.add_row(f"{edges[i]:.3g} to {edges[i + 1]:.3g}", str(sum(counts)), bar)
    table.add_row("", "", _legend(sample, common, marks, texts))
    return table


def _bar(counts: list[int], marks: list[tuple[str, str]], *, cells: float) -> Text:
    """A run of each mark, as long as its count; ends are rounded, so that lengths add up."""
    ends = np.ceil(np.cumsum(counts) * cells).astype(int)
    bar = Text()
    for (letter, style), n in zip(marks, np.diff(ends, prepend=0).tolist(), strict=True):
        bar.append(letter * n, style=style)
    return bar


def _legend(
    sample: TokenValues, common: list[int], marks: list[tuple[str, str]], texts: TokenTexts
) -> Text:
    """Which letter is which token, and its share."""
    legend, rest = Text(), len(sample.token)
    for token, (letter, style) in zip(common, marks, strict=True):
        n = int((sample.token == token).sum())
        rest -= n
        legend.append(letter, style=style)
        legend.append(f" {label(texts.alone(token))} {_share(n, sample)}  ")
    if rest:
        legend.append(_OTHERS[0], style=_OTHERS[1])
        legend.append(f" others {_share(rest, sample)}")
    return legend


def _share(n: int, sample: TokenValues) -> str:
    return f"{100 * n / len(sample.token):.0f} %"
