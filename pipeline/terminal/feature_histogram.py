"""How strongly a feature is active on which tokens, in letters."""

from collections import Counter

import numpy as np
from rich.table import Table
from rich.text import Text

from pipeline.features.feature import TokenValues
from pipeline.features.token_text import TokenTexts, label

_N_BINS = 8
_N_TOKENS = 6
"""Tokens that get a letter; the others share a dot."""
_BAR = 52
_STYLES = ("red", "green", "yellow", "blue", "magenta", "cyan")
_OTHERS = ("·", "dim")


def histogram(sample: TokenValues, texts: TokenTexts) -> Table:
    """Drawn activations by size, each bar made up of the letters of its tokens."""
    common = [token for token, _ in Counter(sample.token.tolist()).most_common(_N_TOKENS)]
    marks = [(chr(ord("A") + i), _STYLES[i]) for i in range(len(common))]
    title = f"activations by token, {len(sample.value)} tokens drawn of all it is active on"
    table = Table(
        title=Text(title, style="bold"), title_justify="left", show_header=False, box=None,
        pad_edge=False, padding=(0, 1, 0, 0), expand=True,
    )  # fmt: skip
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
