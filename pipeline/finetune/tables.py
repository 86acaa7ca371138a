"""What a fine-tuning came to, as tables: the same on the screen and on a page.

Texts of tokens come from data sets: they are shown through `label`.
"""

import math
from collections.abc import Callable, Iterable, Sequence

from pipeline.finetune.compare import Comparison
from pipeline.finetune.effects import SHARE, Effects
from pipeline.finetune.meaning import Meaning, Moved
from pipeline.finetune.memory import MemoryPlan
from pipeline.finetune.run import FinetuneReport
from pipeline.progress import size
from pipeline.tables import Column, Style, Table, Words, percent
from pipeline.text.token_text import label

STATES = {"base": "model alone", "spliced": "SAE spliced in", "finetuned": "fine-tuned"}
_N_TOKENS = 6
"""Tokens that stand for what a feature fires on, and promotes."""


def finetune_table(report: FinetuneReport, *others: FinetuneReport) -> Table:
    """Before and after: on the text, on its questions, and on another text.

    Args:
        report: Of one site.
        others: Of the sites that learned with it: their losses are the same.
    """

    def row(words: str, figure: str, spell: Callable[[float], str]) -> list[str]:
        return [words, *(spell(getattr(report, f"{figure}_{state}")) for state in STATES)]

    rows = [row("loss on held-out text", "ce", "{:.4f}".format)]
    if report.n_questions is not None:
        n = report.n_questions
        rows.append(
            row(f"exact answers of {n:,}", "exact", lambda x: f"{round(x * n):,} ({percent(x)})")
        )
    if report.general_text:
        rows.append(row("perplexity elsewhere", "ce_general", lambda ce: f"{math.exp(ce):.2f}"))
    sites = ", ".join((report.site, *report.together_with))
    return Table(
        title=f"{report.text}, at {sites} of {report.model}",
        columns=[Column(), *(Column(head=head, align="right") for head in STATES.values())],
        sections=[rows],
        caption=". ".join([*_of_saes([report, *others]), *_facts(report)]),
        edged=True,
    )


def _of_saes(reports: Sequence[FinetuneReport]) -> list[str]:
    told = list[str]()
    for report in reports:
        at = f" at {report.site}" if len(reports) > 1 else ""
        if report.l0 is not None:
            ev = report.explained_variance
            explains = "undefined" if ev is None else f"{ev:.3f}"
            told.append(f"The SAE{at} as it was: explained variance {explains}, L0 {report.l0:.1f}")
        n, active = report.n_changed, report.n_learned
        if n is None or active is None or n == active:
            continue
        if n < active:  # as a price makes it
            told.append(f"{n:,} of {active:,} active features changed{at}")
        else:  # weight decay moves those that are never active
            told.append(f"{n:,} features changed{at}, of which {active:,} were active")
    return told


def _facts(report: FinetuneReport) -> list[str]:
    told = list[str]()
    if report.best_epoch is not None:
        told.append(f"Epoch {report.best_epoch} of {len(report.ce_by_epoch)} was the best")
    if report.general_text:
        told.append(f"Elsewhere is {report.general_text}")
    return told


def memory_table(plan: MemoryPlan) -> Table:
    """What a fine-tuning takes of its device, part by part."""
    parts = [[part.name, part.words, size(part.n_bytes)] for part in plan.parts]
    free = "unknown" if plan.bytes_free is None else size(plan.bytes_free)
    total = [["together", "", size(plan.bytes_needed)], ["there is", f"on {plan.device}", free]]
    return Table(
        title=f"memory of a fine-tuning at {plan.site} of {plan.model}",
        columns=[Column(), Column(folds=True), Column(align="right")],
        sections=[parts, total],
        edged=True,
    )


def comparison_table(comparison: Comparison) -> Table:
    """What came of each way to learn, on the same rows."""
    heads = ("", "numbers", "lr", "loss", "exact", "perplexity\nelsewhere")
    rows = [
        [
            way.words,
            f"{way.n_numbers:,}" if way.n_numbers else "",
            "" if way.lr is None else f"{way.lr:g}",
            f"{way.ce:.4f}",
            percent(way.exact),
            "-" if way.ce_general is None else f"{math.exp(way.ce_general):.2f}",
        ]
        for way in comparison.ways
    ]
    return Table(
        title="equal steps on the same rows, the learning rate chosen on rows of its own",
        columns=[Column(head=head, align="right" if head else "left") for head in heads],
        sections=[rows],
        edged=True,
    )


def effects_table(meaning: Meaning, report: FinetuneReport) -> Table | None:
    """The features whose change does most; None where an earlier version measured none."""
    if meaning.effects is None or not meaning.by_effect:
        return None
    table = moved_table(
        f"features of {report.site} by the effect of their change", meaning, meaning.by_effect
    )
    return Table(
        title=table.title, columns=table.columns, sections=table.sections, ruled=False,
        caption=gain_words(meaning.effects, report),
    )  # fmt: skip


def gain_words(effects: Effects, report: FinetuneReport) -> str:
    """How many of the changes make the gain, in a sentence."""
    on = f"on {effects.n_tokens:,} held-out tokens"
    if report.together_with:  # whose changes are kept
        on = f"that they add to those at {' and '.join(report.together_with)}, {on}"
    if (n := effects.n_for_share) is None:
        return f"All {effects.n_changed:,} changes together gain nothing {on}"
    are = "feature makes" if n == 1 else "features make"
    return (
        f"{n:,} of {effects.n_changed:,} changed {are} {SHARE:.0%} of the gain of "
        f"{effects.gain:.4f} nats {on}"
    )


def moved_table(title: str, meaning: Meaning, features: Sequence[Moved]) -> Table:
    """Features with what was learned of them, a line each."""
    rows = [
        [
            str(one.latent),
            f"{one.c:.3f}",
            f"{one.d:+.3f}",
            effect_words(one),
            *(_share(n, meaning.n_tokens) for n in (one.n_before, one.n_after)),
            _listed(fires_on(one)),
            _listed(told.token for told in one.promoted[:_N_TOKENS]),
        ]
        for one in features
    ]
    numbers = ("feature", "c", "d", "effect", "active on\nbefore", "\nafter")
    columns = [Column(head=head, align="right") for head in numbers]
    columns += [Column(head=head, fills=True) for head in ("fires on", "promotes")]
    return Table(title=title, columns=columns, sections=[rows], ruled=False)


def effect_words(one: Moved) -> str:
    """By how much the loss rises without the change of a feature; `~` before an estimate."""
    if one.effect is not None:
        return f"{one.effect:+.4f}"
    return "-" if one.estimate is None else f"~{one.estimate:+.4f}"


def fires_on(one: Moved) -> list[str]:
    """The tokens that a feature is most active on, each once."""
    known = [told.token for told in one.tokens] or [told.token for told in one.examples]
    return list(dict.fromkeys(known))[:_N_TOKENS]


def _share(n: int | None, n_tokens: int) -> str:
    return percent(None if n is None else n / n_tokens)


def _listed(tokens: Iterable[str]) -> Words:
    """Each token a piece, so that one that is written from right to left can stand for itself."""
    pieces: list[tuple[str, Style]] = []
    for token in tokens:
        if pieces:
            pieces.append(("  ", ""))
        pieces.append((label(token), ""))
    return Words(pieces=pieces)
