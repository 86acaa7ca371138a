"""What a fine-tuning came to, as a table."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from pipeline.progress import size
from pipeline.tables import Column, Table, percent

if TYPE_CHECKING:  # they bring torch
    from pipeline.finetune.compare import Comparison
    from pipeline.finetune.memory import MemoryPlan
    from pipeline.finetune.run import FinetuneReport

STATES = {"base": "model alone", "spliced": "SAE spliced in", "finetuned": "fine-tuned"}


def finetune_table(report: "FinetuneReport") -> Table:
    """Before and after: on the text, on its questions, and on another text."""

    def row(words: str, figure: str, spell: Callable[[float], str]) -> list[str]:
        return [words, *(spell(getattr(report, f"{figure}_{state}")) for state in STATES)]

    rows = [row("loss on held-out text", "ce", "{:.4f}".format)]
    if report.n_questions is not None:
        rows.append(row(f"exact answers of {report.n_questions:,}", "exact", percent))
    if report.general_text:
        rows.append(row("perplexity elsewhere", "ce_general", lambda ce: f"{math.exp(ce):.2f}"))
    return Table(
        title=f"{report.text}, at {report.site} of {report.model}",
        columns=[Column(), *(Column(head=head, align="right") for head in STATES.values())],
        sections=[rows],
        caption=". ".join(_facts(report)),
        edged=True,
    )


def _facts(report: "FinetuneReport") -> list[str]:
    told = list[str]()
    if report.l0 is not None:
        ev = report.explained_variance
        explains = "undefined" if ev is None else f"{ev:.3f}"
        told.append(f"The SAE as it was: explained variance {explains}, L0 {report.l0:.1f}")
    if report.n_changed is not None:
        told.append(f"{report.n_changed:,} of {report.n_learned:,} active features changed")
    if report.best_epoch is not None:
        told.append(f"Epoch {report.best_epoch} of {len(report.ce_by_epoch)} was the best")
    if report.general_text:
        told.append(f"Elsewhere is {report.general_text}")
    return told


def memory_table(plan: "MemoryPlan") -> Table:
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


def comparison_table(comparison: "Comparison") -> Table:
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
